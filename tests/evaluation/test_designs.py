from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from genrep_dist.errors import NonFiniteError, NotCommittedError, StoreError
from genrep_dist.evaluation.designs import designs
from genrep_dist.evaluation.statistics import best, comparisons, metrics_table, ranks
from tests.evaluation.points import synthetic_points

NAMES = ["weak", "strong"]


def test_boxes_hold_each_number_in_its_place() -> None:
    points = synthetic_points(num_seeds=4, num_points=3, metrics=("brittleness_removed", "lds"))
    found = designs(points.sample(fraction=1, shuffle=True, seed=2), NAMES)
    in_order = [(metric, list(of_method)) for metric, of_method in found.items()]
    assert in_order == [("lds", NAMES), ("brittleness_removed", NAMES)]  # as in the registry, as asked for
    for metric, of_method in found.items():
        for method, design in of_method.items():
            assert design.test_ids is not None
            assert design.values.shape == design.test_ids.shape == (4, 3)
            for row, seed in enumerate(design.seeds):
                for column, test_id in enumerate(design.test_ids[row]):
                    value = points.row(by_predicate=cell(metric, method, int(seed), int(test_id)))[-1]
                    assert design.values[row, column] == value
                assert design.per_seed[row] == pytest.approx(design.values[row].sum() / 3)


def cell(metric: str, method: str, seed: int, test_id: int) -> pl.Expr:
    return (pl.col("metric") == metric) & (pl.col("method") == method) & (pl.col("seed") == seed) & (pl.col("test_id") == test_id)


def test_a_metric_about_no_point_has_one_number_a_seed() -> None:
    points = synthetic_points(num_seeds=4, num_points=None, metrics=("mislabel_auroc",))
    design = designs(points, ["strong"])["mislabel_auroc"]["strong"]
    assert design.test_ids is None
    assert design.values.shape == (4, 1)
    assert not design.is_crossed


@pytest.mark.parametrize(
    ("crossed", "num_seeds", "num_points", "expected"),
    [(True, 3, 2, True), (True, 3, 1, False), (True, 1, 3, False), (False, 3, 2, False)],
)
def test_crossed_is_where_all_seeds_share_their_points(crossed: bool, num_seeds: int, num_points: int, expected: bool) -> None:
    points = synthetic_points(num_seeds=num_seeds, num_points=num_points, crossed=crossed)
    assert designs(points, NAMES)["auc_del_negative"]["weak"].is_crossed == expected


def test_a_method_without_a_metric_is_absent_from_it() -> None:
    both = synthetic_points(metrics=("auc_del_negative",)).vstack(synthetic_points(num_points=None, metrics=("mislabel_auroc",)))
    points = both.filter((pl.col("metric") == "auc_del_negative") | (pl.col("method") != "weak"))
    assert list(designs(points, NAMES)["mislabel_auroc"]) == ["strong"]
    assert list(designs(points, ["weak"])) == ["auc_del_negative"]
    assert designs(points, ["never heard of"]) == {}


SPOILT: list[tuple[str, Any, type[Exception], str]] = [
    ("a cell is missing", lambda p: p.filter(~((pl.col("method") == "weak") & (pl.col("test_id") == 1010))), NotCommittedError, "weak"),
    ("a seed of a method is missing", lambda p: p.filter((pl.col("method") != "weak") | (pl.col("seed") != 1)), NotCommittedError, "weak"),
    ("a seed has fewer points", lambda p: p.filter(pl.col("test_id") != 1010), NotCommittedError, "seed 1: 2"),
    (
        "a method has other points",
        lambda p: p.with_columns(test_id=pl.col("test_id") + pl.when(pl.col("method") == "weak").then(1).otherwise(0)),
        NotCommittedError,
        "holes",
    ),
    (
        "a method that nobody asked for has holes",
        lambda p: p.filter((pl.col("method") != "middle") | (pl.col("seed") != 1)),
        NotCommittedError,
        "middle",
    ),
    ("a row is there twice", lambda p: pl.concat([p, p.head(1)]), StoreError, "twice"),
    ("two numbers for one cell", lambda p: pl.concat([p, p.head(1).with_columns(value=pl.lit(9.0))]), StoreError, "twice"),
    (
        "one cell moved onto another",
        lambda p: p.with_columns(test_id=pl.when(pl.col("test_id") == 1010).then(1000).otherwise(pl.col("test_id"))),
        StoreError,
        "twice",
    ),
    ("not a number", lambda p: set_value(p, float("nan")), NonFiniteError, "seed 1"),
    ("infinite", lambda p: set_value(p, float("inf")), NonFiniteError, "seed 1"),
    ("null", lambda p: set_value(p, None), NonFiniteError, "seed 1"),
    (
        "points in some rows only",
        lambda p: p.with_columns(test_id=pl.when(pl.col("test_id") == 1010).then(None).otherwise(pl.col("test_id"))),
        StoreError,
        "some rows only",
    ),
    ("an unknown metric", lambda p: p.with_columns(metric=pl.lit("accuracy")), StoreError, "accuracy"),
]


def set_value(points: pl.DataFrame, value: float | None) -> pl.DataFrame:
    chosen = (pl.col("test_id") == 1010) & (pl.col("method") == "weak")
    return points.with_columns(value=pl.when(chosen).then(pl.lit(value, dtype=pl.Float64)).otherwise(pl.col("value")))


@pytest.mark.parametrize(("spoil", "error", "says"), [case[1:] for case in SPOILT], ids=[case[0] for case in SPOILT])
def test_what_is_no_full_design_is_refused(spoil: Any, error: type[Exception], says: str) -> None:
    points = spoil(synthetic_points(num_seeds=3))
    for summary in (metrics_table, ranks, best):
        with pytest.raises(error, match=says):
            summary(points, NAMES)
    with pytest.raises(error, match=says):
        comparisons(points, NAMES, ["strong"])


def test_the_hole_is_named() -> None:
    points = synthetic_points(num_seeds=3).filter(~((pl.col("method") == "weak") & (pl.col("test_id") == 1010)))
    with pytest.raises(NotCommittedError, match="8; the first that is missing: seed 1, test id 1010"):
        designs(points, NAMES)


def test_the_hole_of_a_metric_about_no_point_is_named() -> None:
    points = synthetic_points(num_seeds=4, num_points=None, metrics=("mislabel_auroc",))
    with pytest.raises(NotCommittedError, match="3; the first that is missing: seed 2, test id None"):
        designs(points.filter((pl.col("method") != "weak") | (pl.col("seed") != 2)), NAMES)


def test_seeds_and_points_ascend_as_numbers() -> None:
    """Ids that sort otherwise as text, and seeds that do not start at zero."""
    points = synthetic_points(num_seeds=12, num_points=2).with_columns(seed=pl.col("seed") + 5)
    design = designs(points, NAMES)["auc_del_negative"]["weak"]
    assert design.seeds.tolist() == list(range(5, 17))
    assert design.test_ids is not None
    assert (np.diff(design.test_ids.ravel()) > 0).all()
