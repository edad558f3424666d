"""Kernel gradient descent towards the model's outputs (Eq. 8-9), with the importances summed over the steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genrep_dist.core.losses import Loss
from genrep_dist.core.solvers.checks import require, require_finite, require_form
from genrep_dist.core.solvers.dual_system import Matvec, apply_blocks
from genrep_dist.core.solvers.gauss_newton import square_root
from genrep_dist.core.solvers.power_iteration import largest_eigenvalue
from genrep_dist.errors import ConvergenceError

BatchMatvec = Callable[[Tensor, Tensor], Tensor]
"""(row numbers (B,), update (B, C)) -> K[:, rows] update (N, C) float64."""

_EPSILON = torch.finfo(torch.float64).eps
# The descent has diverged when the objective is this many times as high above its lowest value as at the start. The limit is wide before
# the last step: losses whose curvature falls off far from 0 often overshoot tenfold in their first steps and then settle.
_MAX_RISE = 1e6
_MAX_FINAL_RISE = 2.0
_POWER_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Stability:
    """How large the learning rates of the descent may be.

    ``largest_eigenvalue`` of S K S/n, S^2 = d2L/df2, at f = 0 or at the model's outputs, the larger one; by power iteration, so from below
    and to about 1%. A step over all samples with a rate above ``largest_stable_rate`` = 2/``largest_eigenvalue`` (inf if K is zero)
    overshoots there; batches allow no larger rate, and small ones often a smaller one. With the squared loss such a rate diverges. The
    logistic and softmax losses are curved most near f = 0, so a descent that leaves this region may still settle.
    ``products`` = products with K that this took.
    """

    largest_eigenvalue: float
    largest_stable_rate: float
    products: int


@dataclass(frozen=True)
class DescentCertificate:
    """The quality of a descent's alpha, with K alpha computed again at the end.

    ``objective`` = (1/n) sum_i L(K alpha(x_i), f(x_i)), Eq. 4 without its penalty; ``initial_objective`` the same at f = 0, and
    ``lowest_objective`` at the model's outputs, its minimum. ``remaining_derivative`` = ||dL(K alpha)/df|| divided by its value at f = 0;
    it is 0 if K alpha gives the model's predictions. ``efficiency_gap`` = max |f - K alpha| over training samples and outputs, in units of
    the output; with softmax it includes each sample's mean logit, which the loss does not depend on. ``largest_rate`` is the largest rate
    used, the next two are those of :class:`Stability`, and ``products`` counts all products with K, those of batches too.
    """

    steps: int
    initial_objective: float
    objective: float
    lowest_objective: float
    remaining_derivative: float
    efficiency_gap: float
    largest_rate: float
    largest_eigenvalue: float
    largest_stable_rate: float
    products: int


def kernel_descent(
    matvec: Matvec,
    loss: Loss,
    outputs: Tensor,
    *,
    rates: Sequence[float],
    batches: Sequence[Tensor] | None = None,
    batch_matvec: BatchMatvec | None = None,
) -> tuple[Tensor, Tensor, DescentCertificate]:
    """Alpha (N, C) and f = K alpha (N, C), both float64, after one step of kernel gradient descent for each rate, and the certificate.

    From f^(0) = 0, step t sets alpha_i -= eta_t/|B_t| dL(f^(t-1)(x_i), target_i)/df for i in B_t (Eq. 8, 9). So f^(T)(x) =
    sum_i alpha_i K(x_i, x) for every x: this is stochastic gradient descent on a linear model with K's features. The targets are the
    model's soft predictions, those of ``outputs`` (N, C) on the training samples.

    ``rates`` are the eta_t, one a step. ``batches`` are the B_t, one a step, each (B,) int64 row numbers; a row that occurs twice in a
    batch counts twice. Without ``batches`` every step takes all rows. ``batch_matvec`` is a product for batches, at B/N of the cost;
    without it a batch costs a whole product, and the result is the same to rounding.

    Cost: one product a step, one at the end of batches with ``batch_matvec``, and up to 200 for the stable rate. Memory: ten (N, C).
    Raises ConvergenceError with the rate, the largest eigenvalue and the largest stable rate if the rates are too large: the objective
    is NaN or Inf, or a million times as high above the lowest as at the start, or more than twice as high at the end.
    NonFiniteError if ``outputs`` or K hold NaN or Inf; MethodError for invalid arguments; ProblemError for products of the wrong form
    and a loss that is not convex.
    """
    _check_arguments(outputs, rates, batches)
    model_outputs = outputs.detach().to(torch.float64)
    num_rows = len(model_outputs)
    targets = loss.soft_targets(model_outputs)

    def objective_at(f: Tensor) -> float:
        return float(loss.value(f, targets).mean())

    alpha, f = torch.zeros_like(model_outputs), torch.zeros_like(model_outputs)
    initial, lowest = objective_at(f), objective_at(model_outputs)
    # If the model predicts what f = 0 predicts, the descent starts at the minimum and only rounding moves the objective.
    height, rounding = max(initial - lowest, 0.0), 64 * _EPSILON * abs(lowest)
    initial_derivative = float(loss.derivative(f, targets).norm())
    products, exact = 0, True
    for step, rate in enumerate(rates):
        derivative = loss.derivative(f, targets)
        if batches is None:
            alpha = alpha - rate / num_rows * derivative
        else:
            rows = batches[step].to(alpha.device)
            update = -rate / len(rows) * derivative[rows]
            alpha = alpha.index_add(0, rows, update)
        if batches is None or batch_matvec is None:
            f = _checked(matvec(alpha), alpha, "matvec")
        else:
            f = f + _checked(batch_matvec(rows, update), alpha, "batch_matvec")
            exact = False
        products += 1
        objective = objective_at(f)
        limit = _MAX_FINAL_RISE if step == len(rates) - 1 else _MAX_RISE
        # Negated, so that NaN is refused too.
        if not objective <= lowest + limit * height + rounding:
            raise _diverged(matvec, loss, model_outputs, step, rates, batches is not None, objective, initial)
    if not exact:
        f = _checked(matvec(alpha), alpha, "matvec")
        products += 1
    limits = stability(matvec, loss, model_outputs)
    remaining = float(loss.derivative(f, targets).norm())
    certificate = DescentCertificate(
        steps=len(rates),
        initial_objective=initial,
        objective=objective_at(f),
        lowest_objective=lowest,
        remaining_derivative=remaining / initial_derivative if initial_derivative > 0 else remaining,
        efficiency_gap=float((model_outputs - f).abs().max()),
        largest_rate=max(rates),
        largest_eigenvalue=limits.largest_eigenvalue,
        largest_stable_rate=limits.largest_stable_rate,
        products=products + limits.products,
    )
    return alpha, f, certificate


def stability(matvec: Matvec, loss: Loss, outputs: Tensor) -> Stability:
    """How large the rates of :func:`kernel_descent` may be, from the same ``matvec``, ``loss`` and ``outputs`` (N, C).

    Raises NonFiniteError if a product with K holds NaN or Inf, ProblemError for a product of the wrong form or a loss that is not convex.
    """
    model_outputs = require_finite(outputs.detach().to(torch.float64), "the model's outputs", "descent")
    targets = loss.soft_targets(model_outputs)
    curvatures = [loss.second_derivative(f, targets) for f in (torch.zeros_like(model_outputs), model_outputs)]
    if torch.equal(curvatures[0], curvatures[1]):
        del curvatures[1]
    results = [_curvature_eigenvalue(matvec, square_root(curvature)) for curvature in curvatures]
    eigenvalue = max(value for value, _ in results)
    return Stability(eigenvalue, 2 / eigenvalue if eigenvalue > 0 else math.inf, sum(count for _, count in results))


def _curvature_eigenvalue(matvec: Matvec, root: Tensor) -> tuple[float, int]:
    """The largest eigenvalue of S K S/n for S = ``root`` (N, C, C), and the number of products with K."""
    # A random start has a component in every direction; a fixed one, such as all ones, may be orthogonal to the eigenvector.
    start = torch.randn(root.shape[:2], generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(root.device)

    def weighted(vector: Tensor) -> Tensor:
        product = _checked(matvec(apply_blocks(root, vector)), vector, "matvec")
        return apply_blocks(root, require_finite(product, "products with K", "descent")) / len(root)

    return largest_eigenvalue(weighted, start, tolerance=_POWER_TOLERANCE)


def _diverged(
    matvec: Matvec, loss: Loss, outputs: Tensor, step: int, rates: Sequence[float], in_batches: bool, objective: float, initial: float
) -> ConvergenceError:
    """The error with its numbers. If K holds NaN or Inf, :func:`stability` raises that error instead."""
    limits = stability(matvec, loss, outputs)
    largest = max(rates[: step + 1])
    if largest > limits.largest_stable_rate:
        remedy = "lower the learning rates"
    elif in_batches:
        remedy = "use larger batches, or lower the learning rates further"
    else:
        remedy = "this rate should be stable: lower the learning rates further, or check that K is positive semi-definite"
    return ConvergenceError(
        "kernel gradient descent diverges",
        where=f"descent, step {step + 1} of {len(rates)}, loss {loss.name}, {outputs.shape[0]} samples, {outputs.shape[1]} outputs",
        expected=f"an objective that falls, as it does for learning rates up to {limits.largest_stable_rate:.3g} = "
        f"2/{limits.largest_eigenvalue:.3g}, the largest eigenvalue of K times the loss's curvature / n"
        + (", or less where batches are small" if in_batches else ""),
        got=f"learning rates up to {largest:.3g}; the objective rose from {initial:.3g} to {objective:.3g}",
        remedy=remedy,
    )


def _checked(product: Tensor, like: Tensor, where: str) -> Tensor:
    return require_form(product, like.shape, "the product with the gram matrix", where)


def _check_arguments(outputs: Tensor, rates: Sequence[float], batches: Sequence[Tensor] | None) -> None:
    checks: list[tuple[str, bool, str, object]] = [
        ("outputs", outputs.dim() == 2 and outputs.numel() > 0, "a tensor (N, C), not empty", tuple(outputs.shape)),
        ("rates", len(rates) > 0, "at least one step", len(rates)),
        *((f"rates[{t}]", math.isfinite(rate) and rate >= 0, "a finite number, 0 or more", rate) for t, rate in enumerate(rates)),
    ]
    if batches is not None:
        checks.append(("batches", len(batches) == len(rates), f"one a step, so {len(rates)}", len(batches)))
        for t, rows in enumerate(batches):
            valid = rows.dim() == 1 and rows.dtype == torch.int64 and len(rows) > 0
            checks.append((f"batches[{t}]", valid, "row numbers (B,) int64, B of 1 or more", f"{rows.dtype} {tuple(rows.shape)}"))
            if valid:
                low, high = int(rows.min()), int(rows.max())
                checks.append((f"batches[{t}]", low >= 0 and high < len(outputs), f"rows 0 to {len(outputs) - 1}", f"{low} to {high}"))
    require("descent", checks)
    require_finite(outputs, "the model's outputs", "descent")
