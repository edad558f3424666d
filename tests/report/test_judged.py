from __future__ import annotations

from dataclasses import fields

import polars as pl
import pytest

from genrep_dist.errors import StoreError
from genrep_dist.evaluation.metrics.base import metric_info, metric_infos
from genrep_dist.evaluation.tables import EvaluationTables, table_specs
from tests.report import synthetic


def test_what_was_not_measured_is_empty_and_has_its_columns() -> None:
    judged = EvaluationTables()
    assert [field.name for field in fields(judged)] == list(SCHEMAS)
    for name, schema in SCHEMAS.items():
        table = getattr(judged, name)
        assert table.height == 0
        assert dict(table.schema) == schema
    assert judged.measured == ()


def test_measured_metrics_are_in_the_registrys_order() -> None:
    judged = synthetic.judged()
    assert judged.measured == tuple(metric_infos())
    assert EvaluationTables(metrics=judged.metrics.filter(pl.col("metric") == "lds").reverse()).measured == ("lds",)


@pytest.mark.parametrize("name", list(SCHEMAS))
def test_a_table_of_another_form_is_refused(name: str) -> None:
    column, dtype = next(iter(table_specs()[name].columns.items()))
    with pytest.raises(StoreError, match=f"{name}, column {column}"):
        EvaluationTables(**{name: empty(name).drop(column)})
    other = pl.Int64 if dtype == pl.String else pl.String
    with pytest.raises(StoreError, match=f"{name}, column {column}"):
        EvaluationTables(**{name: empty(name).cast({column: other})})
