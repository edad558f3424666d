"""The network of the text problems."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genrep_dist.errors import ProblemError

PADDING_ID = 0
"""The padding token, which fills sentences up to a common length."""

EMBEDDING_SCALE = 0.1
"""Standard deviation of the initial embedding."""


class TextCNN(nn.Module):
    """The text network of the paper: int64 tokens (B, L) -> logits (B, num_outputs).

    An embedding of 30,522 x 48, three convolutions of width 5 without bias (48-50-100-200 channels), each followed by a ReLU, the
    largest value of each channel over the sentence, and a linear layer with bias: with one output 1,602,257 parameters.

    Initialisation: the embedding by a normal distribution of standard deviation 0.1, the convolutions by He's for ReLUs, which keeps
    the scale of a signal, the linear layer as in torch.

    Token 0 is padding at any position. Hidden positions of padding are set to zero after each convolution and excluded from the
    maximum, so that outputs and gradients do not depend on the amount of padding. A sentence must have at least one other token, else
    its logit is not finite. Every module is called once per forward pass.
    """

    def __init__(
        self, num_outputs: int = 1, vocabulary_size: int = 30_522, embedding_width: int = 48, channels: Sequence[int] = (50, 100, 200)
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
        # With torch's unit variance, the random initial embedding of a word outweighs what plain SGD learns.
        with torch.no_grad():
            self.embedding.weight.mul_(EMBEDDING_SCALE)
        self.conv1 = nn.Conv1d(embedding_width, widths[0], 5, padding=2, bias=False)
        self.conv2 = nn.Conv1d(widths[0], widths[1], 5, padding=2, bias=False)
        self.conv3 = nn.Conv1d(widths[1], widths[2], 5, padding=2, bias=False)
        # Torch's initialisation halves signal and gradients in each layer, which delays learning by many epochs.
        for convolution in (self.conv1, self.conv2, self.conv3):
            nn.init.kaiming_uniform_(convolution.weight, nonlinearity="relu")
        self.linear = nn.Linear(widths[2], num_outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.embedding(inputs).transpose(1, 2)  # (B, E, L); zero at padding
        # Added before a ReLU it makes padding zero. This is cheaper than filling the result: the gradient of a sum is passed on unchanged.
        hide = torch.where(inputs == PADDING_ID, -torch.inf, 0.0).to(hidden.dtype).unsqueeze(1)  # (B, 1, L)
        hidden = torch.relu(self.conv1(hidden) + hide)
        hidden = torch.relu(self.conv2(hidden) + hide)
        hidden = self.conv3(hidden) + hide
        # Maximum, then ReLU: equal to ReLU, then maximum, without a ReLU of every position. The first of equal values is used: the
        # gradient of each channel goes to one position.
        largest = nn.functional.adaptive_max_pool1d(hidden, 1).squeeze(2)
        logits: Tensor = self.linear(torch.relu(largest))
        return logits
