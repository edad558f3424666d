"""A metric of another package: added by one class and one registration, from requests to report and tracker."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import genrep_dist as gr
from genrep_dist.config.metrics import METRICS, requested_retrainings
from genrep_dist.config.section import Section
from genrep_dist.errors import ConfigError, PlanError
from genrep_dist.evaluation.metrics.base import MetricInfo, metric_infos, register
from genrep_dist.units import Retraining
from genrep_dist.workflow.retrain import retrain
from tests.experiments import ROOT, experiment
from tests.outside_metrics import Impostor, SelfRemoval, Undeclared

FIELDS: dict[str, Any] = {
    "methods": ["ntk-final/tracking", "random"],
    "deletion": {"fractions": [0.0, 0.1]},
    "metrics": {"self_removal": {"count": 3}},
}


@pytest.fixture(autouse=True)
def registry_restored() -> Iterator[None]:
    yield
    for name in ("self_removal", "undeclared", "impostor"):
        METRICS.unregister(name)


def test_a_registered_metric_runs_from_requests_to_the_report(tmp_path: Path) -> None:
    register(SelfRemoval)
    done = gr.run(experiment(**FIELDS), store=str(tmp_path), serial=True, search_path=[str(ROOT)])
    assert done.plan.experiment.metric_names == ("auc_del_negative", "mean_drop")
    for method in FIELDS["methods"]:
        scores, ids = done.attributions(method, 0), done.train_ids(0)
        removed = tuple(sorted(ids[np.argsort(-scores.mean(axis=1), kind="stable")[:3]].tolist()))
        key = done.plan.keys.retraining(0, removed, "same")
        after = np.asarray(retrain(Retraining(key, 0, "same", removed), done.context).outputs, dtype=np.float64)
        problem = done.problem(0)
        with torch.no_grad():
            before = problem.model(problem.test.inputs).double().numpy()
        rows = [problem.test.ids.tolist().index(test_id) for test_id in done.test_ids(0)]
        found = done.points().filter(metric="mean_drop", method=method, seed=0).collect()
        expected = dict(zip(done.test_ids(0).tolist(), (before - after.reshape(before.shape))[rows, 0], strict=True))
        assert dict(zip(found["test_id"], found["value"], strict=True)) == pytest.approx(expected, abs=1e-6)
    assert done.judged()["removed_samples"]["num_removed"].to_list() == [3] * 4
    assert done.comparisons().filter(metric="mean_drop").height == 1
    assert done.ranks().filter(metric="mean_drop").height == 2
    page = (tmp_path / "results/toy/report.html").read_text()
    assert "Mean removal" in page
    assert "Networks, mean drop" in page
    # Another reader, and another run, find the same.
    assert gr.open_run(str(tmp_path), "toy").metrics().equals(done.metrics())
    count = requested_retrainings(done.plan.experiment, done.plan.shape.num_train)
    assert done.costs()["unique"] <= 2 * 2 * count.per_method


def test_a_class_can_be_named_in_the_experiment() -> None:
    asked = experiment(**{**FIELDS, "metrics": {"self_removal": {"class": "tests.outside_metrics:SelfRemoval"}}})
    assert asked.metrics == {"self_removal": {"class": "tests.outside_metrics:SelfRemoval", "retrain": "same", "replicates": 1, "count": 2}}
    assert gr.Experiment.model_validate(asked.resolved()) == asked
    assert "mean_drop" in metric_infos()


def test_without_other_metrics_nothing_changes() -> None:
    asked = experiment()
    assert "metrics" not in asked.resolved()
    assert "metrics" not in asked.result_fields()


def test_settings_and_version_are_a_part_of_the_question() -> None:
    register(SelfRemoval)
    first, second = (experiment(**{**FIELDS, "metrics": {"self_removal": {"count": count}}}) for count in (2, 3))
    assert first.result_fields() != second.result_fields()
    assert first.result_fields()["metrics"]["self_removal"][0] == 1


@pytest.mark.parametrize(
    ("metrics", "says"),
    [
        ({"nowhere": {}}, "registered metrics"),
        ({"self_removal": {"count": 0}}, r"self_removal\.count: expected a number of at least 1; got 0"),
        ({"self_removal": {"replicates": 3}}, "retrain: fresh with several replicates"),
        ({"lds": {"subsets": 4}}, "lds is measured by a field of its own"),
        ({"other": {"class": "tests.outside_metrics:SelfRemoval"}}, "the metric's own name, self_removal"),
        (
            {"nothing": {"class": "tests.outside_metrics:Nothing"}},
            "an importable metric; the metric 'nothing' cannot be loaded; AttributeError",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(metrics: dict[str, Any], says: str) -> None:
    register(SelfRemoval)
    with pytest.raises(ValueError, match=says):
        experiment(**{**FIELDS, "metrics": metrics})


def test_more_requests_than_declared_are_refused(tmp_path: Path) -> None:
    register(Undeclared)
    asked = experiment(**{**FIELDS, "metrics": {"undeclared": {}}})
    with pytest.raises(PlanError, match=r"more models than it declared[\s\S]*at most 0 requests"):
        gr.run(asked, store=str(tmp_path), serial=True, search_path=[str(ROOT)])


def test_names_that_are_taken_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"numbers of one name[\s\S]*metric lds"):
        register(Impostor)
    with pytest.raises(ConfigError, match=r"two metrics have the same name[\s\S]*Renamed"):
        register(type("Renamed", (SelfRemoval,), {"name": "deletion", "numbers": ()}))


def test_an_installed_package_can_name_its_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = importlib.metadata.EntryPoint("self_removal", "tests.outside_metrics:SelfRemoval", METRICS.group)
    monkeypatch.setattr("genrep_dist.registry.entry_points", lambda *, group: [entry] if group == METRICS.group else [])
    asked = experiment(**FIELDS)
    assert asked.metric_names == ("auc_del_negative", "mean_drop")


def test_tuning_leaves_other_metrics_out() -> None:
    from genrep_dist.config.metrics import only_metric

    register(SelfRemoval)
    asked = experiment(**{**FIELDS, "lds": {"subsets": 4}, "loo": {"samples": 4}})
    assert only_metric(asked, "mean_drop").metric_names == ("auc_del_negative", "mean_drop")
    assert only_metric(asked, "mean_drop").deletion.counts == (0,)
    assert only_metric(asked, "lds").metric_names == ("auc_del_negative", "lds")
    assert only_metric(asked, "auc_del_negative").metric_names == ("auc_del_negative",)
    assert only_metric(asked, "auc_del_negative").deletion == asked.deletion


def test_a_metric_without_settings_is_measured_where_it_is_named() -> None:
    plain = type(
        "Plain", (SelfRemoval,), {"name": "impostor", "numbers": (MetricInfo("plain", "plain", "larger", "Plain."),), "section": Section}
    )
    register(plain)
    assert experiment(metrics={"impostor": {}}).metric_names[-1] == "plain"
    assert "plain" not in experiment().metric_names
