"""Runs all checks. A check that raises becomes a red finding, so that one fault does not hide others."""

from __future__ import annotations

import time
from dataclasses import replace

from genrep_dist.diagnostics.checks import CHECKS, FIRST_SEED_CHECKS, RECOMPUTED, Check
from genrep_dist.diagnostics.context import CheckContext, NotApplicableError
from genrep_dist.diagnostics.finding import Colour, Finding, worst_colour
from genrep_dist.diagnostics.float64 import all_in_float64
from genrep_dist.errors import GenRepError, MethodError, NotCommittedError, StoreError
from genrep_dist.problems.checks import user_code_error
from genrep_dist.results import Run

_NOT_CHECKED = "not checked: "
MOST_SECONDS = 60.0
"""After this time no other check before the retrainings begins."""
MODEL_ROUNDINGS = 4
"""How many times as far as from float64 two right ways of computing in a model's own precision may be from each other."""


def diagnose(run: Run, *, samples: int = 8) -> list[Finding]:
    """All findings about a finished run, in the order of :data:`genrep_dist.diagnostics.checks.CHECKS`.

    ``samples`` training rows, drawn by a derived seed, are recomputed one by one. A check covers all seeds if that costs little more
    than reading, else the first one; each finding says which. Costs about one retraining, one backward pass over the training set,
    and the eigenvalues of a matrix of at most 2,048 rows. Memory stays within the run's budget. Nothing is written, and the result
    is deterministic.

    Raises NotCommittedError for a run that is not finished, MethodError for ``samples`` below 1. Any error inside a check (damaged
    files, a model that cannot be built) becomes a red finding.
    """
    if samples < 1:
        raise MethodError("the doctor needs at least one sample", where="samples", expected="at least 1", got=str(samples))
    if run.manifest() is None:
        raise NotCommittedError(
            "only finished runs can be checked, and this run is not finished",
            where=f"{run.store.uri}, experiment {run.name}",
            expected="published results",
            got="none for this experiment",
            remedy="run the experiment to its end; `genrep status` shows its progress",
        )
    context = CheckContext(run, samples)
    return _merge_same_error([finding for name, check in CHECKS.items() for finding in _run(name, check, context)])


def diagnose_first_seed(context: CheckContext) -> list[Finding]:
    """All findings about a run at its beginning, in the order of :data:`genrep_dist.diagnostics.checks.FIRST_SEED_CHECKS`.

    Checks that have not begun after MOST_SECONDS are left out, which is an amber finding. An error inside a check is one as well: if the
    run needs what the check could not compute, the run ends with that error itself. Raises StoreError for damage in the store.
    """
    began = time.monotonic()
    findings: list[Finding] = []
    left_out: list[str] = []
    for name, check in FIRST_SEED_CHECKS.items():
        if time.monotonic() - began > MOST_SECONDS:
            left_out.append(name)
        else:
            findings += _run(name, check, context)
    if left_out:
        text = f"not checked, as the checks before took {MOST_SECONDS:.0f} seconds: {', '.join(left_out)}"
        remedy = "run `genrep doctor` when the run is finished"
        findings.append(Finding("time", "amber", None, None, text, remedy, context.seed))
    return _merge_same_error(findings)


def _run(name: str, check: Check, context: CheckContext) -> list[Finding]:
    try:
        findings = list(check(context))
    except NotApplicableError:
        return []
    except GenRepError as error:
        if context.before_retraining and isinstance(error, StoreError):
            raise  # the run moves damage away and computes it again
        return [_not_checked(name, error, context)]
    except Exception as error:  # checks call the user's model, which may raise anything
        return [_not_checked(name, user_code_error("a check raised an error", f"check {name}", error), context)]
    if worst_colour(findings) == "red" and (name in FIRST_SEED_CHECKS or name in RECOMPUTED):
        return _amber_where_rounding(findings, name, check, context)
    return findings


def _amber_where_rounding(findings: list[Finding], name: str, check: Check, context: CheckContext) -> list[Finding]:
    """``findings``, with those in amber that are red because of rounding.

    Where a forward pass computes in bfloat16, a unit of a ReLU network is within one rounding of zero, or a layer chooses by comparing
    numbers, two right ways of computing differ by far more than a rounding of float32. In float64 they agree: ``check`` is green. Stored
    numbers are not computed again in float64: they may differ MODEL_ROUNDINGS times as much as the model's own numbers do from those in
    float64. A model that does not run in float64 stays red.
    """
    precise = CheckContext(context.run, len(context.rows), before_retraining=context.before_retraining, in_float64=True)
    recompute = RECOMPUTED.get(name)
    try:
        if recompute is None:
            with all_in_float64():
                again = list(check(precise))
            explained = [(other.colour == "green", f"in float64 it is {other.number or 0.0:.2g}") for other in again]
        else:
            own = list(recompute(context))
            with all_in_float64():
                exact = list(recompute(precise))
            sizes = [float((one - other).abs().max()) for one, other in zip(own, exact, strict=True)]
            explained = [
                (
                    found.number is not None and found.number <= MODEL_ROUNDINGS * size,
                    f"the model's own numbers are {size:.2g} from float64",
                )
                for found, size in zip(findings, sizes, strict=True)
            ]
    except Exception:  # the user's model may raise anything
        return findings
    if len(explained) != len(findings):
        return findings
    remedy = "no action is needed if such differences do not matter to you; else compute in float32 or float64"
    return [
        replace(one, colour="amber", text=f"{one.text}; {text}, so that it is rounding, which this model amplifies", remedy=remedy)
        if one.colour == "red" and is_rounding
        else one
        for one, (is_rounding, text) in zip(findings, explained, strict=True)
    ]


def _not_checked(name: str, error: GenRepError, context: CheckContext) -> Finding:
    text = "; ".join(part for part in (_NOT_CHECKED + error.what, error.where, error.got) if part)
    # What a run needs and cannot compute ends it anyway.
    colour: Colour = "amber" if context.before_retraining else "red"
    return Finding(name, colour, None, None, text, error.remedy or "correct the cause and run the doctor again", context.seed)


def _merge_same_error(findings: list[Finding]) -> list[Finding]:
    """Checks that failed with the same error become one finding under all their names."""
    names: dict[str, list[str]] = {}
    for finding in findings:
        if finding.text.startswith(_NOT_CHECKED):
            names.setdefault(finding.text, []).append(finding.name)
    kept = []
    for finding in findings:
        same = names.get(finding.text, [finding.name])
        if finding.name == same[0]:
            kept.append(finding if len(same) == 1 else replace(finding, name=", ".join(same)))
    return kept
