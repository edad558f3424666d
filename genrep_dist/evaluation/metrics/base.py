"""What a metric is: which retrained models it requests, and how points are computed from their outputs.

A metric of another package is a subclass of :class:`Metric` that is passed to :func:`register`, named in the entry-point group
``genrep_dist.metrics``, or named in an experiment file (``metrics: {my_metric: {class: my_module:MyMetric}}``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from genrep_dist.config.experiment import Experiment
from genrep_dist.config.metrics import METRICS, RequestCount
from genrep_dist.config.section import Section
from genrep_dist.core.policies import RetrainPolicy
from genrep_dist.extension import Extension

Array = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
Sign = Literal["negative", "positive"]
Columns = Mapping[str, type[pl.DataType]]

RESULTS_VERSION = 2
"""Version of the published tables. Results of another version are published again from the ledger at the next run."""

POINTS_SCHEMA: dict[str, type[pl.DataType]] = {
    "metric": pl.String,
    "method": pl.String,
    "seed": pl.Int64,
    "test_id": pl.Int64,  # null for a metric that is about no test point
    "value": pl.Float64,  # finite
}
"""The points table, sorted by metric, method, seed and test_id: every mean, interval, comparison and rank is computed from it."""

REQUEST_SCHEMA: dict[str, type[pl.DataType]] = {
    "metric": pl.String,
    "seed": pl.Int64,
    "method": pl.String,
    "test_id": pl.Int64,
    "output_position": pl.Int64,
    "sign": pl.String,
    "fraction": pl.Float64,
    "replicate": pl.Int64,
    "num_removed": pl.Int64,
    "key": pl.String,
    "original_key": pl.String,
    "subset": pl.Int64,
}
"""The table of retrain requests: one row a requested model.

``key`` and ``original_key`` are the ledger's keys of the retrained model and of the original model (nothing removed). ``num_removed``
counts all samples of the change, also those with another weight or label.
``output_position`` indexes the ledger's flattened outputs: test row * C + class, or T * C + number of the point for a target that is not
an output.
"""
REQUEST_NULLABLE = ("method", "test_id", "output_position", "sign", "fraction", "subset")


@dataclass(frozen=True)
class MetricInfo:
    """One published number: a value for each (method, seed, test point), or for each (method, seed) if not ``about_points``.

    ``name`` is its value in the column ``metric`` of all tables. ``title`` heads a column of a report, ``explanation`` is a sentence below
    the table. ``chance`` is the value of scores without information. ``effect``: the verb of what a good method does to the prediction
    ("raise"), for the report's headline. ``is_main``: the paper's own metric, of which the pooled interval is shown and each seed's value
    is sent to the tracker.
    """

    name: str
    title: str
    better: Literal["larger", "smaller"]
    explanation: str
    about_points: bool = True
    chance: float = 0.0
    effect: str = ""
    is_main: bool = False

    @property
    def direction(self) -> int:
        """1 if larger values are better, -1 if smaller values are."""
        return 1 if self.better == "larger" else -1


@dataclass(frozen=True)
class TableSpec:
    """Columns of a published table, those that may hold nulls, and the version in the file's metadata."""

    columns: Columns
    nullable: tuple[str, ...] = ()
    version: int = RESULTS_VERSION

    def empty(self) -> pl.DataFrame:
        """The table without rows."""
        return pl.DataFrame(schema=dict(self.columns))


@dataclass(frozen=True)
class CurvePlot:
    """Curves of the methods over a share of the training set, for the report and the tracker.

    ``frame`` has the columns method, share (0 to 1), mean, low and high; ``low`` and ``high`` bound the 95% interval of each point, or are
    null. ``metric`` names the number that summarises the curve, with which it is shown; None: it is shown after all numbers of its metric.
    ``reference``: a line at zero, or the diagonal of scores without information. ``logged_as``: its name in the tracker, if it is logged.
    """

    name: str
    frame: pl.DataFrame
    heading: str
    explanation: str
    caption: str
    alt_text: str
    x_label: str
    y_label: str
    metric: str | None = None
    reference: Literal["zero", "diagonal"] = "zero"
    logged_as: str | None = None


