"""Systems (H + damping I) x = b with an indefinite H that is given by its products: the operator, and the certificate of a solution."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genrep_dist.core.solvers.checks import require, require_finite, require_form
from genrep_dist.errors import ConvergenceError, MethodError, ProblemError

Matmat = Callable[[Tensor], Tensor]
"""V -> H V, float64 (P, K) -> float64 (P, K) for any K >= 1, on V's device. H is symmetric and may be indefinite."""

_PROBES_AT_ONCE = 8


class DampedOperator:
    """V -> (H + damping I) V for V (P, K). Checks and counts products, and keeps the extreme Rayleigh quotients that solvers report."""

    def __init__(self, product: Matmat, damping: float) -> None:
        self._product = product
        self.damping = damping
        self.products = 0
        self.smallest_rayleigh = math.inf
        self.largest_rayleigh = -math.inf

    def __call__(self, vectors: Tensor) -> Tensor:
        if not vectors.shape[1]:
            return torch.zeros_like(vectors)
        image = require_form(self._product(vectors), vectors.shape, "the product with the Hessian", "influence, curvature 'hessian'")
        self.products += vectors.shape[1]
        require_finite(image, "a product with the Hessian", "influence")
        return image + self.damping * vectors

    def record_rayleigh(self, smallest: float, largest: float) -> None:
        """Rayleigh quotients of H + damping I that a solver has seen."""
        self.smallest_rayleigh = min(self.smallest_rayleigh, smallest)
        self.largest_rayleigh = max(self.largest_rayleigh, largest)


@dataclass(frozen=True)
class Damping:
    """``delta`` is what is added to H. A relative damping is in units of ``mean_eigenvalue`` = trace(H)/P, otherwise None.

    ``mean_eigenvalue`` was estimated with ``probes`` random vectors and has this ``standard_error``; it is exact where ``probes`` is 0.
    """

    delta: float
    mean_eigenvalue: float | None
    standard_error: float | None
    probes: int


def declare_damping(product: Matmat, num_parameters: int, *, damping: float, relative: bool, seed: int, probes: int = 64) -> Damping:
    """The absolute damping: ``damping`` itself, or, if ``relative``, ``damping`` times trace(H)/P, the mean eigenvalue of H.

    The trace is exact if P <= ``probes``, from P products with unit vectors. Otherwise it is Hutchinson's estimate, the mean of z^T H z
    over ``probes`` vectors z of random signs from ``seed``.

    Raises MethodError for a damping that is negative or not finite, and for a relative one if the mean eigenvalue is not positive.
    """
    require("influence", [("damping", math.isfinite(damping) and damping >= 0, "a finite number, 0 or more", damping)])
    if not relative:
        return Damping(float(damping), None, None, 0)
    require(
        "influence", [("probes", probes >= 2, "at least 2", probes), ("num_parameters", num_parameters >= 1, "at least 1", num_parameters)]
    )
    exact = num_parameters <= probes
    generator = torch.Generator().manual_seed(seed)
    system, forms = DampedOperator(product, 0.0), []
    for start in range(0, num_parameters if exact else probes, _PROBES_AT_ONCE):
        count = min(_PROBES_AT_ONCE, (num_parameters if exact else probes) - start)
        if exact:
            vectors = torch.eye(num_parameters, dtype=torch.float64)[:, start : start + count]
        else:
            vectors = (2.0 * torch.randint(2, (count, num_parameters), generator=generator) - 1).double().T
        forms.append((vectors * system(vectors)).sum(dim=0))
    values = torch.cat(forms) / num_parameters
    mean = float(values.sum() if exact else values.mean())
    error = 0.0 if exact else float(values.std()) / math.sqrt(probes)
    if not mean > 0:
        raise MethodError(
            "a relative damping needs a Hessian with a positive mean eigenvalue",
            where="influence damping",
            expected="trace(H)/P > 0",
            got=f"{mean:.3g}" + ("" if exact else f" with standard error {error:.2g} from {probes} probes"),
            remedy=("" if exact else "use more probes, ") + "give an absolute damping, train further, or choose the curvature 'ggn'",
        )
    return Damping(damping * mean, mean, error, 0 if exact else probes)


