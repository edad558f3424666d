"""The surrogate derivative (Eq. 5-6): the projection of the model onto the span of the kernel."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from genrep_dist.core.importances.base import GramOperator, SolvedImportance, SolveInputs

if TYPE_CHECKING:
    from torch import Tensor

VECTORS_HELD = 280
"""Tensors (N, C) float64 of the systems of the Newton steps: products that are kept, and the preconditioner that is made of them."""
NEWTON_PRODUCTS = 60
"""Products with the gram of a typical solve, for estimates."""


class SurrogateDerivative(SolvedImportance):
    """The minimiser of Eq. 5 against the model's own soft predictions, unique up to null(K)."""

    name = "surrogate"
    formula = "-(1/(n lambda)) dL/df(K alpha(x_i), f(x_i))"
    source = "surrogate derivative, Tsai et al. 2023, Eq. 5-6"
    settings = ("surrogate",)
    advice = "lower surrogate.lambda for a closer fit"
    curvature_copies = 6

    def __init__(self, surrogate: Any) -> None:
        self.options, self.system = surrogate, surrogate.system

    @property
    def description(self) -> str:
        return f"lambda {self.options.lam:g}"

    def solve(self, gram: GramOperator, inputs: SolveInputs) -> tuple[Tensor, dict[str, Any]]:
        from genrep_dist.core.solvers.surrogate import solve_surrogate

        alpha, certificate = solve_surrogate(
            gram.matvec,
            inputs.loss,
            inputs.outputs,
            lam=self.options.lam,
            tolerance=self.options.tolerance,
            max_iterations=self.options.max_iterations,
            allow_unconverged=self.options.allow_unconverged,
            columns=lambda rows: gram.sample(rows, inputs.outputs.shape[1]),
        )
        return alpha, asdict(certificate)

    def gram_products(self, epochs: int) -> int:
        del epochs
        return NEWTON_PRODUCTS

    def extra_bytes(self, gram_rows: int) -> int:
        from genrep_dist.core.solvers.nystrom import nystrom_bytes

        return nystrom_bytes(gram_rows) + 8 * VECTORS_HELD * gram_rows
