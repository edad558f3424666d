"""The order of methods in several set-ups: the table, Kendall's tau and the files."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from genrep_dist.errors import StoreError
from genrep_dist.evaluation.statistics import metrics_table
from genrep_dist.paper.sensitivity import METRIC, Variant, rank_correlations, sensitivity_table, write_sensitivity

METHODS = ("a", "b", "c", "random")


def variant(title: str, means: Mapping[str, float]) -> Variant:
    generator = np.random.default_rng(5)
    rows = [
        (METRIC, method, seed, 10 * seed + point, mean + 0.1 * generator.normal())
        for method, mean in means.items()
        for seed, point in itertools.product(range(6), range(2))
    ]
    return Variant(title, pl.DataFrame(rows, schema=["metric", "method", "seed", "test_id", "value"], orient="row"))


def test_areas_ranks_and_their_agreement(tmp_path: Path) -> None:
    first = variant("250", {"a": 3.0, "b": 2.0, "c": 1.0, "random": 0.0})
    same = variant("500", {"a": 30.0, "b": 20.0, "c": 10.0, "random": 0.0})
    turned = variant("1,000", {"a": 1.0, "b": 2.0, "c": 3.0, "random": 9.0})
    table = sensitivity_table([first, same, turned], METHODS)
    assert table.height == 12
    expected = metrics_table(first.points, METHODS).filter(pl.col("method") == "b")
    row = table.row(1, named=True)
    assert (row["variant"], row["method"], row["mean"]) == ("250", "b", expected["mean"].item())
    assert (row["low"], row["high"]) == (expected["ci95_clustered_low"].item(), expected["ci95_clustered_high"].item())
    assert table.filter(variant="250")["mean_rank"].to_list() == pytest.approx([1, 2, 3, 4])
    assert table.filter(variant="1,000")["mean_rank"].to_list() == pytest.approx([4, 3, 2, 1])
    assert rank_correlations(table)["tau"].to_list() == pytest.approx([1, 1, -1]), "random removal does not count"
    paths = write_sensitivity(tmp_path, "size", "By size", "training samples", table)
    assert [path.name for path in paths] == ["size.md", "size.png", "size.parquet"]
    text = paths[0].read_text()
    assert "| method | 250 | 500 | 1,000 |" in text
    assert "| Kendall's tau | 1.00 | 1.00 | -1.00 |" in text
    assert paths[1].read_bytes().startswith(b"\x89PNG")


def test_a_method_that_was_not_measured_is_named() -> None:
    with pytest.raises(StoreError, match="c"):
        sensitivity_table([variant("250", {"a": 1.0, "b": 2.0, "random": 0.0})], METHODS)


def test_one_network_has_no_ranks() -> None:
    one = variant("250", {"a": 1.0, "b": 2.0, "c": 3.0, "random": 0.0})
    with pytest.raises(StoreError, match="more networks"):
        sensitivity_table([Variant("250", one.points.filter(seed=0))], METHODS)
