"""The retrain requests of all metrics: one row for every model that a metric needs, and the distinct retrainings behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt
import polars as pl

from genrep_dist.config.metrics import measured_metrics, request_count, requested_retrainings
from genrep_dist.core.changes import Change
from genrep_dist.core.function_targets import FunctionTarget
from genrep_dist.core.policies import RetrainPolicy
from genrep_dist.core.targets import LABEL
from genrep_dist.errors import CorruptError, PlanError, StoreError
from genrep_dist.evaluation.metrics.base import (
    REQUEST_SCHEMA,
    Array,
    Ids,
    Metric,
    RetrainRequest,
    Sign,
    TestPoint,
)
from genrep_dist.extension import require_returned
from genrep_dist.plan import Plan, direct_terms, has_self_influence
from genrep_dist.store import Store
from genrep_dist.store.paths import ExperimentPaths
from genrep_dist.store.tables import scan_frame
from genrep_dist.units import Retraining
from genrep_dist.workflow.diagonals import self_influence_of

if TYPE_CHECKING:
    from genrep_dist.workflow.context import WorkerContext


@dataclass(frozen=True)
class RetrainRequests:
    """``table`` by :data:`~genrep_dist.evaluation.metrics.base.REQUEST_SCHEMA`; ``retrainings``: the distinct ones by key.

    ``retrainings`` is empty if the ledger has all of them.
    """

    table: pl.DataFrame
    retrainings: dict[str, Retraining]

    @property
    def num_retrainings(self) -> int:
        """The distinct models of a changed training set."""
        return self.table.filter(pl.col("num_removed") > 0)["key"].n_unique()


@dataclass(frozen=True)
class StoredSeed:
    """One seed's data, read from the store when a metric asks for it (:class:`~genrep_dist.evaluation.metrics.base.SeedData`).

    ``test_ids``: ids of all test samples (T,). ``outputs`` (T, C) of the original model; None: those of its artifact. ``open_context``
    loads the problem's own code, which only self-influence needs.
    """

    plan: Plan
    store: Store
    seed: int
    train_ids: Ids
    test_ids: Ids
    outputs: npt.NDArray[np.floating[Any]] | None = None
    open_context: Callable[[], WorkerContext] | None = None
    _orders: dict[tuple[str, Sign], Ids] = field(default_factory=dict)

    @property
    def num_outputs(self) -> int:
        return self.plan.shape.num_outputs

    @cached_property
    def points(self) -> list[TestPoint]:
        from genrep_dist.workflow.data import target_labels
        from genrep_dist.workflow.targets import is_output

        outputs = self.outputs
        if outputs is None:
            outputs = self.store.artifact("train", self.plan.keys.train(self.seed)).read("outputs_test")
        keys, experiment = self.plan.keys, self.plan.experiment
        rows, target = keys.explained_rows(self.seed), experiment.make_target()
        labels = target_labels(self.store, keys.data, "test", self.num_outputs) if LABEL in (target.output, target.default_output) else None
        chosen = target.explained_outputs(outputs[rows], None if labels is None else labels[rows])
        if is_output(experiment):
            places = np.asarray(rows) * self.num_outputs + chosen
        else:
            places = len(outputs) * self.num_outputs + np.arange(len(rows))
        predicted = outputs[rows, 0] > 0 if self.num_outputs == 1 else outputs[rows].argmax(axis=1)
        # A raw output is that of class 1, where it is the only one.
        classes = chosen if self.num_outputs > 1 or isinstance(target, FunctionTarget) else np.ones_like(chosen)
        signs: list[Sign] = ["positive" if target.supports(int(c), int(p)) else "negative" for c, p in zip(classes, predicted, strict=True)]
        described = zip(rows, self.test_ids[rows].tolist(), places.tolist(), signs, strict=True)
        return [TestPoint(*one) for one in described]

    def scores(self, method: str) -> Array:
        """Phi (N, M). PlanError where only the strongest scores are kept."""
        if self.plan.top is not None:
            raise PlanError(
                "a metric reads the scores of all training samples, and only the strongest are kept",
                where="attributions.top",
                expected="a metric that declares needs_all_scores, which is then refused before anything is computed",
                got=f"attributions.top: {self.plan.experiment.attributions.top}",
                remedy="remove attributions.top, or correct the metric",
            )
        phi: Array = self._attribution(method, "phi")
        return phi

    def removal_order(self, method: str, sign: Sign) -> Ids:
        """Ids (M, N) of training samples."""
        if (method, sign) not in self._orders:
            # One method at a time: the orders of all methods together can be larger than memory.
            for key in [key for key in self._orders if key[0] != method]:
                del self._orders[key]
            self._orders[method, sign] = self._attribution(method, f"order_{sign}")
        return self._orders[method, sign]

    @cached_property
    def labels(self) -> Ids | None:
        from genrep_dist.workflow.data import target_labels

        return target_labels(self.store, self.plan.keys.data, "train", self.num_outputs)

    def score_changes(self, method: str, labels: Mapping[int, float]) -> Array | None:
        from genrep_dist.workflow.relabelling import score_changes

        parsed = self.plan.experiment.method(method)
        if parsed.is_random:
            return np.where(np.isin(self.train_ids, list(labels))[:, None], self.scores(method), 0.0)
        if self.open_context is None or not parsed.follows_labels:
            return None
        direct = bool(direct_terms(self.plan.keys, self.plan.shape, parsed))
        found: Array = score_changes(parsed, self.seed, self.open_context(), labels, direct=direct).numpy()
        return found

    def self_influence(self, method: str) -> Array | None:
        """phi(x_i -> x_i) (N,)."""
        parsed = self.plan.experiment.method(method)
        if self.open_context is None or not has_self_influence(self.plan.keys, parsed):
            return None
        values: Array = self_influence_of(parsed, self.seed, self.open_context()).numpy()
        return values

    def _attribution(self, method: str, name: str) -> npt.NDArray[Any]:
        key = self.plan.keys.attribution(self.seed, self.plan.experiment.method(method))
        return self.store.artifact("attribution", key).read(name)


def retrain_requests(plan: Plan, store: Store, train_ids: Ids, test_ids: Ids) -> RetrainRequests:
    """The requests of all metrics, from committed attributions; ``train_ids`` (N,) and ``test_ids`` (T,) of all samples.

    Raises PlanError if a metric requests more models than it declared to the planner.
    """
    collected = _Requests(plan)
    for seed in plan.experiment.seeds:
        data = StoredSeed(plan, store, seed, train_ids, test_ids)
        for method in plan.experiment.methods:
            collected.add_method(data, method)
        collected.add_shared(data)
    return RetrainRequests(pl.DataFrame(collected.rows, schema=REQUEST_SCHEMA, orient="row"), collected.retrainings)


def requests_path(plan: Plan) -> str:
    """Where the request table is stored; every experiment has its own."""
    return ExperimentPaths(plan.experiment.name).requests(plan.keys.results)


def read_requests(plan: Plan, store: Store, columns: Sequence[str] | None = None) -> pl.LazyFrame:
    """The request table that the run has written, or some of its ``columns``. StoreError before it is written."""
    return scan_frame(store.objects, requests_path(plan), columns=columns)


def finished_requests(plan: Plan, store: Store) -> RetrainRequests | None:
    """The requests that an earlier start of this run has written, if the ledger has all of their models; else None.

    The table follows from the experiment's digest, which names it. Making it again takes most of the time of a restart.
    """
    if not store.objects.exists(requests_path(plan)):
        return None
    table = read_requests(plan, store).collect()
    if table.schema != pl.Schema(REQUEST_SCHEMA):  # of another version
        return None
    keys = set(table["key"]) | set(table["original_key"])
    return RetrainRequests(table, {}) if keys <= store.ledger(plan.keys.training).keys() else None


@dataclass(frozen=True)
class RetrainingCount:
    """``keys`` of the distinct retrainings that are known before a run; ``more``: an upper bound of those that are not known yet."""

    keys: frozenset[str]
    more: int


def count_retrainings(plan: Plan, store: Store) -> RetrainingCount:
    """The retrainings of a run that has not begun, from the data and scores in the store. Nothing is computed."""
    from genrep_dist.workflow.sample_ids import sample_ids

    keys = plan.keys
    try:
        ids = sample_ids(store, keys.data, "train"), sample_ids(store, keys.data, "test")
    except StoreError:
        return RetrainingCount(frozenset(), plan.retrainings_at_most)
    collected, more = _Requests(plan), 0
    per_method = requested_retrainings(plan.experiment, plan.shape.num_train).per_method
    originals = _original_outputs(plan, store)
    for seed in plan.experiment.seeds:
        data = StoredSeed(plan, store, seed, *ids, originals.get(seed))
        for method in plan.experiment.methods:
            address = keys.attribution(seed, plan.experiment.method(method))
            if seed not in originals or not store.artifact("attribution", address).is_committed():
                more += per_method
                continue
            try:
                collected.add_method(data, method)
            except CorruptError:  # the run computes it again
                more += per_method
        collected.add_shared(data)
    return RetrainingCount(frozenset(collected.retrainings), more)


def _original_outputs(plan: Plan, store: Store) -> Mapping[int, npt.NDArray[np.float64]]:
    """Outputs (T, C) of the original models in the ledger, by seed; also of those that were trained for other checkpoints."""
    seeds = {plan.keys.retraining(seed, (), "same"): seed for seed in plan.experiment.seeds}
    ledger = store.ledger(plan.keys.training).scan().filter(pl.col("num_removed") == 0).select("key", "outputs").collect()
    found = {seeds[key]: outputs for key, outputs in ledger.iter_rows() if key in seeds}
    return {seed: np.asarray(outputs).reshape(-1, plan.shape.num_outputs) for seed, outputs in found.items()}


class _Requests:
    """Collects rows of the request table and distinct retrainings."""

    def __init__(self, plan: Plan) -> None:
        self._keys = plan.keys
        self._experiment = plan.experiment
        self._num_train = plan.shape.num_train
        self._train_ids: Ids = np.empty(0, dtype=np.int64)
        """Those of all training samples, ascending."""
        self._shared: dict[int, int] = {}
        """Each removed id by itself: the removed sets share the objects, which take four times as much as references to them."""
        self._original_keys: dict[tuple[int, str], str] = {}
        self._metrics: tuple[Metric, ...] = measured_metrics(plan.experiment)
        self.rows: list[dict[str, Any]] = []
        self.retrainings: dict[str, Retraining] = {}

    def add_method(self, data: StoredSeed, method: str) -> None:
        requests: list[tuple[str, RetrainRequest]] = []
        for metric in self._metrics:
            count = request_count(metric, self._experiment, self._num_train)
            found = list(metric.method_requests(self._experiment, data, method))
            _check_requests(metric, "method_requests", found, count.per_method + count.originals_per_method)
            requests += [(metric.name, request) for request in found]
        # The requests of one test point are adjacent, so that one task trains models that remove similar sets.
        rank: dict[int | None, int] = {point.test_id: number for number, point in enumerate(data.points)}
        for name, request in sorted(requests, key=lambda named: rank.get(named[1].test_id, len(rank))):
            self._add(name, data, request)

    def add_shared(self, data: StoredSeed) -> None:
        for metric in self._metrics:
            found = list(metric.shared_requests(self._experiment, data))
            _check_requests(metric, "shared_requests", found, request_count(metric, self._experiment, self._num_train).shared)
            for request in found:
                self._add(metric.name, data, request)

    def _change(self, metric: str, data: StoredSeed, request: RetrainRequest) -> Change:
        """The requested change. Raises PlanError for one that no model can be trained with."""
        if not len(self._train_ids):
            self._train_ids = np.sort(data.train_ids)
        removed = request.removed.tolist()
        if not request.weights and not request.labels:
            self._check(metric, data, removed)
            return Change(tuple(self._shared.setdefault(sample, sample) for sample in sorted(removed)))
        change = Change.of(removed, request.weights, request.labels)
        self._check(metric, data, change.removed)
        unknown = self._unknown(change.samples)
        twice = sorted(set(removed) & request.weights.keys() | set(change.removed) & request.labels.keys())
        numbers = [*request.weights.values(), *(number for _, label in change.labels for number in label)]
        if unknown or twice or not np.isfinite(numbers).all() or min(request.weights.values(), default=0) < 0:
            raise PlanError(
                "a metric requests a model with a change that cannot be made",
                where=f"{metric}, seed {data.seed}",
                expected="weights of 0 or more and finite labels, of training samples that are not removed",
                got=f"unknown ids {unknown[:5]}" if unknown else f"ids {twice[:5]} are also removed" if twice else f"{numbers[:5]}",
                remedy="correct the requests of the metric",
            )
        return change

    def _check(self, metric: str, data: StoredSeed, removed: Sequence[int]) -> None:
        """Raise PlanError for a removed set that no model can be trained without."""
        distinct, unknown = set(removed), self._unknown(removed)
        if unknown or len(distinct) != len(removed) or len(removed) >= self._num_train:
            raise PlanError(
                "a metric requests a model without samples that cannot be removed",
                where=f"{metric}, seed {data.seed}",
                expected=f"different ids of training samples, fewer than {self._num_train}",
                got=f"unknown ids {unknown[:5]}" if unknown else f"{len(removed)} ids, {len(distinct)} of them different",
                remedy="correct the requests of the metric",
            )

    def _unknown(self, samples: Iterable[int]) -> list[int]:
        """Those of ``samples`` that are no ids of training samples, ascending."""
        given = np.unique(np.fromiter(samples, dtype=np.int64))
        places = np.searchsorted(self._train_ids, given).clip(max=len(self._train_ids) - 1)
        unknown: list[int] = given[self._train_ids[places] != given].tolist()
        return unknown

    def _add(self, metric: str, data: StoredSeed, request: RetrainRequest) -> None:
        seed = data.seed
        change = self._change(metric, data, request)
        key = self._keys.retraining(seed, change, request.policy, request.replicate)
        if (seed, request.policy) not in self._original_keys:
            self._original_keys[seed, request.policy] = self._keys.retraining(seed, (), request.policy)
        if change and key not in self.retrainings:
            self.retrainings[key] = Retraining(key, seed, request.policy, change.removed, request.replicate, change.weights, change.labels)
        self.rows.append(
            {
                "metric": metric,
                "seed": seed,
                "method": request.method,
                "test_id": request.test_id,
                "output_position": request.output_position,
                "sign": request.sign,
                "fraction": request.fraction,
                "replicate": request.replicate,
                "num_removed": len(change),
                "key": key,
                "original_key": self._original_keys[seed, request.policy],
                "subset": request.subset,
            }
        )


_OPTIONAL: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("method", "sign"), str),
    **dict.fromkeys(("test_id", "output_position", "subset"), (int, np.integer)),
    "fraction": (int, float, np.floating),
}


def _has_numbers(request: RetrainRequest) -> bool:
    """Whether weights and labels are numbers by id."""
    if not all(isinstance(given, Mapping) for given in (request.weights, request.labels)):
        return False
    try:
        Change.of((), request.weights, request.labels)
    except (TypeError, ValueError):
        return False
    return True


def _check_requests(metric: Metric, method: str, found: Sequence[RetrainRequest], declared: int) -> None:
    """Raise ProblemError for what is no request, and PlanError for more than ``declared``."""
    for request in found:
        fits = (
            isinstance(request, RetrainRequest)
            and isinstance(request.removed, np.ndarray)
            and request.removed.ndim == 1
            and (request.removed.dtype.kind in "iu" or not request.removed.size)
            and request.policy in get_args(RetrainPolicy)
            and isinstance(request.replicate, int)
            and _has_numbers(request)
            and all(isinstance(getattr(request, name), (kind, type(None))) for name, kind in _OPTIONAL.items())
        )
        expected = "RetrainRequests with ids (k,) as integers, numbers by id as weights and labels, and fields of their declared types"
        require_returned(fits, metric, method, expected, request)
    if len(found) > declared:
        raise PlanError(
            "a metric requests more models than it declared",
            where=f"metric {metric.name}, count_requests",
            expected=f"at most {declared} requests",
            got=str(len(found)),
            remedy="correct the metric's count_requests: the plan's memory and time are computed from it",
        )
