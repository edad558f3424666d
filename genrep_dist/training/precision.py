"""Lower precision of the products of training, by declared choice. Parameters, updates, losses and everything explained keep theirs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from genrep_dist.core.gradients.model import model_outputs
from genrep_dist.problems.protocol import Recipe


def training_outputs(model: nn.Module, inputs: Tensor, recipe: Recipe, num_rows: int | None = None) -> Tensor:
    """Outputs (B, C) of a training step, in the parameters' dtype; ``num_rows`` of them if they are more than the ``inputs``.

    With "bfloat16" they are computed under torch's autocast: products, their results and the gradients in the backward pass have 8 bits
    of significand, and so have the outputs. Only float32 is rounded; float64 models keep their precision.
    """
    if recipe.precision != "bfloat16":
        return model_outputs(model, inputs, num_rows)
    with torch.autocast(inputs.device.type, torch.bfloat16):
        outputs = model_outputs(model, inputs, num_rows)
    return outputs.float() if outputs.dtype == torch.bfloat16 else outputs


@contextmanager
def tf32(recipe: Recipe) -> Iterator[None]:
    """Inside, a GPU may round the factors of float32 products to TF32 if the recipe says "tf32"; outside, the settings are as before.

    It covers the forward and backward pass of a step. What is computed between steps is computed in full precision.
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


def full_precision_products() -> None:
    """Let GPUs compute float32 products in float32 in this process: torch's default rounds the factors of convolutions to TF32."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
