"""Curvature of the training loss: per-sample square roots, and the influence kernel by the exact generalized Gauss-Newton (Eq. 15)."""

from __future__ import annotations

import torch
from torch import Tensor

from genrep_dist.errors import ProblemError


def square_root(curvature: Tensor) -> Tensor:
    """S (N, C, C), symmetric positive semi-definite with S @ S = ``curvature`` (N, C, C) per sample, in its dtype.

    Raises ProblemError where a matrix has an eigenvalue below zero by more than rounding: the loss is not convex in the outputs there.
    """
    if curvature.dim() != 3 or curvature.shape[1] != curvature.shape[2]:
        raise ProblemError("curvature has the wrong form", where="square_root", expected="(N, C, C)", got=f"{tuple(curvature.shape)}")
    if curvature.shape[1] == 1:
        values, vectors = curvature[:, :, 0], torch.ones_like(curvature)
    else:
        values, vectors = torch.linalg.eigh(curvature)
    slack = 64 * torch.finfo(curvature.dtype).eps * values.abs().amax(dim=1, keepdim=True)
    # Written so that NaN is refused too.
    bad = ~(values >= -slack).all(dim=1)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise ProblemError(
            "the loss is not convex in the model's outputs",
            where=f"second derivative of row {row}",
            expected="a positive semi-definite matrix",
            got=f"smallest eigenvalue {values[row].min().item():.3g}",
            remedy="use a convex loss: squared, logistic or softmax",
        )
    roots = values.clamp(min=0).sqrt()
    return (vectors * roots.unsqueeze(1)) @ vectors.transpose(1, 2)
