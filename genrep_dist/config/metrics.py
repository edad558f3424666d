"""The registry of metrics, and what a plan needs to know of the metrics of an experiment.

A metric is a :class:`genrep_dist.evaluation.metrics.base.Metric`. The registry stands here, below the metrics, so that an experiment can
be validated and planned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from genrep_dist.config.field_errors import Location, describe_fields, first_expectation
from genrep_dist.errors import ConfigError, ExtensionError, PlanError
from genrep_dist.extension import extension_code, require_returned, returned
from genrep_dist.registry import Registry

if TYPE_CHECKING:
    from genrep_dist.config.experiment import Experiment


@dataclass(frozen=True)
class RequestCount:
    """Models that are requested for one seed.

    ``per_method``: retrained models for each method; ``originals_per_method``: requests with nothing removed, for each method; ``shared``:
    retrained models that all methods share.
    """

    per_method: int = 0
    originals_per_method: int = 0
    shared: int = 0

    def __add__(self, other: RequestCount) -> RequestCount:
        return RequestCount(
            self.per_method + other.per_method, self.originals_per_method + other.originals_per_method, self.shared + other.shared
        )


METRICS: Registry[Any] = Registry(
    "metric",
    "genrep_dist.metrics",
    "genrep_dist.evaluation.metrics.base:Metric",
    instances=True,
    check="genrep_dist.evaluation.tables:check_names",
)
for _name, _class in (
    ("deletion", "deletion:Deletion"),
    ("lds", "lds:LinearDatamodeling"),
    ("loo", "loo:LeaveOneOut"),
    ("relabel", "relabel:Relabelling"),
    ("brittleness", "brittleness:Brittleness"),
    ("mislabel", "mislabel:Mislabel"),
):
    METRICS.register(_name, f"genrep_dist.evaluation.metrics.{_class}")


def measured_numbers(experiment: Experiment) -> dict[str, tuple[str, ...]]:
    """Names of the numbers that the experiment measures, by metric, in the order of the registry.

    A metric that the experiment does not name is left out if its own code fails.
    """
    found = {}
    for metric in METRICS.usable():
        try:
            names = returned(tuple, metric, "measured", metric.measured(experiment))
        except ExtensionError:
            if metric.name in experiment.metrics:
                raise
            continue
        known = [number.name for number in metric.numbers]
        require_returned(set(names) <= set(known), metric, "measured", f"some of {', '.join(known)}", names)
        if names:
            found[metric.name] = names
    return found


def measured_metrics(experiment: Experiment) -> tuple[Any, ...]:
    """The metrics that the experiment measures, in the order of the registry."""
    return tuple(METRICS.get(name) for name in measured_numbers(experiment))


def request_count(metric: Any, experiment: Experiment, num_train: int) -> RequestCount:
    """At most so many models a metric requests for one seed."""
    return returned(RequestCount, metric, "count_requests", metric.count_requests(experiment, num_train))


def requested_retrainings(experiment: Experiment, num_train: int) -> RequestCount:
    """Models that all metrics of the experiment request for one seed, if no two removed sets coincide."""
    return sum((request_count(metric, experiment, num_train) for metric in measured_metrics(experiment)), RequestCount())


def retrain_policy(metric: Any, experiment: Experiment) -> str:
    """The retrain policy that a measured metric declares; "same" if its settings have none."""
    return str(getattr(metric.settings(experiment), "retrain", "same"))


def changes_weights(metric: Any, experiment: Experiment) -> bool:
    """Whether a measured metric trains models on samples with other weights than 0 and 1."""
    return float(getattr(metric.settings(experiment), "weight", 0.0)) != 0


def largest_removal(experiment: Experiment, num_train: int) -> int:
    """Samples in the largest set that any metric removes."""
    metrics = measured_metrics(experiment)
    return max((returned(int, m, "largest_removal", m.largest_removal(experiment, num_train)) for m in metrics), default=0)


def check_feasible(experiment: Experiment, num_train: int) -> None:
    """Raise PlanError for a metric that cannot be measured on ``num_train`` training samples."""
    for metric in measured_metrics(experiment):
        metric.check_feasible(experiment, num_train)


def check_loss(experiment: Experiment, loss_name: str, has_classes: bool) -> None:
    """Raise PlanError for a metric that needs a predicted class, if the outputs of the loss are not those of classes."""
    for metric in measured_metrics(experiment):
        if metric.needs_classes and not has_classes:
            raise PlanError(
                f"{metric.name} needs a predicted class, and this loss has no classes",
                where=metric.name,
                expected="the loss 'logistic' or 'softmax'",
                got=loss_name,
            )


def needs_self_influence(experiment: Experiment) -> bool:
    """Whether a metric of the experiment reads phi(x_i -> x_i) of the training samples."""
    return any(metric.needs_self_influence for metric in measured_metrics(experiment))


def check_top(experiment: Experiment, num_train: int) -> None:
    """Raise PlanError for what the strongest scores alone do not give: a metric of all scores, or a removal of more samples."""
    top = experiment.attributions.top
    if top is None:
        return
    whole = [metric.name for metric in measured_metrics(experiment) if metric.needs_all_scores]
    if whole:
        raise PlanError(
            f"{', '.join(whole)} need{'s' if len(whole) == 1 else ''} the scores of all training samples, and only the strongest are kept",
            where="attributions.top",
            expected=f"no attributions.top with {', '.join(whole)}",
            got=f"attributions.top: {top}",
            remedy="remove attributions.top, or measure this in an experiment of its own: both use the same models of one store",
        )
    largest = largest_removal(experiment, num_train)
    if largest > top:
        raise PlanError(
            "fewer of the strongest scores are kept than the largest removal takes",
            where="attributions.top",
            expected=f"at least {largest}, the samples of the largest removal",
            got=str(top),
            remedy="raise attributions.top, or remove fewer samples",
        )


def metric_warnings(experiment: Experiment, num_train: int) -> list[str]:
    """What limits the reading of the metrics' numbers with ``num_train`` training samples, each a sentence or two."""
    found = []
    for metric in measured_metrics(experiment):
        found += returned(list, metric, "warnings", metric.warnings(experiment))
        found += returned(list, metric, "size_warnings", metric.size_warnings(experiment, num_train))
    return found