@dataclass(frozen=True)
class HessianCertificate:
    """The quality of a solution of (H + ``damping`` I) x = b, column by column.

    ``residuals`` = ||b - (H + damping I) x|| / ||b|| with a new product, 0 for b = 0; ``residual`` is the largest. ``iterations``: steps of
    the slowest column. ``products``: vectors that were multiplied with H. ``negative_curvature``: columns that met a direction with
    v^T (H + damping I) v <= 0; they stop there and are not converged.

    ``smallest_rayleigh`` and ``largest_rayleigh`` are the extreme Rayleigh quotients v^T H v/v^T v that were seen (None if none was). They
    lie within the spectrum of H. A smallest one below zero, by more than rounding of the largest, proves that H is indefinite: the
    parameters are no minimum. One below -``damping`` proves that H + damping I gives no Mercer kernel. The absence of such a quotient
    proves nothing.

    ``scale``: that of LiSSA, otherwise None. ``converged``: all residuals are within ``tolerance`` and no negative curvature was met.
    """

    solver: Literal["cg", "lissa"]
    damping: float
    scale: float | None
    iterations: int
    products: int
    residual: float
    residuals: list[float]
    negative_curvature: int
    smallest_rayleigh: float | None
    largest_rayleigh: float | None
    tolerance: float
    converged: bool


def checked_right_side(right: Tensor, damping: float, tolerance: float, limit_name: str, limit: int) -> Tensor:
    """The right-hand sides (P, M) as float64. Raises MethodError, ProblemError or NonFiniteError for invalid arguments of a solver."""
    require(
        "influence",
        [
            ("damping", math.isfinite(damping) and damping >= 0, "a finite number, 0 or more", damping),
            ("tolerance", math.isfinite(tolerance) and tolerance > 0, "a finite number above 0", tolerance),
            (limit_name, limit >= 1, "at least 1", limit),
        ],
    )
    if right.dim() != 2 or not right.shape[0]:
        raise ProblemError("right-hand sides have the wrong form", where="influence", expected="(P, M)", got=f"{tuple(right.shape)}")
    right = right.detach().to(torch.float64)
    require_finite(right.T, "right-hand sides (gradients of test points)", "influence")
    return right


def certify(
    solver: Literal["cg", "lissa"],
    system: DampedOperator,
    remaining: Tensor,
    norms: Tensor,
    negative_curvature: int,
    iterations: int,
    tolerance: float,
    *,
    scale: float | None,
    limit: str,
    allow_unconverged: bool,
) -> HessianCertificate:
    """The certificate of a solution with residual ``remaining`` (P, M) for right-hand sides with these ``norms`` (M,).

    Raises ConvergenceError, naming the ``limit`` of the solver's steps, for a solution that is not converged, unless ``allow_unconverged``.
    """
    # For a right-hand side of zero the solution zero is exact.
    relative = torch.where(norms > 0, remaining.norm(dim=0) / norms, 0.0)
    residual = float(relative.max()) if len(relative) else 0.0
    seen = math.isfinite(system.smallest_rayleigh)
    certificate = HessianCertificate(
        solver=solver,
        damping=float(system.damping),
        scale=scale,
        iterations=iterations,
        products=system.products,
        residual=residual,
        residuals=relative.tolist(),
        negative_curvature=negative_curvature,
        smallest_rayleigh=system.smallest_rayleigh - system.damping if seen else None,
        largest_rayleigh=system.largest_rayleigh - system.damping if seen else None,
        tolerance=tolerance,
        converged=residual <= tolerance and negative_curvature == 0,
    )
    if not (certificate.converged or allow_unconverged):
        raise _not_converged(certificate, limit)
    return certificate


def _not_converged(certificate: HessianCertificate, limit: str) -> ConvergenceError:
    above = sum(residual > certificate.tolerance for residual in certificate.residuals)
    got = f"{above} of {len(certificate.residuals)} columns above it, the worst {certificate.residual:.3g}"
    if certificate.negative_curvature:
        smallest = certificate.smallest_rayleigh
        got += f"; negative curvature in {certificate.negative_curvature} columns: H has the Rayleigh quotient {smallest:.3g}"
        remedy = f"raise the damping well above {-(smallest or 0.0):.2g}, train further, or choose the curvature 'ggn', which has none"
    else:
        remedy = f"raise the damping, the tolerance or {limit.partition('=')[0]}, or compute the products in float64"
    return ConvergenceError(
        "the influence system with the true Hessian is not solved",
        where=f"{certificate.solver}, damping {certificate.damping:.3g}",
        expected=f"relative residual <= {certificate.tolerance:g} for every column within {limit}",
        got=got,
        remedy=remedy + "; or allow an unconverged solution",
    )
