"""The trial run measures what the run does."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

import genrep_dist as gr
from genrep_dist.errors import ConvergenceError
from genrep_dist.store import Store
from genrep_dist.workflow import estimates
from genrep_dist.workflow.estimates import estimate_run, measure_rates
from genrep_dist.workflow.prepare import PreparedExperiment, prepare
from genrep_dist.workflow.trial_run import trial_run
from tests.experiments import ROOT, experiment


def prepared(folder: Path) -> PreparedExperiment:
    return prepare(experiment(seeds=2), Store(str(folder)), [str(ROOT)])


def test_a_trial_run_measures_the_share_of_distinct_sets_and_leaves_nothing(tmp_path: Path) -> None:
    asked = prepared(tmp_path / "store")
    before = sorted((tmp_path / "store").rglob("*"))
    found = trial_run(asked)
    assert sorted((tmp_path / "store").rglob("*")) == before
    assert set(found.seconds) == {stage.name for stage in asked.plan.stages} - {"retrain"}
    assert min(found.seconds.values()) > 0
    done = gr.run(experiment(seeds=1), store=str(tmp_path / "run"), serial=True, search_path=[str(ROOT)])
    ledger = done.store.ledger(done.plan.keys.training).scan().filter(pl.col("num_removed") > 0)
    assert found.distinct == ledger.collect()["key"].n_unique() / done.plan.retrainings_at_most


def test_large_experiments_have_no_trial_run_and_finished_ones_cost_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = prepared(tmp_path)
    names = [stage.name for stage in asked.plan.stages]
    at_most = asked.plan.retrainings_at_most
    whole = estimate_run(asked, measure_rates(asked), 2, {}, at_most)
    assert set(whole.stages) == set(names)
    assert whole.total == pytest.approx(sum(whole.stages.values()) + whole.overhead_seconds)

    def refused(_: PreparedExperiment) -> None:
        raise AssertionError("a trial run was made")

    monkeypatch.setattr(estimates, "trial_run", refused)
    nothing = estimate_run(asked, measure_rates(asked), 2, dict.fromkeys(names, 0.0), at_most)
    assert sum(nothing.stages.values()) == 0
    assert nothing.overhead_seconds < whole.overhead_seconds
    monkeypatch.setattr(estimates, "TRIAL_SECONDS", 0.0)
    assert sum(estimate_run(asked, measure_rates(asked), 2, {}, at_most).stages.values()) > 0


def test_a_failing_trial_run_leaves_the_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = prepared(tmp_path)

    def failing(_: PreparedExperiment) -> None:
        raise ConvergenceError("the surrogate's solver did not reach its tolerance", where="here", expected="1", got="2", remedy="none")

    monkeypatch.setattr(estimates, "trial_run", failing)
    assert estimate_run(asked, measure_rates(asked), 2, {}, asked.plan.retrainings_at_most).total > 0
