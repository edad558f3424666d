"""Tracking exactly as in Eq. 8-9: kernel gradient descent towards the model, importances added up step by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genrep_dist.core.losses import Loss
from genrep_dist.core.solvers.dual_system import Matvec, apply_blocks
from genrep_dist.core.solvers.gauss_newton import square_root
from genrep_dist.errors import ConvergenceError, MethodError, NonFiniteError, ProblemError

Columns = Callable[[Tensor, Tensor], Tensor]

_EPSILON = torch.finfo(torch.float64).eps
# Above the lowest objective, in units of how high it started there. Losses whose curvature falls off far from 0 often overshoot tenfold
# and more in their first steps and then settle well below where they started, so on the way only what is hopeless is cut short.
_HOPELESS = 1e6
_WORSE_AT_THE_END = 2.0
_MAX_POWER_STEPS = 100
_POWER_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Stability:
    """How large the steps of the descent may be.

    ``largest_eigenvalue`` of S K S/n, S^2 = d2L/df2, at f = 0 or at the model's outputs, whichever is larger. With a rate above
    ``largest_stable_rate`` = 2/``largest_eigenvalue`` (inf where K is zero) a step over all samples overshoots there; batches bear no
    larger rate, small ones often a smaller one. With the squared loss such a rate diverges. With the logistic and the softmax loss it
    need not: they are curved most near f = 0, and a descent that is thrown out of there may still settle.
    By power iteration, hence from below, to about 1%. ``products`` = products with K that this took.
    """

    largest_eigenvalue: float
    largest_stable_rate: float
    products: int


@dataclass(frozen=True)
class DescentCertificate:
    """What a descent's alpha is worth, with K alpha computed afresh at the end.

    ``objective`` = (1/n) sum_i L(K alpha(x_i), f(x_i)), Eq. 4 without its penalty; ``initial_objective`` the same at f = 0 and
    ``lowest_objective`` at the model's own outputs, below which none lies. ``remaining_derivative`` = ||dL(K alpha)/df|| in units of its
    value at f = 0: 0 where K alpha makes the model's predictions. ``efficiency_gap`` = max |f - K alpha| over the training samples and
    outputs, in units of the output (with softmax it includes each sample's mean logit, which the loss cannot see).
    ``largest_rate`` is the largest of the rates used; the next two are those of :class:`Stability`. ``products`` counts all products
    with K, those of batches too.
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
    columns: Columns | None = None,
) -> tuple[Tensor, Tensor, DescentCertificate]:
    """Alpha (N, C) and f = K alpha (N, C), both float64, after one step of kernel gradient descent for each rate, and the certificate.

    From f^(0) = 0, step t takes alpha_i -= eta_t/|B_t| dL(f^(t-1)(x_i), target_i)/df for i in B_t (Eq. 8, 9), so that
    f^(T)(x) = sum_i alpha_i K(x_i, x) everywhere: stochastic gradient descent on the parameters of a linear model with K's features.
    Targets are the model's soft predictions, those of ``outputs`` (N, C) on the training samples.

    ``matvec`` takes a float64 (N, C) and returns K alpha, float64 (N, C), K symmetric positive semi-definite, from a tensor, from tiles
    or from features. ``rates`` are the eta_t, one a step, so any schedule. ``batches`` are the B_t, one a step, each (B,) int64 row
    numbers; without them every step takes all rows. A row that occurs twice in a batch counts twice.
    ``columns``, which serves batches only, is a cheaper product: (rows (B,), update (B, C)) -> K[:, rows] update, (N, C) float64, at
    B/N of the cost. Without it a batch costs a whole product, and the answer is the same to rounding.

    Cost: one product a step, one at the end of batches with ``columns``, and up to 200 for the stable rate. Memory: some ten (N, C).
    Raises ConvergenceError with the rate, the largest eigenvalue and the largest stable rate when the rates are too large: the objective
    becomes NaN or Inf, or rises a million times as high above the lowest as it started, or ends more than twice as high.
    NonFiniteError when ``outputs`` or K hold NaN or Inf; MethodError for impossible arguments; ProblemError for products of the wrong
    form and a loss that is not convex.
    """
    _check_arguments(outputs, rates, batches)
    model_outputs = outputs.detach().to(torch.float64)
    num_rows = len(model_outputs)
    targets = loss.soft_targets(model_outputs)

    def objective_at(f: Tensor) -> float:
        return float(loss.value(f, targets).mean())

    alpha, f = torch.zeros_like(model_outputs), torch.zeros_like(model_outputs)
    initial, lowest = objective_at(f), objective_at(model_outputs)
    # A model whose predictions are those of f = 0 starts at the minimum, where only rounding moves the objective.
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
        if batches is None or columns is None:
            f = _formed(matvec(alpha), alpha, "matvec")
        else:
            f = f + _formed(columns(rows, update), alpha, "columns")
            exact = False
        products += 1
        objective = objective_at(f)
        last = step == len(rates) - 1
        # Written so that NaN is refused too.
        if not objective <= lowest + (_WORSE_AT_THE_END if last else _HOPELESS) * height + rounding:
            raise _diverged(matvec, loss, model_outputs, step, rates, batches is not None, objective, initial)
    if not exact:
        f = _formed(matvec(alpha), alpha, "matvec")
        products += 1
    limits = stability(matvec, loss, model_outputs)
    remaining = float(loss.derivative(f, targets).norm())
    return (
        alpha,
        f,
        DescentCertificate(
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
        ),
    )


