"""The surrogate derivative: the model projected onto the span of a kernel, with a certificate (Eq. 4-6, Proposition 8)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from genrep_dist.core.losses import Loss
from genrep_dist.core.solvers.dual_system import Columns, DualSystem, Matvec, apply_blocks, require_finite
from genrep_dist.core.solvers.gauss_newton import square_root
from genrep_dist.errors import ConvergenceError, MethodError

_EPSILON = torch.finfo(torch.float64).eps
_MAX_HALVINGS = 40
_SUFFICIENT_DECREASE = 1e-4


@dataclass(frozen=True)
class Certificate:
    """What a surrogate's alpha is worth, with K alpha computed afresh at the end.

    ``residual`` = ||alpha + dL(K alpha)/(n lam)|| / ||alpha||, zero where alpha = 0 is exact to rounding (Proposition 8);
    ``objective`` = the value of Eq. 5, at most ``duality_gap`` above its minimum;
    ``efficiency_gap`` = max |f - K alpha| over the training samples and outputs, in units of the output (with softmax it includes
    each sample's mean logit, which the loss cannot see);
    ``iterations`` = Newton steps; ``matvecs`` = products with K, and one more for the columns of the preconditioner; ``converged`` =
    residual within ``tolerance``.
    """

    lam: float
    iterations: int
    matvecs: int
    residual: float
    objective: float
    duality_gap: float
    efficiency_gap: float
    tolerance: float
    converged: bool


def solve_surrogate(
    matvec: Matvec,
    loss: Loss,
    outputs: Tensor,
    *,
    lam: float,
    tolerance: float = 1e-6,
    max_iterations: int = 50,
    allow_unconverged: bool = False,
    columns: Columns | None = None,
) -> tuple[Tensor, Certificate]:
    """The surrogate derivative alpha* (N, C) float64 with its certificate: of Eq. 5's minimisers the one that Eq. 6 gives (Proposition 8).

    ``matvec`` takes a float64 (N, C) and returns K alpha, float64 (N, C), K symmetric positive semi-definite; ``outputs`` (N, C) are the
    model's on the training samples, whose soft predictions are the surrogate's targets; ``lam`` is Eq. 4's lambda. ``columns`` gives
    K[:, rows] (N C, r) for some of the N C rows: asked for once, it makes a preconditioner that spares most products.

    Newton's method on g/n + lam alpha = 0, g = dL(K alpha)/df. With W = d2L/df2 = S S a step is
    delta = -(1/lam)(r - S (lam I + S K S/n)^-1 S K r/n), whose inner system is symmetric and positive definite whatever K's rank is;
    conjugate gradients solve it only as far as the step deserves, and a line search on the convex objective guards it. The first step
    is Newton's from the model's own outputs. Memory besides what ``matvec`` holds: at most some 300 tensors (N, C), 2.4 kB for each row
    and output, three (N, C, C), and 128 MiB for the landmarks of ``columns``.

    Raises ConvergenceError, with the numbers, when ``tolerance`` on the residual is not reached, unless ``allow_unconverged``;
    MethodError for impossible arguments; NonFiniteError when ``outputs`` or K alpha hold NaN or Inf.
    """
    _check_arguments(outputs, lam, tolerance, max_iterations)
    solver = _Newton(matvec, loss, outputs.detach().to(torch.float64), lam, tolerance, columns)
    if not solver.reached():
        solver.start()
    while solver.iterations < max_iterations and not solver.reached() and solver.step():
        pass
    certificate = solver.certificate()
    if not certificate.converged and not allow_unconverged:
        raise ConvergenceError(
            "the surrogate's solver did not reach its tolerance",
            where=f"surrogate, loss {loss.name}, lambda {lam:g}, {outputs.shape[0]} samples, {outputs.shape[1]} outputs",
            expected=f"residual <= {tolerance:g} within {max_iterations} iterations",
            got=f"residual {certificate.residual:.3g} after {certificate.iterations} iterations and {certificate.matvecs} products with K"
            + (f"; {solver.obstacle}" if solver.obstacle else ""),
            remedy="raise lambda, the tolerance or max_iterations, compute the gram more precisely, or ask for the unconverged answer",
        )
    return solver.alpha, certificate


class _Newton:
    """The state of the iteration: alpha, f = K alpha, and what follows from them."""

    def __init__(self, matvec: Matvec, loss: Loss, model_outputs: Tensor, lam: float, tolerance: float, columns: Columns | None) -> None:
        self._dual = DualSystem(matvec, model_outputs.shape, lam, columns)
        self._loss = loss
        self._model_outputs = model_outputs
        self._targets = loss.soft_targets(model_outputs)
        self._n = model_outputs.shape[0]
        self._lam = lam
        self._tolerance = tolerance
        self._forcing = 0.1
        # f is updated beside alpha, which costs no product but gathers rounding; it is exact when computed from alpha itself.
        self._exact = True
        self.iterations = 0
        self._stalled = ""
        self._move(torch.zeros_like(model_outputs), torch.zeros_like(model_outputs))

    def _move(self, alpha: Tensor, f: Tensor) -> None:
        self.alpha = alpha
        self._f = f
        self._derivative = self._loss.derivative(f, self._targets)
        self._residual = self._derivative / self._n + self._lam * alpha
        self._norm = float(self._residual.norm())
        self._objective = float(self._loss.value(f, self._targets).mean() + 0.5 * self._lam * (alpha * f).sum())

    @property
    def relative_residual(self) -> float:
        size = self._lam * float(self.alpha.norm())
        if size > 0:
            return self._norm / size
        # At alpha = 0 the derivative is a difference of predictions, zero to rounding when the model's own are those of f = 0.
        return 0.0 if self._n * self._norm <= 8 * _EPSILON * float(self._targets.norm()) else math.inf

    def reached(self) -> bool:
        """Whether the residual is within the tolerance; what looks so is judged again with K alpha computed afresh."""
        if self.relative_residual <= self._tolerance and not self._exact:
            self._refresh()
        return self.relative_residual <= self._tolerance

    @property
    def obstacle(self) -> str:
        """What stands in the way of convergence, as far as it was seen."""
        return self._dual.obstacle or self._stalled

    def _refresh(self) -> None:
        self._exact = True
        self._move(self.alpha, self._dual.product(self.alpha))

    def start(self) -> None:
        """Begin where Newton's step from the model's own outputs leads, if that is better than alpha = 0.

        Those need not be K alpha for any alpha; but there the loss is at its minimum, so the step is ridge regression of them, weighted
        by the curvature, and with a small lambda the surrogate is near.
        """
        root = square_root(self._loss.second_derivative(self._model_outputs, self._targets))
        right = apply_blocks(root, self._model_outputs) / self._n
        alpha, f = self._dual.solve(root, right, 0.1 * float(apply_blocks(root, right).norm()))
        objective = self._objective
        self._move(alpha, f)
        self._exact = False
        self.iterations += 1
        if not self._objective < objective:
            self._move(torch.zeros_like(alpha), torch.zeros_like(f))
            self._exact = True

    def step(self) -> bool:
        """One Newton step; False when no further progress can be made, with the reason in ``obstacle``."""
        lam, n = self._lam, self._n
        root = square_root(self._loss.second_derivative(self._f, self._targets))
        # The Newton system's residual is S (A z - b)/lam, A and b those of the dual system.
        k_residual = self._dual.product(self._derivative) / n + lam * self._f
        goal = max(self._forcing * self._norm, 0.3 * self._tolerance * lam * float(self.alpha.norm()))
        inner, k_inner = self._dual.solve(root, apply_blocks(root, k_residual) / n, lam * goal)
        delta = -(self._residual - inner) / lam
        k_delta = -(k_residual - k_inner) / lam
        slope = float((k_residual * delta).sum())

        alpha, f, objective, norm = self.alpha, self._f, self._objective, self._norm
        # What an error of one rounding in f makes of the objective, whose terms may be much larger than it is.
        rounding = 64 * _EPSILON * float((self._derivative * f).abs().sum() / n + lam * (alpha * f).abs().sum() + abs(objective))
        size = 1.0
        for _ in range(_MAX_HALVINGS):
            self._move(alpha + size * delta, f + size * k_delta)
            decreased = self._objective <= objective + _SUFFICIENT_DECREASE * size * slope
            # Near the solution, and along null(K), the objective no longer tells steps apart; the residual still does.
            if decreased or (self._objective <= objective + rounding and self._norm < norm):
                break
            size /= 2
        else:
            self._move(alpha, f)
            if self._exact:
                self._stalled = "no step along Newton's direction improves the objective or the residual"
                return False
            self._refresh()
            return True
        self._exact = False
        self.iterations += 1
        # k_delta is a difference of terms 1/lam times larger. Where that rounding is visible in the residual, one product removes it.
        drift = _EPSILON * float(k_residual.norm()) / lam * float(root.abs().max()) ** 2 / n
        if drift > 0.01 * self._norm:
            self._refresh()
        # How much the next inner system deserves: quadratic convergence outside without solving more inside than needed.
        self._forcing = min(0.1, 0.5 * (self._norm / norm) ** 2) if norm > 0 else 0.1
        return True

    def certificate(self) -> Certificate:
        if not self._exact:
            self._refresh()
        residual = self.relative_residual
        # With beta = -dL/(n lam), Fenchel's equality L*(dL) = f dL - L(f) turns primal minus dual into lam/2 |alpha - beta|^2 in K's norm.
        gap = float((self._residual * self._dual.product(self._residual)).sum()) / (2 * self._lam)
        return Certificate(
            lam=self._lam,
            iterations=self.iterations,
            matvecs=self._dual.matvecs,
            residual=residual,
            objective=self._objective,
            duality_gap=max(gap, 0.0),
            efficiency_gap=float((self._model_outputs - self._f).abs().max()),
            tolerance=self._tolerance,
            converged=residual <= self._tolerance,
        )


def _check_arguments(outputs: Tensor, lam: float, tolerance: float, max_iterations: int) -> None:
    checks: list[tuple[str, bool, str, object]] = [
        ("outputs", outputs.dim() == 2 and outputs.numel() > 0, "a tensor (N, C), not empty", tuple(outputs.shape)),
        ("lam", math.isfinite(lam) and lam > 0, "a finite number above 0", lam),
        ("tolerance", math.isfinite(tolerance) and tolerance > 0, "a finite number above 0", tolerance),
        ("max_iterations", max_iterations >= 1, "at least 1", max_iterations),
    ]
    for name, fine, expected, got in checks:
        if not fine:
            raise MethodError("the surrogate cannot be solved for so", where=f"surrogate {name}", expected=expected, got=repr(got))
    require_finite(outputs, "the model's outputs")
