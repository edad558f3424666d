"""The examination: every check, in the order of the report. A check that cannot be done is a red finding, not an error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from genrep_dist.diagnostics import (
    certificates,
    features,
    gradients,
    grams,
    identities,
    influence,
    kernels,
    ledger,
    model_modes,
    stored,
    training,
)
from genrep_dist.diagnostics.finding import Finding
from genrep_dist.diagnostics.fixture import Patient
from genrep_dist.errors import GenRepError, MethodError, NotCommittedError
from genrep_dist.problems.checks import user_fault
from genrep_dist.results import Run

Check = Callable[[Patient], list[Finding]]


def examine(run: Run, *, samples: int = 8) -> list[Finding]:
    """All findings about a finished run, in a fixed order; :func:`genrep_dist.diagnostics.finding.worst` sums them up.

    ``samples`` training rows, drawn by a derived seed, are computed one by one. Checks look at all seeds where that costs little
    more than reading, at the first one elsewhere; each finding says which. Costs about one retraining, a backward pass over the
    training set, and the eigenvalues of a matrix of at most 2,048 rows; memory stays within the run's budget. Nothing is written,
    and no random number depends on anything but the run.

    Raises NotCommittedError for a run that is not finished, MethodError for ``samples`` below 1. Whatever goes wrong inside a check
    (damaged files, a model that cannot be built any more) becomes a red finding, so that one fault does not hide the others.
    """
    if samples < 1:
        raise MethodError("the doctor needs samples to look at", where="samples", expected="at least 1", got=str(samples))
    if run.manifest() is None:
        raise NotCommittedError(
            "this run is not finished, and only finished runs can be examined",
            where=f"{run.store.uri}, experiment {run.name}",
            expected="published results",
            got="none for this question",
            remedy="run the experiment to its end; `genrep status` says how far it is",
        )
    patient = Patient(run, samples)
    found = [finding for name, check in _CHECKS for finding in _done(name, check, patient)]
    return _told_once(found)


def _mode(patient: Patient) -> list[Finding]:
    return [model_modes.mode(patient.model, patient.seed)]


def _normalisation(patient: Patient) -> list[Finding]:
    return [model_modes.normalisation(patient.model, patient.seed)]


def _dropout(patient: Patient) -> list[Finding]:
    return [model_modes.dropout(patient.model, patient.seed)]


_CHECKS: tuple[tuple[str, Check], ...] = (
    ("mode", _mode),
    ("normalisation", _normalisation),
    ("dropout", _dropout),
    ("gradients", gradients.per_sample),
    ("features", features.products),
    ("batch size", gradients.batch_size),
    ("reproduction", gradients.reproduction),
    ("kernel", kernels.kernel),
    ("gram", grams.gram),
    ("surrogate residual", certificates.residual),
    ("descent rate", certificates.rate),
    ("efficiency", certificates.efficiency),
    ("influence", influence.influence),
    ("tracking identities", identities.tracking),
    ("optimiser", training.optimiser),
    ("finite", stored.finite),
    ("scores", stored.scores),
    ("scores from elsewhere", stored.elsewhere),
    ("ledger", ledger.completeness),
    ("originals", ledger.originals),
    ("retraining", ledger.retraining),
    ("judgement", ledger.judgement),
    ("learning", training.learning),
    ("power", training.power),
)


def _done(name: str, check: Check, patient: Patient) -> list[Finding]:
    try:
        return check(patient)
    except GenRepError as error:
        return [_undone(name, error, patient)]
    except Exception as error:  # the user's model runs in here, and may raise anything
        return [_undone(name, user_fault("a check ended in an error", f"check {name}", error), patient)]


def _undone(name: str, error: GenRepError, patient: Patient) -> Finding:
    text = "; ".join(part for part in (f"not checked: {error.what}", error.where, error.got) if part)
    return Finding(name, "red", None, None, text, error.remedy or "mend the cause and examine again", patient.seed)


def _told_once(findings: list[Finding]) -> list[Finding]:
    """Checks that one and the same fault kept from being done as one finding under all their names."""
    names: dict[str, list[str]] = {}
    for finding in findings:
        if finding.text.startswith("not checked: "):
            names.setdefault(finding.text, []).append(finding.name)
    kept = []
    for finding in findings:
        together = names.get(finding.text, [finding.name])
        if finding.name == together[0]:
            kept.append(finding if len(together) == 1 else replace(finding, name=", ".join(together)))
    return kept
