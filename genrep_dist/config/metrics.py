"""The registry of metrics, and what a plan needs to know of the metrics of an experiment.

A metric is a :class:`genrep_dist.evaluation.metrics.base.Metric`. The registry stands here, below the metrics, so that an experiment can
be validated and planned without importing what computes them: :class:`PlannedMetric` is all that is used of them at that time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import ValidationError

from genrep_dist.config.field_errors import describe_fields
from genrep_dist.config.sections import Section
from genrep_dist.errors import ConfigError, PlanError
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


class PlannedMetric(Protocol):
    """What validation and planning use of a metric; the contracts are those of :class:`~genrep_dist.evaluation.metrics.base.Metric`."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def section(self) -> type[Section] | None: ...
    @property
    def needs_classes(self) -> bool: ...
    @property
    def needs_self_influence(self) -> bool: ...
    def measured(self, experiment: Experiment) -> tuple[str, ...]: ...
    def check_feasible(self, experiment: Experiment, num_train: int) -> None: ...
    def count_requests(self, experiment: Experiment, num_train: int) -> RequestCount: ...
    def largest_removal(self, experiment: Experiment, num_train: int) -> int: ...
    def warnings(self, experiment: Experiment) -> list[str]: ...
    def size_warnings(self, experiment: Experiment, num_train: int) -> list[str]: ...
    def disabled(self, experiment: Experiment) -> Experiment: ...


def _instance(metric: Any) -> PlannedMetric:
    """A metric of its class. Raises TypeError for what is not a class of a metric."""
    if not isinstance(metric, type) or not hasattr(metric, "check_feasible"):
        raise TypeError("not a subclass of Metric")
    built: PlannedMetric = metric()
    return built


METRICS: Registry[PlannedMetric] = Registry("metric", "genrep_dist.metrics", make=_instance)
for _name, _class in (
    ("deletion", "deletion:Deletion"),
    ("lds", "lds:LinearDatamodeling"),
    ("loo", "loo:LeaveOneOut"),
    ("brittleness", "brittleness:Brittleness"),
    ("mislabel", "mislabel:Mislabel"),
):
    METRICS.register(_name, f"genrep_dist.evaluation.metrics.{_class}")


def measured_metrics(experiment: Experiment) -> tuple[PlannedMetric, ...]:
    """The metrics that the experiment measures, in the order of the registry."""
    return tuple(metric for metric in METRICS.values() if metric.measured(experiment))


def requested_retrainings(experiment: Experiment, num_train: int) -> RequestCount:
    """Models that all metrics of the experiment request for one seed, if no two removed sets coincide."""
    return sum((metric.count_requests(experiment, num_train) for metric in measured_metrics(experiment)), RequestCount())


def largest_removal(experiment: Experiment, num_train: int) -> int:
    """Samples in the largest set that any metric removes."""
    return max((metric.largest_removal(experiment, num_train) for metric in measured_metrics(experiment)), default=0)


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


def metric_warnings(experiment: Experiment, num_train: int) -> list[str]:
    """What limits the reading of the metrics' numbers with ``num_train`` training samples, each a sentence or two."""
    metrics = measured_metrics(experiment)
    return [warning for metric in metrics for warning in (*metric.warnings(experiment), *metric.size_warnings(experiment, num_train))]


def only_metric(experiment: Experiment, metric_name: str) -> Experiment:
    """The experiment with all metrics switched off but the one that measures ``metric_name``."""
    for metric in measured_metrics(experiment):
        if metric_name not in metric.measured(experiment):
            experiment = metric.disabled(experiment)
    return experiment


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
            known = [metric.name for metric in METRICS.values() if metric.section is not None]
            raise ValueError(f"registered metrics ({', '.join(known) or 'none'}), or `class: module:Class` with that metric's name")
        try:
            metric = METRICS.get(name) if target is None else _load(name, str(target))
        except ConfigError as error:
            raise ValueError(f"an importable metric; {error.what}; {error.got}") from error
        if metric.name != name:
            raise ValueError(f"the metric's own name, {metric.name}")
        if metric.section is None:
            raise ValueError(f"metrics of other packages; {name} is measured by a field of its own")
        try:
            complete = metric.section.model_validate(own).model_dump(mode="json", by_alias=True)
        except ValidationError as error:
            raise ValueError("; ".join(describe_fields(error, metric.section, (name,)))) from error
        found[name] = ({} if target is None else {"class": target}) | complete
    return found


def _load(name: str, path: str) -> PlannedMetric:
    """Register the class at ``path`` and return its metric; one that cannot be used is not registered."""
    is_new = name not in METRICS
    METRICS.register(name, path)
    usable = False
    try:
        metric = METRICS.get(name)
        usable = metric.name == name
    finally:
        if is_new and not usable:
            METRICS.unregister(name)
    return metric
