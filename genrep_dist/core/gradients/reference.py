"""The slow reference of per-sample gradients: one backward pass for each sample and output."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genrep_dist.core.gradients.model import model_outputs, trainable_parameters


def one_by_one(model: nn.Module, sample: Tensor, output: int | None = None) -> Tensor:
    """The gradients of one sample's outputs (C, P), or of one ``output`` (P,), by one backward pass for each."""
    parameters = list(trainable_parameters(model).values())
    values = model_outputs(model, sample[None])[0]
    rows = []
    for value in values if output is None else values[output : output + 1]:
        gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)]
        rows.append(torch.cat([part.detach().reshape(-1) for part in parts]))
    return torch.stack(rows) if output is None else rows[0]
