"""Metrics as another package would add them: one class, and a registration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import polars as pl
from pydantic import Field

from genrep_dist.config.experiment import Experiment
from genrep_dist.config.metrics import RequestCount
from genrep_dist.config.sections import RetrainSection
from genrep_dist.evaluation.ledger_scores import ledger_scores
from genrep_dist.evaluation.metrics.base import EvaluationData, Metric, MetricInfo, MetricTables, RetrainRequest, SeedData, TableSpec


class SelfRemovalSection(RetrainSection):
    """Settings of :class:`SelfRemoval`."""

    count: int = Field(2, ge=1, description="Samples to remove.")


class SelfRemoval(Metric):
    """Change of the explained outputs after removing the ``count`` samples with the largest mean score; one model a method and seed."""

    name = "self_removal"
    title = "Mean removal"
    numbers = (MetricInfo("mean_drop", "mean drop", "larger", "Mean drop: fall of the prediction after one common removal."),)
    tables: Mapping[str, TableSpec] = {"removed_samples": TableSpec({"seed": pl.Int64, "method": pl.String, "num_removed": pl.Int64})}
    section = SelfRemovalSection

    def count_requests(self, experiment: Experiment, num_train: int) -> RequestCount:
        return RequestCount(per_method=self.settings(experiment).replicates)

    def largest_removal(self, experiment: Experiment, num_train: int) -> int:
        count: int = self.settings(experiment).count
        return count

    def method_requests(self, experiment: Experiment, data: SeedData, method: str) -> Iterator[RetrainRequest]:
        settings = self.settings(experiment)
        strongest = np.argsort(-data.scores(method).mean(axis=1), kind="stable")[: settings.count]
        for replicate in range(settings.replicates):
            yield RetrainRequest(data.train_ids[strongest], settings.retrain, replicate, method=method)

    def evaluate(self, data: EvaluationData) -> MetricTables:
        points = pl.DataFrame(
            [(seed, point.test_id, point.output_position) for seed, one in data.seeds.items() for point in one.points],
            schema={"seed": pl.Int64, "test_id": pl.Int64, "output_position": pl.Int64},
            orient="row",
        )
        wanted = data.requests.drop("test_id", "output_position").join(points, on="seed")
        pairs = [wanted.select(pl.col(key).alias("key"), "output_position") for key in ("key", "original_key")]
        scores = ledger_scores(pl.concat(pairs), data.ledger)
        found = wanted.join(scores.rename({"score": "after"}), on=["key", "output_position"]).join(
            scores.rename({"key": "original_key", "score": "before"}), on=["original_key", "output_position"]
        )
        values = found.group_by("seed", "method", "test_id").agg(value=(pl.col("before") - pl.col("after")).mean())
        removed = data.requests.select("seed", "method", "num_removed").unique().sort("seed", "method")
        return MetricTables(values.with_columns(metric=pl.lit("mean_drop")), {"removed_samples": removed})


class Undeclared(SelfRemoval):
    """Requests more models than it declares."""

    name = "undeclared"
    numbers = (MetricInfo("undeclared_drop", "drop", "larger", "Drop."),)
    tables: Mapping[str, TableSpec] = {}

    def count_requests(self, experiment: Experiment, num_train: int) -> RequestCount:
        return RequestCount()


class Impostor(SelfRemoval):
    """Publishes a number of another metric."""

    name = "impostor"
    numbers = (MetricInfo("lds", "LDS", "larger", "LDS."),)
