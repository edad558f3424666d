"""Samples as small PNG images."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.image import imsave
from torch import Tensor

LARGEST_SIDE = 64
"""Pixels; larger images are downsampled to keep the report small."""


@dataclass(frozen=True)
class PixelRange:
    """Smallest and largest value of each channel over a dataset, ``low`` and ``high`` (C, 1, 1); they are drawn black and white."""

    low: Tensor
    high: Tensor

    @classmethod
    def from_images(cls, inputs: Tensor) -> PixelRange:
        """The range of images (N, C, H, W) or (N, H, W)."""
        channels = _with_channels(inputs)
        return cls(channels.amin(dim=(0, 2, 3))[:, None, None], channels.amax(dim=(0, 2, 3))[:, None, None])


def are_images(inputs: Tensor) -> bool:
    """Whether inputs have the form of images: floating, (N, H, W), or (N, C, H, W) with one channel or three."""
    return inputs.is_floating_point() and (inputs.dim() == 3 or (inputs.dim() == 4 and inputs.shape[1] in (1, 3)))


def png(image: Tensor, bounds: PixelRange) -> bytes:
    """One image, (H, W) or (C, H, W), as PNG. Equal images give equal bytes."""
    pixels = _with_channels(image[None])[0].to(torch.float64)
    if max(pixels.shape[1:]) > LARGEST_SIDE:
        shrink = LARGEST_SIDE / max(pixels.shape[1:])
        height, width = (max(1, round(side * shrink)) for side in pixels.shape[1:])
        pixels = torch.nn.functional.adaptive_avg_pool2d(pixels, (height, width))
    contrast = (bounds.high - bounds.low).to(torch.float64)
    # A constant channel has no contrast, and a test image may exceed the range of the training images.
    shade = ((pixels - bounds.low) / torch.where(contrast > 0, contrast, 1.0)).clamp(0, 1)
    colours = (255 * shade).round().to(torch.uint8).expand(3, -1, -1).permute(1, 2, 0)
    buffer = io.BytesIO()
    metadata: Any = {"Software": None}  # otherwise the bytes would change with matplotlib's version
    imsave(buffer, colours.contiguous().numpy(), format="png", metadata=metadata)
    return buffer.getvalue()


def _with_channels(inputs: Tensor) -> Tensor:
    return inputs[:, None] if inputs.dim() == 3 else inputs