@dataclass(frozen=True)
class TestPoint:
    """A test point of one seed, or a group of them that is explained by its mean.

    ``row`` is its row in the test set (of a group: of its first member), ``output_position`` the place of the explained number in
    :attr:`EvaluationData.ledger`: row * C + explained class for an output, behind all outputs for any other number.
    ``supporting_sign``: the sign of the scores of training samples that support the predicted class.
    """

    __test__ = False

    row: int
    test_id: int
    output_position: int
    supporting_sign: Sign


@dataclass(frozen=True)
class RetrainRequest:
    """One model that a metric needs: trained without the samples ``removed`` (k,), by a retrain policy.

    The other fields identify the request; they come back as columns of :data:`REQUEST_SCHEMA` in :attr:`EvaluationData.requests`. A metric
    uses those that it needs; ``subset`` is any number of its own. ``weights`` and ``labels`` by id are of samples that stay, with another
    weight in the loss (0 is a removal), or another target: a number, or the numbers of a target of several.
    """

    removed: Ids
    policy: RetrainPolicy = "same"
    replicate: int = 0
    method: str | None = None
    test_id: int | None = None
    output_position: int | None = None
    sign: Sign | None = None
    fraction: float | None = None
    subset: int | None = None
    weights: Mapping[int, float] = field(default_factory=dict)
    labels: Mapping[int, float | Sequence[float]] = field(default_factory=dict)


class SeedData(Protocol):
    """One seed of an experiment: N training samples, M test points, C outputs."""

    @property
    def seed(self) -> int: ...
    @property
    def train_ids(self) -> Ids:
        """Ids of the training samples (N,)."""

    @property
    def points(self) -> Sequence[TestPoint]:
        """The seed's M test points."""

    @property
    def num_outputs(self) -> int:
        """C."""

    def scores(self, method: str) -> Array:
        """Phi (N, M); positive: the training sample raises the explained output."""

    def removal_order(self, method: str, sign: Sign) -> Ids:
        """Ids (M, N) of the training samples, the strongest scores of that sign first; of equal scores the lowest id."""

    @property
    def labels(self) -> Ids | None:
        """The class numbers of the training samples (N,); None if their targets are others."""

    def score_changes(self, method: str, labels: Mapping[int, float]) -> Array | None:
        """What is added to :meth:`scores` (N, M) if samples have other ``labels`` by id, with all outputs and K as they are.

        None for a method whose importances do not follow from outputs and labels.
        """

    def self_influence(self, method: str) -> Array | None:
        """phi(x_i -> x_i) (N,) for the output of each sample's own label; None for a method for which it is not known."""


@dataclass(frozen=True)
class EvaluationData:
    """What a metric's points are computed from.

    ``requests``: the metric's rows of the request table. ``ledger``: a lazy frame with ``key`` and ``outputs`` (list of T * C floats) of
    all trained models, T test samples; where another number than an output is explained, the numbers of the seed's points follow, and only
    requested models are there. ``flipped_ids``: ids of training samples whose labels were changed on purpose.
    """

    experiment: Experiment
    requests: pl.DataFrame
    ledger: pl.LazyFrame
    seeds: Mapping[int, SeedData]
    flipped_ids: frozenset[int] = frozenset()


@dataclass(frozen=True)
class MetricTables:
    """What a metric measured: ``points`` by :data:`POINTS_SCHEMA` in any order, and its own tables by name (:attr:`Metric.tables`)."""

    points: pl.DataFrame
    tables: Mapping[str, pl.DataFrame] = field(default_factory=dict)


