"""Whether a problem's own training function is deterministic: the first original model is trained twice, once an experiment."""

from __future__ import annotations

from typing import Any

from genrep_dist.config import Experiment
from genrep_dist.config.sections import RetrainSection
from genrep_dist.core.policies import fresh_policy, is_fresh
from genrep_dist.errors import GenRepError, ProblemError, TimeLimitError, UnitError
from genrep_dist.runner.progress import ProgressCounter
from genrep_dist.runner.stage_runner import StageRunner, Workers
from genrep_dist.store.paths import ExperimentPaths
from genrep_dist.workflow.prepare import PreparedExperiment
from genrep_dist.workflow.train import RepeatUnit


def repeat_first_original(prepared: PreparedExperiment, progress: ProgressCounter, workers: Workers) -> dict[str, Any] | None:
    """Train the original model of the first seed twice, unless the store knows the result.

    Returns ``model`` (its content address), ``seed``, ``difference``, the largest between the test outputs of both, and ``scale``, the
    largest of these outputs; None if the model cannot be trained, which the stage train reports when the other seeds are done.
    """
    experiment, store = prepared.plan.experiment, prepared.store
    seed, path = experiment.seeds[0], ExperimentPaths(experiment.name).repeat
    model = prepared.plan.keys.model(seed)
    if store.objects.exists(path) and (known := store.objects.get_json(path)).get("model") == model:
        return dict(known)
    one = prepared.with_experiment(experiment.with_fixed_seeds(seeds=[seed]))
    runner = StageRunner(one, progress, workers)
    try:
        runner.train_originals()
    except (ProblemError, TimeLimitError, UnitError):
        return None
    outcome = runner.run_alone(RepeatUnit(seed))
    if outcome.error is not None:
        if isinstance(outcome.error, GenRepError):
            raise outcome.error
        raise UnitError("the first original model could not be trained again", where=outcome.unit.label, got=str(outcome.error))
    found = {"model": model, "seed": seed, **outcome.statistics}
    store.objects.put_json(path, found)
    return found


def with_fresh_retrainings(experiment: Experiment) -> Experiment:
    """The experiment with fresh random numbers in all retrainings: common random numbers of a random training mean nothing."""
    changes: dict[str, Any] = {
        name: section.model_copy(update={"retrain": fresh_policy(section.retrain)})
        for name in type(experiment).model_fields
        if isinstance(section := getattr(experiment, name), RetrainSection) and not is_fresh(section.retrain)
    }
    metrics = {
        name: {**given, "retrain": fresh_policy(given["retrain"])} if given.get("retrain") in ("same", "rebatch") else given
        for name, given in experiment.metrics.items()
    }
    return experiment.model_copy(update=changes | {"metrics": metrics})


def difference_text(found: dict[str, Any]) -> str:
    """The size of the difference, for people."""
    return f"by up to {found['difference']:.3g}, with outputs up to {found['scale']:.3g}"
