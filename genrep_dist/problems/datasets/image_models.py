"""The networks of the image problems."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genrep_dist.errors import ProblemError


class SmallCNN(nn.Module):
    """A convolutional network for 8x8 images: inputs (B, 1, 8, 8) -> logits (B, C).

    Two 3x3 'same' convolutions of 16 and 32 channels, each followed by a 2x2 max pool and a ReLU, then a linear layer on 128
    features. Parameters: 160 + 4,640 + 129 C, so 4,929 with one output and 6,090 with ten.
    """

    def __init__(self, num_outputs: int = 1) -> None:
        super().__init__()
        _check_at_least_one(num_outputs=num_outputs)
        self.conv1 = nn.Conv2d(1, 16, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, kernel_size=3, padding=1)
        self.linear = nn.Linear(128, num_outputs)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = _pool_relu(self.conv1(inputs))
        hidden = _pool_relu(self.conv2(hidden))
        logits: Tensor = self.linear(hidden.flatten(1))
        return logits


class VisionCNN(nn.Module):
    """The vision network of the paper: inputs (B, in_channels, image_size, image_size) -> logits (B, num_outputs).

    Three 3x3 'same' convolutions of 32, 64 and 128 channels, each followed by a 2x2 max pool and a ReLU, then a linear layer.
    With one output it has 93,825 parameters for 1x28x28 images and 95,297 for 3x32x32 ("3 layers, around 95,000").
    """

    def __init__(self, in_channels: int = 1, image_size: int = 28, num_outputs: int = 1) -> None:
        super().__init__()
        _check_at_least_one(in_channels=in_channels, num_outputs=num_outputs)
        if image_size < 8:
            raise ProblemError(
                "the images are too small for three 2x2 pools",
                where="VisionCNN.image_size",
                expected="at least 8",
                got=str(image_size),
                remedy="use SmallCNN",
            )
        self.conv1 = _convolution(in_channels, 32, image_size)
        self.conv2 = _convolution(32, 64, image_size // 2)
        self.conv3 = _convolution(64, 128, image_size // 4)
        self.linear = nn.Linear(128 * (image_size // 8) ** 2, num_outputs)
        # With channels-last weights the convolutions run channels-last for any layout of the inputs: 1.3 times faster on a CPU, in
        # training and in per-sample gradients. Shapes, values and the order of the parameter vector do not change.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = _pool_relu(self.conv1(_padded(self.conv1, inputs)))
        hidden = _pool_relu(self.conv2(_padded(self.conv2, hidden)))
        hidden = _pool_relu(self.conv3(_padded(self.conv3, hidden)))
        logits: Tensor = self.linear(hidden.flatten(1))
        return logits


def _convolution(in_channels: int, out_channels: int, size: int) -> nn.Conv2d:
    """A 3x3 'same' convolution of maps of ``size``. It pads maps of even size; :func:`_padded` pads those of odd size."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1 if size % 2 == 0 else 0)


def _padded(convolution: nn.Conv2d, hidden: Tensor) -> Tensor:
    """The maps (B, C, H, W), with zeros above and to the left if the convolution does not pad.

    The pool drops the last row and column of an odd map, so they are not computed: of 28x28 images a quarter of the third layer's work.
    """
    return hidden if convolution.padding == (1, 1) else nn.functional.pad(hidden, (1, 0, 1, 0))


def _pool_relu(hidden: Tensor) -> Tensor:
    """2x2 max pool, then ReLU: equal to ReLU, then pool, with a quarter of the memory traffic."""
    return torch.relu(nn.functional.max_pool2d(hidden, 2))


def _check_at_least_one(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ProblemError("a network cannot be built", where=name, expected="at least 1", got=str(size))
