"""Influence kernels: the certificates of their solvers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from genrep_dist.diagnostics.context import ROUNDINGS, CheckContext
from genrep_dist.diagnostics.finding import Finding, compare, count_text, green, nan_as_inf

DEFAULT_TOLERANCE = 1e-2
"""Residual above which a solve without a declared tolerance is amber."""
MOSTLY_FLAT = 0.5
"""Share of samples without curvature above which H is mostly the damping."""
_FLOAT32_ROUNDING = ROUNDINGS * 2.0**-23

Certificate = dict[str, Any]


def check(context: CheckContext) -> Iterator[Finding]:
    """The largest residual over all certified kernels, the samples without curvature, and the negative curvature that solvers met.

    No finding for a run without such kernels, and none about negative curvature if no solver could have met it.
    """
    keys = context.plan.keys
    certificates = [
        (seed, context.store.artifact("kernel", keys.kernel(seed, kernel, epoch)).manifest()["certificate"])
        for seed in context.seeds
        for kernel, epoch in context.plan.needs.derived
    ]
    if certificates:
        yield _residual(certificates)
    if any("flat_share" in certificate for _, certificate in certificates):
        yield _loss_curvature(certificates)
    if any("negative_curvature" in certificate for _, certificate in certificates):
        yield _curvature(certificates)


def _residual(certificates: list[tuple[int, Certificate]]) -> Finding:
    seed, worst = max(certificates, key=lambda pair: nan_as_inf(float(pair[1]["residual"]) / _tolerance(pair[1])))
    declared = bool(worst.get("tolerance"))
    return compare(
        "influence residual",
        float(worst["residual"]),
        _tolerance(worst),
        f"largest relative residual of the influence kernel's linear systems, worst of {count_text(len(certificates), 'kernel')}; bound: "
        + ("the solver's tolerance" if declared else "one per cent, as the solver has no tolerance"),
        "raise influence.damping, or influence.max_iterations for the true Hessian",
        seed=seed,
        otherwise="red" if declared else "amber",
    )


def _loss_curvature(certificates: list[tuple[int, Certificate]]) -> Finding:
    seed, worst = max(certificates, key=lambda pair: float(pair[1].get("flat_share", 0.0)))
    return compare(
        "loss curvature",
        float(worst["flat_share"]),
        MOSTLY_FLAT,
        "largest share of training samples whose loss is linear in the outputs: they add nothing to H, and where all are, the influence "
        "kernel is its base kernel divided by the damping; bound: half of the samples",
        "use influence.curvature: hessian, or compare with ntk-final/target, which needs no H",
        seed=seed,
        otherwise="amber",
    )


def _curvature(certificates: list[tuple[int, Certificate]]) -> Finding:
    remedy = "raise influence.damping above the most negative eigenvalue, or use influence.curvature: ggn, which has none"
    seed, worst = max(certificates, key=lambda pair: int(pair[1].get("negative_curvature") or 0))
    count = int(worst.get("negative_curvature") or 0)
    if count:
        text = (
            "test points whose solver met a direction in which H + damping is not positive: the kernel is not a Mercer kernel there, and "
            "the axioms do not hold for it; bound: none"
        )
        return compare("influence curvature", count, 0, text, remedy, seed=seed, otherwise="amber")
    measured = [(s, c) for s, c in certificates if c.get("smallest_rayleigh") is not None and c.get("largest_rayleigh") is not None]
    if not measured:
        return green("influence curvature", "no direction of negative curvature was met", number=0, bound=0)
    seed, worst = max(measured, key=lambda pair: nan_as_inf(-_smallest_curvature(pair[1])))
    return compare(
        "influence curvature",
        _smallest_curvature(worst),
        -_FLOAT32_ROUNDING,
        "smallest curvature v^T H v / v^T v that a solver met, relative to the largest: below zero H is indefinite, and only the damping "
        f"({float(worst['damping']):.3g}) makes the system positive; bound: {ROUNDINGS:,} roundings of float32",
        remedy,
        seed=seed,
        otherwise="amber",
        at_least=True,
    )


def _tolerance(certificate: Certificate) -> float:
    return float(certificate.get("tolerance") or DEFAULT_TOLERANCE)


def _smallest_curvature(certificate: Certificate) -> float:
    """Relative to the largest curvature."""
    largest = abs(float(certificate["largest_rayleigh"]))
    return float(certificate["smallest_rayleigh"]) / largest if largest > 0 else 0.0
