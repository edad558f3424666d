"""Lower precision of a training's products, by declared choice. Parameters, updates, losses and all that is explained stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from genrep_dist.core.gradients.model import model_outputs
from genrep_dist.problems.protocol import Recipe


def training_outputs(model: nn.Module, inputs: Tensor, recipe: Recipe) -> Tensor:
    """Outputs (B, C) of a training step, in the parameters' dtype.

    With "bfloat16" they come from torch's autocast: products, what they give, and the gradients on the way back have 8 bits of significand,
    the outputs themselves included. Float64 models keep their precision: only float32 is rounded.
    """
    if recipe.precision != "bfloat16":
        return model_outputs(model, inputs)
    with torch.autocast(inputs.device.type, torch.bfloat16):
        found = model_outputs(model, inputs)
    return found.float() if found.dtype == torch.bfloat16 else found


@contextmanager
def tf32(recipe: Recipe) -> Iterator[None]:
    """Inside, a GPU may round the factors of float32 products to TF32 if the recipe says "tf32"; outside, all is as before.

    It is for a step's way there and back: what is looked at between steps is computed in full.
    """
    if recipe.precision != "tf32":
        yield
        return
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    convolutions.allow_tf32 = products.allow_tf32 = True
    try:
        yield
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before
