"""The common part of metrics that compare scores with models trained on subsets of the training set."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import polars as pl

from genrep_dist.config.experiment import Experiment
from genrep_dist.config.metrics import RequestCount
from genrep_dist.evaluation.ledger_scores import ledger_scores
from genrep_dist.evaluation.metrics.base import (
    POINTS_SCHEMA,
    Array,
    EvaluationData,
    Metric,
    MetricTables,
    RetrainRequest,
    SeedData,
    TableSpec,
)
from genrep_dist.evaluation.subsets import Mask, noise_ceiling, subset_correlations

CEILINGS = TableSpec(
    # How well replicates agree, and what a perfect method would reach; null where it cannot be known.
    {"metric": pl.String, "seed": pl.Int64, "test_id": pl.Int64, "reliability": pl.Float64, "ceiling": pl.Float64},
    ("reliability", "ceiling"),
)


class SubsetMetric(Metric):
    """A metric with one number, the correlation of predicted with retrained outputs over J subsets, for each test point.

    Its settings are a section with ``retrain``, ``replicates`` and ``weight``, in the experiment's field of the metric's name.
    """

    tables: Mapping[str, TableSpec] = {"ceilings": CEILINGS}
    section = None

    @abstractmethod
    def num_subsets(self, experiment: Experiment) -> int:
        """J, for each seed."""

    @abstractmethod
    def subsets(self, experiment: Experiment, data: SeedData) -> Mask:
        """What each subset leaves out, or changes, bool (J, N)."""

    @abstractmethod
    def description(self, experiment: Experiment) -> str:
        """How it was measured, for people."""

    def request(self, experiment: Experiment, data: SeedData, subset: Mask) -> RetrainRequest:
        """The model of one ``subset``, bool (N,) of what it leaves out."""
        ids, weight = data.train_ids[subset], self.settings(experiment).weight
        return RetrainRequest(ids[:0], weights=dict.fromkeys(ids.tolist(), weight)) if weight else RetrainRequest(ids)

    def scores(self, experiment: Experiment, data: SeedData, method: str) -> Array | None:
        """What each sample adds (N, M) to the outputs while it is not left out; None for a method that says nothing of it."""
        phi = data.scores(method)
        # Samples that are left out with a weight above 1 count for more.
        return phi if self.settings(experiment).weight < 1 else -phi

    def count_requests(self, experiment: Experiment, num_train: int) -> RequestCount:
        return RequestCount(shared=self.num_subsets(experiment) * self.settings(experiment).replicates)

    def shared_requests(self, experiment: Experiment, data: SeedData) -> Iterator[RetrainRequest]:
        settings = self.settings(experiment)
        for subset, mask in enumerate(self.subsets(experiment, data)):
            for replicate in range(settings.replicates):
                request = self.request(experiment, data, mask)
                yield replace(request, policy=settings.retrain, replicate=replicate, subset=subset)

    def evaluate(self, data: EvaluationData) -> MetricTables:
        values: list[dict[str, Any]] = []
        ceilings: list[dict[str, Any]] = []
        replicates, scores = self.settings(data.experiment).replicates, _subset_scores(data)
        for seed, one in data.seeds.items():
            removed = self.subsets(data.experiment, one)
            outputs = scores.filter(pl.col("seed") == seed)["score"].to_numpy().reshape(replicates, len(removed), len(one.points))
            places = [{"metric": self.numbers[0].name, "seed": seed, "test_id": point.test_id} for point in one.points]
            for method in data.experiment.methods:
                phi = self.scores(data.experiment, one, method)
                if phi is None:
                    continue
                correlations, _ = subset_correlations(phi, removed, outputs.mean(axis=0))
                values += [{**place, "method": method, "value": float(value)} for place, value in zip(places, correlations, strict=True)]
            known = noise_ceiling(outputs)
            for point, place in enumerate(places):
                reliability, ceiling = (None, None) if known is None else (float(part[point]) for part in known)
                ceilings.append({**place, "reliability": reliability, "ceiling": ceiling})
        return MetricTables(pl.DataFrame(values, schema=POINTS_SCHEMA), {"ceilings": pl.DataFrame(ceilings, schema=dict(CEILINGS.columns))})

    def facts(self, experiment: Experiment, num_train: int, tables: Mapping[str, pl.DataFrame]) -> dict[str, str]:
        return {self.numbers[0].title: self.description(experiment)}


def _subset_scores(data: EvaluationData) -> pl.DataFrame:
    """The explained output of each model at each of its seed's test points, sorted by seed, replicate, subset and test point."""
    places = [(seed, number, point.output_position) for seed, one in data.seeds.items() for number, point in enumerate(one.points)]
    cells = pl.DataFrame(places, schema={"seed": pl.Int64, "point": pl.Int64, "output_position": pl.Int64}, orient="row")
    wanted = data.requests.select("seed", "subset", "replicate", "key").join(cells, on="seed")
    found = ledger_scores(wanted.select("key", "output_position").unique(), data.ledger)
    return wanted.join(found, on=["key", "output_position"], how="left").sort("seed", "replicate", "subset", "point")
