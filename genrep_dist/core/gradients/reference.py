"""The slow reference of per-sample gradients: one backward pass for each sample and output."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genrep_dist.core.gradients.autograd import copies_needed, output_gradients, single_outputs
from genrep_dist.core.gradients.model import trainable_parameters


def one_by_one(model: nn.Module, sample: Tensor, output: int | None = None) -> Tensor:
    """The gradients of one sample's outputs (C, P), or of one ``output`` (P,), by one backward pass for each."""
    names = tuple(trainable_parameters(model))
    with torch.enable_grad():
        values = single_outputs(model, sample, copies_needed(model, sample))
    chosen = values if output is None else values[output : output + 1]
    rows = [torch.cat([gradient.reshape(-1) for gradient in output_gradients(model, value, names)]) for value in chosen]
    return torch.stack(rows) if output is None else rows[0]
