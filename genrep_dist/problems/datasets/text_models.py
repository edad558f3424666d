"""The network of the text problems."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genrep_dist.errors import ProblemError

PADDING_ID = 0
"""The token that stands for no token; it fills sentences up to a common length."""


EMBEDDING_SCALE = 0.1
"""Standard deviation of the initial embedding."""


class TextCNN(nn.Module):
    """The text network of the paper: int64 tokens (B, L) -> logits (B, num_outputs).

    An embedding of 30,522 x 48, three convolutions of width 5 without bias (48-50-100-200 channels), each followed by a ReLU, the
    largest value of each channel over the sentence, and a linear layer with bias: with one output 1,602,257 parameters.

    The embedding starts from a normal distribution of standard deviation 0.1, the convolutions from He's for ReLUs, which keeps the
    size of a signal, the linear layer as torch has it.

    Token 0 is padding, wherever it stands. Hidden positions of padding are set to zero after each convolution and take no part in
    the maximum, so that neither outputs nor gradients depend on how far a sentence is padded. A sentence holds at least one token
    that is no padding; one that holds none has a logit that is not finite. Every module is called once a forward pass.
    """

    def __init__(
        self,
        num_outputs: int = 1,
        vocabulary_size: int = 30_522,
        embedding_width: int = 48,
        channels: Sequence[int] = (50, 100, 200),
    ) -> None:
        super().__init__()
        widths = tuple(channels)
        sizes = {"num_outputs": num_outputs, "vocabulary_size": vocabulary_size, "embedding_width": embedding_width}
        for name, size in (*sizes.items(), *(("channels", width) for width in widths)):
            if size < 1:
                raise ProblemError("a network cannot be built", where=f"TextCNN.{name}", expected="at least 1", got=str(size))
        if len(widths) != 3:
            raise ProblemError(
                "a network cannot be built", where="TextCNN.channels", expected="three numbers of channels", got=repr(widths)
            )
        self.embedding = nn.Embedding(vocabulary_size, embedding_width, padding_idx=PADDING_ID)
        # Torch's own unit variance drowns what plain SGD learns of a word in what the word was given by chance.
        with torch.no_grad():
            self.embedding.weight.mul_(EMBEDDING_SCALE)
        self.conv1 = nn.Conv1d(embedding_width, widths[0], 5, padding=2, bias=False)
        self.conv2 = nn.Conv1d(widths[0], widths[1], 5, padding=2, bias=False)
        self.conv3 = nn.Conv1d(widths[1], widths[2], 5, padding=2, bias=False)
        # Its own convolutions shrink a signal by half a layer, and gradients with it: many epochs pass before anything is learned.
        for convolution in (self.conv1, self.conv2, self.conv3):
            nn.init.kaiming_uniform_(convolution.weight, nonlinearity="relu")
        self.linear = nn.Linear(widths[2], num_outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.embedding(inputs).transpose(1, 2)  # (B, E, L); zero at padding
        # Added before a ReLU it makes zeros of padding, at less cost than a fill of the result: a sum hands its gradient on as it is.
        hide = torch.where(inputs == PADDING_ID, -torch.inf, 0.0).to(hidden.dtype).unsqueeze(1)  # (B, 1, L)
        hidden = torch.relu(self.conv1(hidden) + hide)
        hidden = torch.relu(self.conv2(hidden) + hide)
        hidden = self.conv3(hidden) + hide
        # The largest value, then ReLU: equal to ReLU, then the largest value, without a ReLU of every position.
        # Of equal ones the first is taken: one position of each channel goes on, and one comes back.
        largest = nn.functional.adaptive_max_pool1d(hidden, 1).squeeze(2)
        logits: Tensor = self.linear(torch.relu(largest))
        return logits
