"""LiSSA (Agarwal et al. 2016): the Neumann series of an inverse, with the Hessian of all rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genrep_dist.core.solvers.checks import require
from genrep_dist.core.solvers.hessian_system import DampedOperator, HessianCertificate, Matmat, certify, checked_right_side
from genrep_dist.core.solvers.power_iteration import largest_eigenvalue
from genrep_dist.errors import ConvergenceError

_SCALE_MARGIN = 1.1


def lissa(
    product: Matmat,
    right: Tensor,
    *,
    damping: float,
    scale: float | None = None,
    depth: int = 5000,
    tolerance: float = 1e-6,
    seed: int = 0,
    allow_unconverged: bool = False,
) -> tuple[Tensor, HessianCertificate]:
    """X (P, M) float64 with (H + ``damping`` I) X = ``right`` (P, M) by LiSSA, and its certificate.

    u_0 = b, u_{t+1} = b + (I - (H + damping I)/scale) u_t, and X = u/scale, computed as the sum of its increments, the terms of Neumann's
    series. Every product is with the Hessian of all rows, so the result is deterministic and needs no repeats. It converges if all
    eigenvalues of H + damping I lie between 0 and 2 ``scale``, at a rate of 1 - smallest/scale. ``scale`` None takes 1.1 times the largest
    eigenvalue, estimated by power iteration from ``seed``. A column stops when its residual is within ``tolerance``, after ``depth``
    steps, or at negative curvature, as in :func:`conjugate_gradients`. Memory: five matrices (P, M).

    Raises ConvergenceError if a column diverges because ``scale`` is too small, always, naming a scale that is large enough; if
    ``tolerance`` is not reached, unless ``allow_unconverged``; and other errors as :func:`conjugate_gradients`.
    """
    if scale is not None:
        require("influence", [("scale", math.isfinite(scale) and scale > 0, "a finite number above 0, or None", scale)])
    right = checked_right_side(right, damping, tolerance, "depth", depth)
    system, norms = DampedOperator(product, damping), right.norm(dim=0)
    if scale is None:
        start = torch.randn(len(right), 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(right.device)
        scale = _SCALE_MARGIN * _spectral_radius(system, start)
    total, stopped = torch.zeros_like(right), torch.zeros_like(norms, dtype=torch.bool)
    live = (norms > 0).nonzero().flatten()
    term, iterations, scale_verified = right[:, live], 0, False
    while len(live) and iterations < depth:
        total[:, live] += term
        image = system(term)
        square = term.square().sum(dim=0)
        rayleigh = (term * image).sum(dim=0) / square
        system.record_rayleigh(float(rayleigh.min()), float(rayleigh.max()))
        following = term - image / scale
        norm, positive = following.norm(dim=0), rayleigh > 0
        # I - (H + damping I)/scale is symmetric: a term grows only if an eigenvalue lies outside of (0, 2 scale).
        growing = positive & ~(norm <= (1 + 1e-6) * square.sqrt())
        if bool(growing.any()) and not scale_verified:
            largest = _spectral_radius(system, term[:, growing][:, :1])
            if scale <= _SCALE_MARGIN * largest / 2:
                raise _divergence(system, scale, largest, iterations + 1)
            # The scale is large enough, so an eigenvalue is negative; its Rayleigh quotients will show it in later steps.
            scale_verified = True
        iterations += 1
        stopped[live[~positive]] = True
        active = positive & (norm > tolerance * norms[live])
        live, term = live[active], following[:, active]
    solution = total / scale
    remaining = right - system(solution)
    certificate = certify(
        "lissa",
        system,
        remaining,
        norms,
        int(stopped.sum()),
        iterations,
        tolerance,
        scale=scale,
        limit=f"depth={depth}",
        allow_unconverged=allow_unconverged,
    )
    return solution, certificate


def _spectral_radius(system: DampedOperator, start: Tensor) -> float:
    """The largest |eigenvalue| of H + damping I, estimated from below and precisely enough for the choice of a scale."""

    def matvec(vector: Tensor) -> Tensor:
        image = system(vector)
        rayleigh = float((vector * image).sum())
        system.record_rayleigh(rayleigh, rayleigh)
        return image

    radius, _ = largest_eigenvalue(matvec, start, tolerance=1e-3)
    require("influence", [("scale", radius > 0, "H + damping I that is not zero", "zero for a random vector")])
    return radius


def _divergence(system: DampedOperator, scale: float, largest: float, step: int) -> ConvergenceError:
    return ConvergenceError(
        "LiSSA diverges: its scale is too small",
        where=f"lissa, damping {system.damping:.3g}, step {step}",
        expected=f"a scale above half the largest eigenvalue of H + damping I, which is about {largest:.3g}",
        got=f"scale {scale:.3g}",
        remedy=f"choose scale={_SCALE_MARGIN * largest:.3g}, or scale=None to have it estimated",
    )