class Metric(Extension, ABC):
    """A metric: its numbers, the models that it requests, and how points are computed from their outputs.

    A class without arguments; it holds no state. ``name`` names its requests and its settings in the field ``metrics`` of an experiment,
    which are validated by ``section``; None: they are the field of that name. Without settings it is not measured. ``title`` heads its
    table in the report. ``numbers`` describe the numbers that it publishes. ``tables`` are the tables of its own that it publishes as
    ``{name}.parquet``; metrics may share one. ``version`` enters the experiment's digest: raise it when the metric's numbers change.
    """

    name: str
    title: str
    numbers: tuple[MetricInfo, ...]
    tables: Mapping[str, TableSpec] = {}
    section: type[Section] | None = Section
    version: int = 1
    needs_classes: bool = False
    """Whether it needs a loss whose outputs are those of classes."""
    needs_all_scores: bool = True
    """Whether it reads :meth:`SeedData.scores`, which are not there where only the strongest are kept (``attributions.top``)."""
    needs_self_influence: bool = False
    """Whether it reads :meth:`SeedData.self_influence`."""

    def settings(self, experiment: Experiment) -> Any:
        """Its settings in the experiment; None if it is not measured."""
        if self.section is None:
            return getattr(experiment, self.name)
        given = experiment.metrics.get(self.name)
        return None if given is None else self.section.model_validate({key: value for key, value in given.items() if key != "class"})

    def measured(self, experiment: Experiment) -> tuple[str, ...]:
        """Names of its numbers that the experiment measures."""
        return () if self.settings(experiment) is None else tuple(number.name for number in self.numbers)

    def disabled(self, experiment: Experiment) -> Experiment:
        """The experiment without this metric."""
        if self.section is None:
            return experiment.with_fixed_seeds(**{self.name: None})
        return experiment.with_fixed_seeds(metrics={name: given for name, given in experiment.metrics.items() if name != self.name})

    # -- planning: called for experiments that measure it -----------------------------------------------------------------------

    def check_feasible(self, experiment: Experiment, num_train: int) -> None:
        """Raise PlanError if it cannot be measured on ``num_train`` training samples."""
        return

    def count_requests(self, experiment: Experiment, num_train: int) -> RequestCount:
        """At most so many models are requested for one seed. A metric that requests more is refused."""
        return RequestCount()

    def largest_removal(self, experiment: Experiment, num_train: int) -> int:
        """Samples in the largest removed set."""
        return 0

    def warnings(self, experiment: Experiment) -> list[str]:
        """What limits the reading of its numbers, each a sentence or two."""
        return []

    def size_warnings(self, experiment: Experiment, num_train: int) -> list[str]:
        """The same, of what shows with ``num_train`` training samples only."""
        return []

    # -- requests and points ----------------------------------------------------------------------------------------------------

    def method_requests(self, experiment: Experiment, data: SeedData, method: str) -> Iterable[RetrainRequest]:
        """The models that it needs for the scores of one method."""
        return ()

    def shared_requests(self, experiment: Experiment, data: SeedData) -> Iterable[RetrainRequest]:
        """The models of one seed that it needs for all methods."""
        return ()

    @abstractmethod
    def evaluate(self, data: EvaluationData) -> MetricTables:
        """Points, and its own tables. A method with any value needs one for each seed and each of the seed's test points."""

    # -- presentation -----------------------------------------------------------------------------------------------------------

    def curves(self, tables: Mapping[str, pl.DataFrame]) -> Sequence[CurvePlot]:
        """The curves that the report shows, from the published tables."""
        return ()

    def facts(self, experiment: Experiment, num_train: int, tables: Mapping[str, pl.DataFrame]) -> dict[str, str]:
        """How it was measured, label to value."""
        return {}


def register(metric: type[Metric]) -> type[Metric]:
    """Add a metric to the registry; usable as a class decorator. Raises ConfigError if a name of its is taken or cannot be used."""
    METRICS.register_loaded(metric.name, metric)
    return metric


def registered_metrics() -> list[Metric]:
    """All metrics that can be used, in the order of the registry."""
    return METRICS.usable()


def metric_infos() -> dict[str, MetricInfo]:
    """All published numbers by name, in the order of the registry."""
    return {number.name: number for metric in registered_metrics() for number in metric.numbers}


def metric_info(name: str) -> MetricInfo:
    """The published number of that name. KeyError if no registered metric has it."""
    return metric_infos()[name]
