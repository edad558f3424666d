"""Self-influence phi(x_i -> x_i): how much a training sample raises the logit of its own label, which is Eq. 2 at x = x_i.

No other samples support a wrong label, so a large self-influence is suspicious (Koh and Liang 2017; Pruthi et al. 2020, "Estimating
Training Data Influence by Tracing Gradient Descent").
"""

from __future__ import annotations

import torch
from torch import Tensor

from genrep_dist.core.attribution import attribute
from genrep_dist.core.solvers.gauss_newton import influence_kernel
from genrep_dist.errors import ProblemError


def own_outputs(targets: Tensor, loss_name: str) -> tuple[Tensor, Tensor]:
    """The output of each sample's own label, int64 (N,), and its direction, float64 (N,): -1 where a larger output means another label.

    Loss "logistic" (targets (N,) or (N, 1), 0 or 1): output 0, direction +1 for label 1 and -1 for label 0. Loss "softmax" (integer targets
    (N,)): the label's output, direction +1. Raises ProblemError for other losses and targets, which have no labels.
    """
    if loss_name == "logistic" and bool(((targets == 0) | (targets == 1)).all()):
        return torch.zeros(len(targets), dtype=torch.int64), 2 * targets.reshape(len(targets)).double() - 1
    if loss_name == "softmax" and targets.dim() == 1 and not targets.is_floating_point():
        return targets.long(), torch.ones(len(targets), dtype=torch.float64)
    raise ProblemError(
        "self-influence needs samples with labels",
        where="own_outputs",
        expected="the loss 'logistic' with targets 0 and 1, or 'softmax' with integer class numbers",
        got=f"loss {loss_name!r}, targets {targets.dtype} {tuple(targets.shape)}",
    )


def scalar_diagonal(values: Tensor, own: Tensor, num_outputs: int) -> Tensor:
    """K (B, C) of a scalar kernel k that is the same for all outputs: ``values`` (B,) = k(x_b, x_b) where c = ``own[b]``, 0 elsewhere."""
    _check_own(own, len(values), num_outputs, "scalar_diagonal")
    diagonal = values.new_zeros(len(values), num_outputs)
    diagonal[torch.arange(len(own), device=own.device), own] = values
    return diagonal


def influence_diagonal(
    gram: Tensor,
    curvature: Tensor,
    own: Tensor,
    *,
    damping: float,
    relative: bool,
    num_parameters: int,
    tolerance: float = 1e-8,
    cross: Tensor | None = None,
) -> Tensor:
    """K_inf (N, C) float64, K_inf[i, c] = <df_c(x_i), (H + delta I)^-1 df_own(x_i)> with the Gauss-Newton H.

    The diagonal of :func:`influence_kernel` with the training samples as test points, each with output ``own[i]``. ``gram`` (NC, NC),
    ``curvature`` (N, C, C), the damping and the errors are those of :func:`influence_kernel`. One Cholesky factorisation. Memory: that of
    the kernel for N test points. ``cross`` (N, C, M): test points that are solved for in the same products, before the training samples;
    the last bits depend on them.
    """
    n, num_outputs = curvature.shape[:2]
    _check_own(own, n, num_outputs, "influence_diagonal")
    samples = torch.arange(n, device=own.device)
    columns = gram[:, samples * num_outputs + own].reshape(n, num_outputs, n)
    if cross is not None:
        columns = torch.cat([cross.to(columns.dtype), columns], dim=2)
    kernel, _ = influence_kernel(
        gram, columns, curvature, damping=damping, relative=relative, num_parameters=num_parameters, tolerance=tolerance
    )
    return kernel[samples, :, columns.shape[2] - n + samples]


def self_influence(alpha: Tensor, diagonal: Tensor, direction: Tensor) -> Tensor:
    """Phi(x_i -> x_i) (N,) float64 = direction[i] sum_c alpha[i, c] diagonal[i, c] (Eq. 2), for (N, C), (N, C) and (N,)."""
    if direction.shape != alpha.shape[:1]:
        expected, got = f"({alpha.shape[0]},)", f"{tuple(direction.shape)}"
        raise ProblemError("directions do not fit the importances", where="self_influence", expected=expected, got=got)
    return direction.double() * attribute(alpha.double(), diagonal.double().unsqueeze(2))[:, 0]


def _check_own(own: Tensor, rows: int, num_outputs: int, where: str) -> None:
    inside = bool(((own >= 0) & (own < num_outputs)).all())
    if own.shape != (rows,) or own.dtype != torch.int64 or not inside:
        raise ProblemError(
            "own outputs do not fit the samples",
            where=where,
            expected=f"int64 ({rows},) from 0 to {num_outputs - 1}",
            got=f"{own.dtype} {tuple(own.shape)}" + ("" if inside else f" from {int(own.min())} to {int(own.max())}"),
        )
