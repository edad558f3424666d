"""Conformance tests of metrics.

.. code-block:: python

    from genrep_dist.testing import MetricTests

    class TestMyMetric(MetricTests):
        metric = MyMetric
        fields = {"metrics": {"my_metric": {}}}
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import pytest

from genrep_dist.config.metrics import METRICS, request_count
from genrep_dist.evaluation.designs import designs
from genrep_dist.evaluation.metrics.base import Metric
from genrep_dist.testing.runs import FinishedRun, finished_run


class MetricTests:
    """A metric in a small run. A subclass defines ``metric``, and the ``fields`` of an experiment that measures it."""

    metric: ClassVar[type[Metric]]
    fields: ClassVar[dict[str, Any]] = {}

    @pytest.fixture
    def finished(self, tmp_path: Path) -> Iterator[FinishedRun]:
        is_new = self.metric.name not in METRICS
        METRICS.register_loaded(self.metric.name, self.metric)
        yield finished_run(tmp_path, self.fields)
        if is_new:
            METRICS.unregister(self.metric.name)

    def test_it_is_measured_where_the_experiment_says_so(self, finished: FinishedRun) -> None:
        metric, experiment = self.metric(), finished.plan.experiment
        assert metric.title
        assert all(number.title and number.explanation for number in metric.numbers)
        names = metric.measured(experiment)
        assert names
        assert set(names) <= {number.name for number in metric.numbers}
        metric.check_feasible(experiment, finished.plan.shape.num_train)

    def test_it_requests_no_more_than_it_declares(self, finished: FinishedRun) -> None:
        metric, plan = self.metric(), finished.plan
        count = request_count(metric, plan.experiment, plan.shape.num_train)
        mine = finished.requests.filter(metric=metric.name)
        methods, seeds = len(plan.experiment.methods), len(plan.experiment.seeds)
        assert mine.filter(pl.col("num_removed") > 0).height <= seeds * (methods * count.per_method + count.shared)
        assert mine.height <= seeds * (methods * (count.per_method + count.originals_per_method) + count.shared)
        largest: Any = mine["num_removed"].max()
        assert (largest or 0) <= metric.largest_removal(plan.experiment, plan.shape.num_train) < plan.shape.num_train

    def test_each_method_has_a_finite_value_for_each_seed_and_test_point(self, finished: FinishedRun) -> None:
        experiment, tables = finished.plan.experiment, finished.tables
        for name in self.metric().measured(experiment):
            (info,) = (number for number in self.metric.numbers if number.name == name)
            found = designs(tables.points.filter(metric=name), experiment.methods)[name]
            assert found, "no method has a value"
            for design in found.values():
                assert design.seeds.tolist() == list(experiment.seeds)
                assert (design.test_ids is not None) == info.about_points
                assert design.values.shape[1] == (experiment.num_explained if info.about_points else 1)

    def test_values_do_not_depend_on_the_order_of_rows(self, finished: FinishedRun) -> None:
        again = finished.evaluate(finished.requests.reverse())
        mine = pl.col("metric").is_in([number.name for number in self.metric.numbers])
        first, second = (found.points.filter(mine) for found in (finished.tables, again))
        assert first.drop("value").equals(second.drop("value"))
        assert second["value"].to_list() == pytest.approx(first["value"].to_list(), rel=1e-12)

    def test_its_texts_and_curves_can_be_shown(self, finished: FinishedRun) -> None:
        metric, plan, tables = self.metric(), finished.plan, finished.tables
        assert all(isinstance(text, str) for text in metric.warnings(plan.experiment))
        facts = metric.facts(plan.experiment, plan.shape.num_train, tables)
        assert all(isinstance(text, str) for item in facts.items() for text in item)
        for curve in tables.curves_of(metric):
            assert set(curve.frame["method"]) <= set(plan.experiment.methods)
            assert curve.frame["share"].is_between(0, 1).all()
            assert curve.metric in {None, *(number.name for number in metric.numbers)}
