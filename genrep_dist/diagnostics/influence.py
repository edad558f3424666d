"""Influence kernels: what their solvers proved of them."""

from __future__ import annotations

from typing import Any

from genrep_dist.diagnostics.finding import Finding, badness, counted, green, judge
from genrep_dist.diagnostics.fixture import ROUNDINGS, Patient
from genrep_dist.workflow.artifacts import assemblies

UNDECLARED_TOLERANCE = 1e-2
"""The residual from which a solve that declares no tolerance is amber."""
_FLOAT32_ROUNDING = ROUNDINGS * 2.0**-23

Certificate = dict[str, Any]


def influence(patient: Patient) -> list[Finding]:
    """The largest residual over all kernels that have a certificate, and the negative curvature that was met, if any.

    Nothing for a run without such kernels; nothing about curvature where no solver could have met a negative one.
    """
    certificates = [
        (assembly.seed, certificate)
        for stage in patient.plan.stages
        for assembly in assemblies(patient.plan, stage.name)
        if assembly.kind == "kernel"
        and (certificate := patient.store.artifact("kernel", assembly.key).manifest().get("certificate")) is not None
    ]
    findings = []
    if certificates:
        findings.append(_residual(certificates))
    if any("negative_curvature" in certificate for _, certificate in certificates):
        findings.append(_curvature(certificates))
    return findings


def _residual(certificates: list[tuple[int, Certificate]]) -> Finding:
    seed, worst = max(certificates, key=lambda pair: badness(float(pair[1]["residual"]) / _tolerance(pair[1])))
    declared = bool(worst.get("tolerance"))
    return judge(
        "influence residual",
        float(worst["residual"]),
        _tolerance(worst),
        f"largest relative residual of the influence kernel's linear systems, worst of {counted(len(certificates), 'kernel')}; bound: "
        + ("the tolerance that the solver was given" if declared else "one per cent, as the solver declares no tolerance"),
        "raise influence.damping, or influence.max_iterations for the true Hessian",
        seed=seed,
        worse="red" if declared else "amber",
    )


def _curvature(certificates: list[tuple[int, Certificate]]) -> Finding:
    remedy = "raise influence.damping above the most negative eigenvalue, or use influence.curvature: ggn, which has none"
    seed, worst = max(certificates, key=lambda pair: int(pair[1].get("negative_curvature") or 0))
    count = int(worst.get("negative_curvature") or 0)
    if count:
        text = (
            "test points whose solver met a direction in which H + damping is not positive: the kernel is no Mercer kernel there, and the "
            "axioms do not hold for it; bound: none may"
        )
        return judge("influence curvature", count, 0, text, remedy, seed=seed, worse="amber")
    seen = [(s, c) for s, c in certificates if c.get("smallest_rayleigh") is not None and c.get("largest_rayleigh") is not None]
    if not seen:
        return green("influence curvature", "no direction of negative curvature was met", number=0, bound=0)
    seed, worst = max(seen, key=lambda pair: badness(-_relative(pair[1])))
    return judge(
        "influence curvature",
        _relative(worst),
        -_FLOAT32_ROUNDING,
        "smallest curvature v^T H v / v^T v that a solver met, relative to the largest: below zero H is indefinite, and it is the damping "
        f"({float(worst['damping']):.3g}) alone that makes the system positive; bound: {ROUNDINGS:,} roundings of float32",
        remedy,
        seed=seed,
        worse="amber",
        at_least=True,
    )


def _tolerance(certificate: Certificate) -> float:
    return float(certificate.get("tolerance") or UNDECLARED_TOLERANCE)


def _relative(certificate: Certificate) -> float:
    largest = abs(float(certificate["largest_rayleigh"]))
    return float(certificate["smallest_rayleigh"]) / largest if largest > 0 else 0.0
