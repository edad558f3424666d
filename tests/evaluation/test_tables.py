from __future__ import annotations

import polars as pl
import pytest

from genrep_dist.errors import StoreError
from genrep_dist.evaluation.metrics.base import metric_infos
from genrep_dist.evaluation.tables import EvaluationTables, table_specs
from tests.report import synthetic


def test_what_was_not_measured_is_empty_and_has_its_columns() -> None:
    tables = EvaluationTables()
    assert list(tables) == list(table_specs())
    for name, spec in table_specs().items():
        assert tables[name].height == 0
        assert dict(tables[name].schema) == spec.columns
    assert tables.measured == ()


def test_a_table_that_no_metric_publishes_is_refused() -> None:
    with pytest.raises(StoreError, match="no metric publishes"):
        EvaluationTables(guesses=pl.DataFrame())


def test_measured_metrics_are_in_the_registrys_order() -> None:
    judged = synthetic.judged()
    assert judged.measured == tuple(metric_infos())
    assert EvaluationTables(metrics=judged.metrics.filter(pl.col("metric") == "lds").reverse()).measured == ("lds",)


@pytest.mark.parametrize("name", list(table_specs()))
def test_a_table_of_another_form_is_refused(name: str) -> None:
    column, dtype = next(iter(table_specs()[name].columns.items()))
    with pytest.raises(StoreError, match=f"{name}, column {column}"):
        EvaluationTables(**{name: table_specs()[name].empty().drop(column)})
    other = pl.Int64 if dtype == pl.String else pl.String
    with pytest.raises(StoreError, match=f"{name}, column {column}"):
        EvaluationTables(**{name: table_specs()[name].empty().cast({column: other})})
