"""Brittleness: the smallest removal of a method's strongest supporters that flips the predicted class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from genrep_dist.config.experiment import Experiment
from genrep_dist.config.metrics import RequestCount
from genrep_dist.errors import PlanError, StoreError
from genrep_dist.evaluation.ledger_scores import ledger_scores
from genrep_dist.evaluation.metrics.base import (
    POINTS_SCHEMA,
    EvaluationData,
    Metric,
    MetricInfo,
    MetricTables,
    RetrainRequest,
    SeedData,
    TableSpec,
)
from genrep_dist.evaluation.removals import (
    REMOVAL_COLUMNS,
    check_removals,
    check_requests,
    count_removals,
    largest_count,
    policy_text,
    removal_requests,
    removal_warnings,
    removals_text,
    replicate_means,
    smallest_share_text,
)

TEST_POINT = ("seed", "method", "test_id")


class Brittleness(Metric):
    """Whether one of the declared removals flips the predicted class, and the share of the training set that the smallest one removes."""

    name = "brittleness"
    title = "Brittleness"
    needs_all_scores = False
    numbers = (
        MetricInfo(
            "brittleness_flipped",
            "flipped",
            "larger",
            "Flipped: share of test points whose predicted class changes at one of the declared removals of a method's strongest "
            "supporters; larger is better.",
        ),
        MetricInfo(
            "brittleness_removed",
            "removed to flip",
            "smaller",
            "Removed to flip: smallest declared share of the training set whose removal flips the predicted class. A prediction that "
            "no removal flips counts with the largest share, so this is a lower bound; smaller is better.",
        ),
    )
    # num_removed and fraction of the smallest removal that flips the predicted class; null if none does.
    tables: Mapping[str, TableSpec] = {
        "brittleness": TableSpec(
            {
                "seed": pl.Int64,
                "method": pl.String,
                "test_id": pl.Int64,
                "num_removed": pl.Int64,
                "fraction": pl.Float64,
                "flipped": pl.Boolean,
            },
            ("num_removed", "fraction"),
        )
    }
    section = None
    needs_classes = True

    def check_feasible(self, experiment: Experiment, num_train: int) -> None:
        check_removals(self.name, self.settings(experiment), num_train)
        if largest_count(self.settings(experiment), num_train) == 0:
            raise PlanError(
                "brittleness removes no sample, so no prediction could flip",
                where="brittleness.fractions or brittleness.counts",
                expected=f"a removal of at least one of {num_train} training samples",
                got=removals_text(self.settings(experiment)),
                remedy=f"declare a share of {smallest_share_text(num_train)} or more; or leave brittleness out",
            )

    def size_warnings(self, experiment: Experiment, num_train: int) -> list[str]:
        return removal_warnings(self.name, self.settings(experiment), num_train)

    def count_requests(self, experiment: Experiment, num_train: int) -> RequestCount:
        return count_removals(self.settings(experiment), experiment.num_explained, 1, num_train)

    def largest_removal(self, experiment: Experiment, num_train: int) -> int:
        return largest_count(self.settings(experiment), num_train)

    def method_requests(self, experiment: Experiment, data: SeedData, method: str) -> Iterator[RetrainRequest]:
        for number, point in enumerate(data.points):
            # The class is read from the outputs themselves, whatever number is explained.
            for request in removal_requests(self.settings(experiment), data, method, number, point.supporting_sign):
                yield replace(request, output_position=point.row * data.num_outputs)

    def evaluate(self, data: EvaluationData) -> MetricTables:
        seed = next(iter(data.seeds.values()))
        largest, _ = self.settings(data.experiment).removals(len(seed.train_ids))[-1]
        table = brittleness_table(data.requests, data.ledger, seed.num_outputs)
        return MetricTables(brittleness_points(table, largest), {"brittleness": table})

    def facts(self, experiment: Experiment, num_train: int, tables: Mapping[str, pl.DataFrame]) -> dict[str, str]:
        section = self.settings(experiment)
        return {self.title: f"removed: {removals_text(section)}; {policy_text(section)}"}


def brittleness_table(requests: pl.DataFrame, ledger: pl.LazyFrame, num_outputs: int) -> pl.DataFrame:
    """One row a (seed, method, test_id), sorted by these: num_removed and fraction of its smallest removal that flips the class, flipped.

    ``requests`` as for :func:`genrep_dist.evaluation.removals.deletion_table`, with one sign for each test point. ``num_outputs`` is C. For
    C = 1 the class is whether the logit is above 0; for C > 1 it is the largest logit, the first of equal ones. Of replicates the mean
    outputs count. A removal flips if its class is not the original model's; removing nothing never flips. If none flips, num_removed
    and fraction are null.

    Raises what the deletion table does, and StoreError if a test point has two signs, or other fractions than the others.
    """
    requests = check_requests(requests)
    _check_design(requests)
    classes = pl.DataFrame({"output": range(num_outputs)}, schema={"output": pl.Int64})
    place = pl.col("output_position") // num_outputs * num_outputs + pl.col("output")
    cells = requests.join(classes, how="cross").with_columns(output_position=place)
    wanted = [cells.select(pl.col(key).alias("key"), "output_position") for key in ("key", "original_key")]
    found = ledger_scores(pl.concat(wanted), ledger)
    for key, score in (("key", "retrained"), ("original_key", "original")):
        cells = cells.join(found.rename({"key": key, "score": score}), on=[key, "output_position"], how="left", validate="m:1")
    cells = cells.sort(*REMOVAL_COLUMNS, "output", "replicate")
    # Sorted, the outputs of one removal are adjacent: (removals, C).
    cell = (*REMOVAL_COLUMNS, "output")
    removals = cells.unique(REMOVAL_COLUMNS, keep="first", maintain_order=True)
    original = cells.unique(cell, keep="first", maintain_order=True)["original"].to_numpy().reshape(-1, num_outputs)
    retrained = replicate_means(cells, cell, "retrained").to_numpy().reshape(-1, num_outputs)
    changed = pl.Series("changed", _predicted(original) != _predicted(retrained), dtype=pl.Boolean)
    smallest = (
        removals.with_columns(changed)
        .filter(pl.col("changed") & (pl.col("num_removed") > 0))
        .sort(*TEST_POINT, "num_removed", "fraction")
        .unique(TEST_POINT, keep="first")
        .select(*TEST_POINT, "num_removed", "fraction")
    )
    points = removals.select(TEST_POINT).unique()
    return points.join(smallest, on=TEST_POINT, how="left").with_columns(flipped=pl.col("num_removed").is_not_null()).sort(TEST_POINT)


def brittleness_points(table: pl.DataFrame, largest: float) -> pl.DataFrame:
    """The points (by POINTS_SCHEMA, sorted) of the metrics brittleness_flipped, 0 or 1, and brittleness_removed, the fraction that flipped.

    ``table`` as returned by :func:`brittleness_table`; ``largest`` is the largest declared fraction, the value of points that none flips.
    """
    flipped = table.select(*TEST_POINT, pl.lit("brittleness_flipped").alias("metric"), pl.col("flipped").cast(pl.Float64).alias("value"))
    removed = table.select(*TEST_POINT, pl.lit("brittleness_removed").alias("metric"), pl.col("fraction").fill_null(largest).alias("value"))
    return pl.concat([flipped, removed]).select(list(POINTS_SCHEMA)).sort(list(POINTS_SCHEMA)[:-1])


def _predicted(outputs: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
    """Classes (rows,) of outputs (rows, C)."""
    return outputs[:, 0] > 0 if outputs.shape[1] == 1 else outputs.argmax(axis=1)


def _check_design(requests: pl.DataFrame) -> None:
    designs = requests.group_by(TEST_POINT).agg(pl.col("sign").n_unique(), pl.col("fraction").unique().sort()).sort(TEST_POINT)
    # With other fractions the smallest removal that flips would not be comparable.
    uneven = designs.filter((pl.col("sign") != 1) | (pl.col("fraction") != pl.col("fraction").first()))
    if uneven.height:
        raise StoreError(
            "a test point's removals are not those of the others",
            where="the retrain requests of brittleness",
            expected=f"one sign for each (seed, method, test point), and the fractions {designs['fraction'][0].to_list()}",
            got=str(uneven.row(0, named=True)),
        )