def stability(matvec: Matvec, loss: Loss, outputs: Tensor) -> Stability:
    """How large the rates of :func:`kernel_descent` may be, before it is run; the same ``matvec``, ``loss`` and ``outputs`` (N, C).

    Raises NonFiniteError when K times some vector holds NaN or Inf, ProblemError for a product of the wrong form or a concave loss.
    """
    model_outputs = outputs.detach().to(torch.float64)
    _require_finite(model_outputs, "the model's outputs")
    targets = loss.soft_targets(model_outputs)
    curvatures = [loss.second_derivative(f, targets) for f in (torch.zeros_like(model_outputs), model_outputs)]
    if torch.equal(curvatures[0], curvatures[1]):
        del curvatures[1]
    results = [_largest_eigenvalue(matvec, square_root(curvature)) for curvature in curvatures]
    eigenvalue = max(value for value, _ in results)
    return Stability(eigenvalue, 2 / eigenvalue if eigenvalue > 0 else math.inf, sum(count for _, count in results))


def _largest_eigenvalue(matvec: Matvec, root: Tensor) -> tuple[float, int]:
    """The largest eigenvalue of S K S/n for S = ``root`` (N, C, C), and how many products with K it took."""
    # A random start has a part in every direction; a fixed one, such as all ones, may be orthogonal to the one that is sought.
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(root.shape[:2], generator=generator, dtype=torch.float64).to(root.device)
    vector = vector / vector.norm()
    estimate = 0.0
    for step in range(_MAX_POWER_STEPS):
        product = _formed(matvec(apply_blocks(root, vector)), vector, "matvec")
        _require_finite(product, "products with K")
        image = apply_blocks(root, product) / len(root)
        previous, estimate = estimate, float(image.norm())
        if estimate == 0 or abs(estimate - previous) <= _POWER_TOLERANCE * estimate:
            return estimate, step + 1
        vector = image / estimate
    return estimate, _MAX_POWER_STEPS


def _diverged(
    matvec: Matvec, loss: Loss, outputs: Tensor, step: int, rates: Sequence[float], in_batches: bool, objective: float, initial: float
) -> ConvergenceError:
    """The error with its numbers. Where K itself holds NaN or Inf, asking for them raises that error instead."""
    limits = stability(matvec, loss, outputs)
    largest = max(rates[: step + 1])
    below = largest <= limits.largest_stable_rate
    if below and not in_batches:
        remedy = "that should have been stable: lower the learning rates further, or see whether K is positive semi-definite"
    elif below:
        remedy = "take larger batches, or lower the learning rates further"
    else:
        remedy = "lower the learning rates"
    return ConvergenceError(
        "kernel gradient descent diverges",
        where=f"descent, step {step + 1} of {len(rates)}, loss {loss.name}, {outputs.shape[0]} samples, {outputs.shape[1]} outputs",
        expected=f"an objective that falls; it surely does up to a learning rate of {limits.largest_stable_rate:.3g} = "
        f"2/{limits.largest_eigenvalue:.3g}, the largest eigenvalue of K times the loss's curvature / n"
        + (", or less where batches are small" if in_batches else ""),
        got=f"learning rates up to {largest:.3g}; the objective, {initial:.3g} at first, is {objective:.3g}",
        remedy=remedy,
    )


def _formed(product: Tensor, like: Tensor, where: str) -> Tensor:
    if product.shape != like.shape or product.dtype != torch.float64:
        raise ProblemError(
            "the product with the gram matrix has the wrong form",
            where=where,
            expected=f"float64 of shape {tuple(like.shape)}",
            got=f"{product.dtype} of shape {tuple(product.shape)}",
        )
    return product


def _require_finite(values: Tensor, name: str) -> None:
    finite = torch.isfinite(values).all(dim=1)
    if not bool(finite.all()):
        rows = (~finite).nonzero().flatten().tolist()
        raise NonFiniteError(
            f"{name} hold NaN or Inf", where="descent", expected="finite numbers", got=f"{len(rows)} training rows, the first: {rows[:10]}"
        )


def _check_arguments(outputs: Tensor, rates: Sequence[float], batches: Sequence[Tensor] | None) -> None:
    checks: list[tuple[str, bool, str, object]] = [
        ("outputs", outputs.dim() == 2 and outputs.numel() > 0, "a tensor (N, C), not empty", tuple(outputs.shape)),
        ("rates", len(rates) > 0, "at least one step", len(rates)),
        *((f"rates[{t}]", math.isfinite(rate) and rate >= 0, "a finite number, 0 or more", rate) for t, rate in enumerate(rates)),
    ]
    if batches is not None:
        checks.append(("batches", len(batches) == len(rates), f"one a step, so {len(rates)}", len(batches)))
        for t, rows in enumerate(batches):
            fine = rows.dim() == 1 and rows.dtype == torch.int64 and len(rows) > 0
            checks.append((f"batches[{t}]", fine, "row numbers (B,) int64, B of 1 or more", f"{rows.dtype} {tuple(rows.shape)}"))
            if fine:
                low, high = int(rows.min()), int(rows.max())
                checks.append((f"batches[{t}]", low >= 0 and high < len(outputs), f"rows 0 to {len(outputs) - 1}", f"{low} to {high}"))
    for name, fine, expected, got in checks:
        if not fine:
            raise MethodError("the descent cannot be run so", where=f"descent {name}", expected=expected, got=str(got))
    _require_finite(outputs, "the model's outputs")
