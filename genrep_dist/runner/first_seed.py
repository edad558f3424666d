"""The doctor at the beginning of a run: its red findings about the first seed stop the run before the retrainings."""

from __future__ import annotations

from genrep_dist.diagnostics.finding import Finding, worst_colour
from genrep_dist.diagnostics.first_seed import DoctorUnit, read_findings
from genrep_dist.errors import DoctorError, GenRepError
from genrep_dist.runner.progress import ProgressCounter
from genrep_dist.runner.stage_runner import StageRunner
from genrep_dist.workflow.prepare import PreparedExperiment


def check_first_seed(prepared: PreparedExperiment, runner: StageRunner, progress: ProgressCounter, seed: int, *, force: bool) -> None:
    """Let the doctor check the original model of ``seed``, which is trained, on a worker.

    Nothing is done if the same experiment was checked before and had no red finding. Raises DoctorError for red findings unless
    ``force``, and what a worker raises for its code or its store. A process of the doctor that dies does not stop the run.
    """
    plan, store = prepared.plan, prepared.store
    question = plan.keys.results
    known = read_findings(store, plan.experiment.name, question)
    if known is not None and worst_colour(known) != "red":
        return
    one = prepared.with_experiment(plan.experiment.with_fixed_seeds(seeds=[seed])).plan
    outcome = runner.run_alone(DoctorUnit(seed, one, question))
    if isinstance(outcome.error, GenRepError):
        raise outcome.error
    if outcome.error is not None:
        progress.message(f"doctor: seed {seed} was not checked, as its unit ended with {type(outcome.error).__name__}: the run goes on")
        return
    findings = read_findings(store, plan.experiment.name, question) or []
    for line in _lines(seed, findings, outcome.statistics["seconds"]):
        progress.message(line)
    red = [found for found in findings if found.colour == "red"]
    if red and not force:
        raise _error(plan.experiment.name, seed, red)
    if red:
        progress.message("doctor: the run goes on, as --force (force=True) was given")


def _lines(seed: int, findings: list[Finding], seconds: float) -> list[str]:
    """One line about all findings, and one for each that is not green."""
    others = [found for found in findings if found.colour != "green"]
    counts = ", ".join(f"{sum(found.colour == colour for found in findings)} {colour}" for colour in ("green", "amber", "red"))
    result = counts if others else f"all {len(findings)} findings are green"
    head = f"doctor: seed {seed}, before the retrainings: {result} ({seconds:.1f} s)"
    return [head, *(f"doctor: {found.colour}, {found.name}: {_described(found)}. What to do: {found.remedy}" for found in others)]


def _described(found: Finding) -> str:
    """The number and what it is."""
    if found.number is None or found.bound is None:
        return found.text
    return f"{found.number:.3g}, not within {found.bound:.3g}: {found.text}"


def _error(name: str, seed: int, red: list[Finding]) -> DoctorError:
    names = list(dict.fromkeys(found.name for found in red))
    return DoctorError(
        f"the doctor's findings about the first seed are red ({', '.join(names)}), so no model was retrained",
        where=f"experiment {name}, seed {seed}",
        expected="no red finding",
        got="; ".join(map(_described, red)),
        remedy="; ".join(dict.fromkeys(found.remedy for found in red))
        + ". Then run the same command again: what is computed is kept and used where it is still valid. --force (force=True) goes on "
        "with the retrainings all the same",
    )
