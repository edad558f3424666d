"""What the metrics ask of the ledger: one row for every trained model and what it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from genrep_dist.config.sections import BrittlenessSection, DeletionSection
from genrep_dist.errors import CorruptError, StoreError
from genrep_dist.evaluation.deletion import ASKED_SCHEMA
from genrep_dist.evaluation.subsets import draw_left_out, draw_subsets
from genrep_dist.plan import Plan
from genrep_dist.store import Store
from genrep_dist.store.paths import ExperimentPaths
from genrep_dist.store.tables import scan_frame
from genrep_dist.units import Retraining
from genrep_dist.workflow.context import sample_ids

Ids = npt.NDArray[np.int64]
Row = dict[str, Any]

TABLE_SCHEMA: dict[str, type[pl.DataType]] = {"metric": pl.String, **ASKED_SCHEMA, "subset": pl.Int64}
"""``metric`` is "deletion", "brittleness", "lds" or "loo". The first two ask for a removal by a method for a test point; the last two
for the model of a subset, whose number is ``subset``, and leave method, test_id, output_position, sign and fraction null."""
NULLABLE = ("method", "test_id", "output_position", "sign", "fraction", "subset")


@dataclass(frozen=True)
class Asked:
    """``table`` by :data:`TABLE_SCHEMA`, and the distinct retrainings behind it, by key; originals are not among them."""

    table: pl.DataFrame
    unique: dict[str, Retraining]

    def of(self, metric: str) -> pl.DataFrame:
        return asked_for(self.table, metric)


def asked_for(table: pl.DataFrame, metric: str) -> pl.DataFrame:
    """The rows of one metric, with the columns that :mod:`genrep_dist.evaluation` takes."""
    rows = table.filter(pl.col("metric") == metric)
    return rows.select("seed", "subset", "replicate", "num_removed", "key") if metric in ("lds", "loo") else rows.select(list(ASKED_SCHEMA))


def asked_path(plan: Plan) -> str:
    """Where the table of everything asked lies; another question has another table."""
    return ExperimentPaths(plan.experiment.name).requests(plan.keys.question)


def read_asked(plan: Plan, store: Store) -> pl.LazyFrame:
    """The table that the run has written; StoreError before it got so far."""
    return scan_frame(store.objects, asked_path(plan))


def ask(plan: Plan, store: Store, train_ids: Ids, test_ids: Ids) -> Asked:
    """Read off the committed attributions, and draw, what the metrics need; ``train_ids`` (N,), ``test_ids`` (T,) of all samples."""
    desk = _Desk(plan, store, train_ids, test_ids)
    for seed in plan.experiment.seeds:
        desk.ask(seed, plan.experiment.methods)
        desk.ask_subsets(seed)
    return Asked(pl.DataFrame(desk.rows, schema=TABLE_SCHEMA, orient="row"), desk.unique)


@dataclass(frozen=True)
class Foreseen:
    """``keys`` of the distinct retrainings that the store can tell already; ``more``: at most so many of what it cannot tell yet."""

    keys: frozenset[str]
    more: int


def foresee(plan: Plan, store: Store) -> Foreseen:
    """Before a run: what will be asked for, as far as the store holds data and scores of it. Nothing is computed."""
    keys, methods = plan.keys, plan.experiment.methods
    try:
        ids = sample_ids(store, keys.data, "train"), sample_ids(store, keys.data, "test")
    except StoreError:
        return Foreseen(frozenset(), plan.retrainings_at_most)
    desk, more = _Desk(plan, store, *ids), 0
    originals = _original_outputs(plan, store)
    for seed in plan.experiment.seeds:
        for name in methods:
            address = keys.attribution(seed, plan.experiment.method(name))
            if seed not in originals or not store.artifact("attribution", address).is_committed():
                more += plan.removals_of_a_method()
                continue
            try:
                desk.ask(seed, [name], originals[seed])
            except CorruptError:  # a run puts it aside and makes it anew
                more += plan.removals_of_a_method()
        desk.ask_subsets(seed)
    return Foreseen(frozenset(desk.unique), more)


def _original_outputs(plan: Plan, store: Store) -> dict[int, npt.NDArray[np.float64]]:
    """Outputs (T, C) of the original models that are in the ledger, by seed: also of those that were trained for other checkpoints."""
    seeds = {plan.keys.retraining(seed, (), "same"): seed for seed in plan.experiment.seeds}
    ledger = store.ledger(plan.keys.training).scan().filter(pl.col("num_removed") == 0).select("key", "outputs").collect()
    found = {seeds[key]: outputs for key, outputs in ledger.iter_rows() if key in seeds}
    return {seed: np.asarray(outputs).reshape(-1, plan.shape.num_outputs) for seed, outputs in found.items()}


class _Desk:
    def __init__(self, plan: Plan, store: Store, train_ids: Ids, test_ids: Ids) -> None:
        self.plan, self.store, self.keys = plan, store, plan.keys
        self.train_ids, self.test_ids = train_ids, test_ids
        self.rows: list[Row] = []
        self.unique: dict[str, Retraining] = {}

    def ask(self, seed: int, methods: Sequence[str], outputs: npt.NDArray[np.floating[Any]] | None = None) -> None:
        """``outputs`` (T, C) of the seed's original model; None: those of its artifact."""
        experiment = self.plan.experiment
        if outputs is None:
            outputs = self.store.artifact("train", self.keys.train(seed)).read("outputs_test")
        points = [Point.of(row, outputs[row], experiment.target.output) for row in self.keys.test_positions(seed)]
        for name in methods:
            artifact = self.store.artifact("attribution", self.keys.attribution(seed, experiment.method(name)))
            orders = {sign: artifact.read(f"order_{sign}") for sign in self._signs()}
            for number, point in enumerate(points):
                for sign in experiment.deletion.signs:
                    self._removals("deletion", experiment.deletion, seed, name, point, sign, orders[sign][number])
                if experiment.brittleness is not None:
                    sign = point.supports
                    self._removals("brittleness", experiment.brittleness, seed, name, point, sign, orders[sign][number])

    def ask_subsets(self, seed: int) -> None:
        for metric, section, masks in subsets(self.plan, seed):
            for subset, mask in enumerate(masks):
                for replicate in range(section.replicates):
                    row = {"metric": metric, "seed": seed, "subset": subset}
                    self._enter(row, seed, self.train_ids[mask], section.retrain, replicate)

    def _signs(self) -> tuple[str, ...]:
        return ("negative", "positive") if self.plan.experiment.brittleness is not None else self.plan.experiment.deletion.signs

    def _removals(
        self, metric: str, section: DeletionSection | BrittlenessSection, seed: int, method: str, point: Point, sign: str, order: Ids
    ) -> None:
        row = {"metric": metric, "seed": seed, "method": method, "test_id": int(self.test_ids[point.row]), "sign": sign}
        cell = point.row * self.plan.shape.num_outputs + point.output
        for fraction, count in section.removals(self.plan.shape.num_train):
            for replicate in range(section.replicates if count else 1):
                place = {**row, "output_position": cell, "fraction": fraction}
                self._enter(place, seed, order[:count], section.retrain, replicate)

    def _enter(self, row: Row, seed: int, removed_ids: Ids, policy: Literal["same", "fresh"], replicate: int) -> None:
        removed = tuple(sorted(removed_ids.tolist()))
        key = self.keys.retraining(seed, removed, policy, replicate)
        if removed and key not in self.unique:
            self.unique[key] = Retraining(key, seed, policy, removed, replicate)
        original = self.keys.retraining(seed, (), policy)
        self.rows.append({**row, "replicate": replicate, "num_removed": len(removed), "key": key, "original_key": original})


def subsets(plan: Plan, seed: int) -> Iterator[tuple[str, Any, npt.NDArray[np.bool_]]]:
    """(metric, its section, what each subset leaves out (J, N)) of the metrics that train on subsets."""
    experiment, num_train = plan.experiment, plan.shape.num_train
    if experiment.lds is not None:
        yield "lds", experiment.lds, draw_subsets(seed, num_train, experiment.lds.subsets, experiment.lds.fraction)
    if experiment.loo is not None:
        yield "loo", experiment.loo, draw_left_out(seed, num_train, experiment.loo.samples)


@dataclass(frozen=True)
class Point:
    """A test point: its row in the test set, the output that is explained, and which samples hold its predicted class up."""

    row: int
    output: int
    supports: Literal["negative", "positive"]

    @classmethod
    def of(cls, row: int, outputs: npt.NDArray[np.floating[Any]], declared: int | str) -> Point:
        """``outputs`` (C,) of the original model. One output is the logit of class 1 against class 0."""
        output = declared if isinstance(declared, int) else int(outputs.argmax())
        explained_is_predicted = bool(outputs[0] > 0) if len(outputs) == 1 else output == int(outputs.argmax())
        return cls(row, output, "positive" if explained_is_predicted else "negative")
