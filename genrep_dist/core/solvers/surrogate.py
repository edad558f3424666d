"""The surrogate derivative: the model projected onto the span of a kernel by Newton-CG, with a certificate (Eq. 4-6, Proposition 8)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from genrep_dist.core.losses import Loss
from genrep_dist.core.solvers.checks import require, require_finite
from genrep_dist.core.solvers.dual_system import DualSystem, GramColumns, Matvec, apply_blocks
from genrep_dist.core.solvers.gauss_newton import square_root
from genrep_dist.errors import ConvergenceError

_EPSILON = torch.finfo(torch.float64).eps
_MAX_HALVINGS = 40
_SUFFICIENT_DECREASE = 1e-4


@dataclass(frozen=True)
class SurrogateCertificate:
    """The quality of a surrogate's alpha, with K alpha computed again at the end.

    ``residual`` = ||alpha + dL(K alpha)/(n lam)|| / ||alpha||, zero if alpha = 0 is exact to rounding (Proposition 8). ``objective`` = the
    value of Eq. 5, at most ``duality_gap`` above its minimum. ``efficiency_gap`` = max |f - K alpha| over training samples and outputs, in
    units of the output; with softmax it includes each sample's mean logit, which the loss does not depend on. ``iterations`` = Newton
    steps. ``matvecs`` = products with K, plus one for the columns of the preconditioner. ``converged``: residual within ``tolerance``.
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
    columns: GramColumns | None = None,
) -> tuple[Tensor, SurrogateCertificate]:
    """The surrogate derivative alpha* (N, C) float64 and its certificate. Of the minimisers of Eq. 5 it is that of Eq. 6 (Proposition 8).

    ``outputs`` (N, C) are the model's on the training samples; its soft predictions are the surrogate's targets. ``lam`` is Eq. 4's lambda.
    ``columns`` is called once, for some of the N C rows, and gives a preconditioner that saves most products with K.

    Newton's method on g/n + lam alpha = 0, g = dL(K alpha)/df. With W = d2L/df2 = S S a step is
    delta = -(1/lam)(r - S (lam I + S K S/n)^-1 S K r/n). The inner system is symmetric positive definite for K of any rank. Conjugate
    gradients solve it to an accuracy that follows the outer residual, and a line search on the convex objective guards the step. The first
    step starts from the model's own outputs. Memory besides ``matvec``: at most 300 tensors (N, C), that is 2.4 kB for each row and output,
    three (N, C, C), and 128 MiB for ``columns``.

    Raises ConvergenceError if ``tolerance`` on the residual is not reached, unless ``allow_unconverged``; MethodError for invalid
    arguments; NonFiniteError if ``outputs`` or K alpha hold NaN or Inf.
    """
    _check_arguments(outputs, lam, tolerance, max_iterations)
    solver = _Newton(matvec, loss, outputs.detach().to(torch.float64), lam, tolerance, columns)
    if not solver.converged():
        solver.start()
    while solver.iterations < max_iterations and not solver.converged() and solver.step():
        pass
    certificate = solver.certificate()
    if not certificate.converged and not allow_unconverged:
        raise ConvergenceError(
            "the surrogate's solver did not reach its tolerance",
            where=f"surrogate, loss {loss.name}, lambda {lam:g}, {outputs.shape[0]} samples, {outputs.shape[1]} outputs",
            expected=f"residual <= {tolerance:g} within {max_iterations} iterations",
            got=f"residual {certificate.residual:.3g} after {certificate.iterations} iterations and {certificate.matvecs} products with K"
            + (f"; {solver.failure}" if solver.failure else ""),
            remedy="raise lambda, the tolerance or max_iterations, compute the gram more precisely, or allow an unconverged solution",
        )
    return solver.alpha, certificate