def only_metric(experiment: Experiment, metric_name: str) -> Experiment:
    """The experiment with all metrics switched off but the one that measures ``metric_name``."""
    for name, numbers in measured_numbers(experiment).items():
        if metric_name not in numbers:
            experiment = METRICS.get(name).disabled(experiment)
    return experiment


def with_metric_settings(experiment: Experiment, metric_name: str, settings: Mapping[str, Any], above: Location = ()) -> Experiment:
    """The experiment with other ``settings`` of the metric that measures ``metric_name``.

    ValueError for settings that it refuses: the field, below ``above``, and what is expected.
    """
    metric = next(METRICS.get(name) for name, numbers in measured_numbers(experiment).items() if metric_name in numbers)
    current = metric.settings(experiment)
    complete = _validated(type(current), {**current.model_dump(mode="json", by_alias=True), **settings})
    if isinstance(complete, ValidationError):
        raise ValueError(first_expectation(complete, type(current), above))
    if metric.section is None:
        return experiment.with_fixed_seeds(**{metric.name: complete})
    section = {**experiment.metrics[metric.name], **complete}  # may name the metric's class
    return experiment.with_fixed_seeds(metrics={**experiment.metrics, metric.name: section})


def complete_settings(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The field ``metrics`` of an experiment with all defaults filled in, as plain data.

    Raises ValueError for a metric that is not known, for one whose settings are another field of the experiment, and for settings that
    the metric's own section refuses.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, settings in sections.items():
        own = dict(settings)
        target = own.pop("class", None)
        if str(target).partition(":")[0] == "__main__":
            raise ValueError("a class in a file that other processes can import, module:Class, and not one of the script that runs")
        if target is None and name not in METRICS:
            known = [metric.name for metric in METRICS.usable() if metric.section is not None]
            raise ValueError(f"registered metrics ({', '.join(known) or 'none'}), or `class: module:Class` with that metric's name")
        try:
            metric = METRICS.get(name) if target is None else METRICS.register_loaded(name, str(target))
        except ConfigError as error:
            raise ValueError(f"an importable metric; {error.what}; {error.got}") from error
        if metric.section is None:
            raise ValueError(f"metrics of other packages; {name} is measured by a field of its own")
        complete = _validated(metric.section, own)
        if isinstance(complete, ValidationError):
            raise ValueError("; ".join(describe_fields(complete, metric.section, (name,))))
        found[name] = ({} if target is None else {"class": target}) | complete
    return found


def _validated(section: Any, settings: Mapping[str, Any]) -> dict[str, Any] | ValidationError:
    """The ``settings`` of one metric with all defaults, as plain data; or why its ``section`` refuses them."""
    with extension_code(section, "model_validate"):
        try:
            complete: dict[str, Any] = section.model_validate(settings).model_dump(mode="json", by_alias=True)
            return complete
        except ValidationError as error:
            return error