class _Newton:
    """The state of the iteration: alpha, f = K alpha, and the residual and objective at them."""

    def __init__(
        self, matvec: Matvec, loss: Loss, model_outputs: Tensor, lam: float, tolerance: float, columns: GramColumns | None
    ) -> None:
        self._dual = DualSystem(matvec, model_outputs.shape, lam, columns)
        self._loss = loss
        self._model_outputs = model_outputs
        self._targets = loss.soft_targets(model_outputs)
        self._n = model_outputs.shape[0]
        self._lam = lam
        self._tolerance = tolerance
        self._forcing = 0.1
        # f is updated together with alpha, which costs no product but accumulates rounding. It is exact after a product with alpha.
        self._exact = True
        self.iterations = 0
        self._failure = ""
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
        # At alpha = 0 the derivative is a difference of predictions. It is zero to rounding if the model predicts what f = 0 predicts.
        return 0.0 if self._n * self._norm <= 8 * _EPSILON * float(self._targets.norm()) else math.inf

    def converged(self) -> bool:
        """Whether the residual is within the tolerance with an exact K alpha."""
        if self.relative_residual <= self._tolerance and not self._exact:
            self._refresh()
        return self.relative_residual <= self._tolerance

    @property
    def failure(self) -> str:
        """Why the iteration does not converge, if a reason was found."""
        return self._dual.failure or self._failure

    def _refresh(self) -> None:
        self._exact = True
        self._move(self.alpha, self._dual.product(self.alpha))

    def start(self) -> None:
        """Start from Newton's step at the model's own outputs, if that is better than alpha = 0.

        The loss has its minimum there, so the step is ridge regression of the outputs, weighted by the curvature. With a small lambda it is
        close to the surrogate. The outputs need not be K alpha for any alpha.
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
        """One Newton step. False if no further progress is possible; the reason is in ``failure``."""
        lam, n = self._lam, self._n
        root = square_root(self._loss.second_derivative(self._f, self._targets))
        # The residual of the Newton system is S (A z - b)/lam, with A and b of the dual system.
        k_residual = self._dual.product(self._derivative) / n + lam * self._f
        accuracy = max(self._forcing * self._norm, 0.3 * self._tolerance * lam * float(self.alpha.norm()))
        inner, k_inner = self._dual.solve(root, apply_blocks(root, k_residual) / n, lam * accuracy)
        delta = -(self._residual - inner) / lam
        k_delta = -(k_residual - k_inner) / lam
        slope = float((k_residual * delta).sum())

        alpha, f, objective, norm = self.alpha, self._f, self._objective, self._norm
        # The objective's change by one rounding error in f. Its terms may be much larger than the objective.
        rounding = 64 * _EPSILON * float((self._derivative * f).abs().sum() / n + lam * (alpha * f).abs().sum() + abs(objective))
        size = 1.0
        for _ in range(_MAX_HALVINGS):
            self._move(alpha + size * delta, f + size * k_delta)
            decreased = self._objective <= objective + _SUFFICIENT_DECREASE * size * slope
            # Near the solution, and along null(K), the objective cannot distinguish steps, but the residual can.
            if decreased or (self._objective <= objective + rounding and self._norm < norm):
                break
            size /= 2
        else:
            self._move(alpha, f)
            if self._exact:
                self._failure = "no step along Newton's direction improves the objective or the residual"
                return False
            self._refresh()
            return True
        self._exact = False
        self.iterations += 1
        # k_delta is a difference of terms 1/lam times larger. If that rounding is visible in the residual, one product removes it.
        drift = _EPSILON * float(k_residual.norm()) / lam * float(root.abs().max()) ** 2 / n
        if drift > 0.01 * self._norm:
            self._refresh()
        # The accuracy of the next inner system: enough for quadratic convergence of the outer iteration, and not more.
        self._forcing = min(0.1, 0.5 * (self._norm / norm) ** 2) if norm > 0 else 0.1
        return True

    def certificate(self) -> SurrogateCertificate:
        if not self._exact:
            self._refresh()
        residual = self.relative_residual
        # With beta = -dL/(n lam), Fenchel's equality L*(dL) = f dL - L(f) makes primal minus dual lam/2 |alpha - beta|^2 in K's norm.
        gap = float((self._residual * self._dual.product(self._residual)).sum()) / (2 * self._lam)
        return SurrogateCertificate(
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
    require(
        "surrogate",
        [
            ("outputs", outputs.dim() == 2 and outputs.numel() > 0, "a tensor (N, C), not empty", tuple(outputs.shape)),
            ("lam", math.isfinite(lam) and lam > 0, "a finite number above 0", lam),
            ("tolerance", math.isfinite(tolerance) and tolerance > 0, "a finite number above 0", tolerance),
            ("max_iterations", max_iterations >= 1, "at least 1", max_iterations),
        ],
    )
    require_finite(outputs, "the model's outputs", "surrogate")
