"""How many seeds are enough, and which value of a parameter is best: decided by the numbers, never on reported seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import genrep_dist as gr
from genrep_dist.cli.status import stop_text
from genrep_dist.config import Experiment
from genrep_dist.config.sections import StopSection
from genrep_dist.config.tuning import TuneSection
from genrep_dist.executors.serial import SerialExecutor
from genrep_dist.results.reporting import facts
from genrep_dist.runner.dry_run import dry_run
from genrep_dist.runner.progress import NoProgress
from genrep_dist.runner.publish import choice_facts
from genrep_dist.runner.tuning import Precision, best_value, measure_precision, next_num_seeds, parameter_path
from genrep_dist.store import Store
from genrep_dist.workflow.prepare import prepare
from tests.experiments import ROOT, experiment
from tests.toys import trainings

STOP = StopSection(metric="auc_del_negative", half_width=0.2, min_seeds=4, max_seeds=50)


def metrics(**half_widths: float) -> pl.DataFrame:
    rows = [
        {"metric": "auc_del_negative", "method": m, "ci95_clustered_low": 1 - w, "ci95_clustered_high": 1 + w}
        for m, w in half_widths.items()
    ]
    return pl.DataFrame([*rows, {"metric": "lds", "method": "a", "ci95_clustered_low": -9.0, "ci95_clustered_high": 9.0}])


def test_the_widest_method_decides() -> None:
    found = measure_precision(metrics(a=0.1, b=0.4), STOP, 10)
    assert (found.seeds, found.method, found.projected) == (10, "b", 40)
    assert found.half_width == pytest.approx(0.4)
    assert next_num_seeds(found, STOP) == 20  # no more than twice as many at once
    assert next_num_seeds(measure_precision(metrics(a=0.1, b=0.2), STOP, 10), STOP) is None


@given(st.integers(2, 400), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.integers(2, 400))
def test_rounds_grow_and_end(seeds: int, width: float, wanted: float, most: int) -> None:
    stop = StopSection(metric="auc_del_negative", half_width=wanted, min_seeds=2, max_seeds=most)
    seen = [min(seeds, most)]
    while (following := next_num_seeds(Precision(seen[-1], "a", width, seen[-1]), stop)) is not None:
        assert seen[-1] < following <= min(2 * seen[-1], most)
        seen.append(following)
    assert width <= wanted or seen[-1] == most


def test_parameters_by_path_and_by_name() -> None:
    asked = experiment()
    assert parameter_path(asked, "influence.damping") == parameter_path(asked, "damping") == ("influence", "damping")
    assert parameter_path(asked, "lambda") == ("surrogate", "lambda")
    with pytest.raises(gr.GenRepError, match="several parameters"):
        parameter_path(asked, "tolerance")
    with pytest.raises(gr.GenRepError, match="no parameter of a method"):
        parameter_path(asked, "recipe.learning_rate")


def test_the_better_value_by_the_metrics_direction() -> None:
    larger, smaller = (TuneSection(parameter="lambda", values=(1, 2, 3), seeds=(9,), metric=m) for m in ("lds", "brittleness_removed"))
    assert best_value(larger, [0.1, 0.5, 0.5]) == 1
    assert best_value(smaller, [0.3, 0.1, 0.2]) == 1


def run(tmp_path: Path, **fields: Any) -> gr.Run:
    given_fields = {"deletion": {"fractions": [0.0, 0.1, 0.2]}, **fields}
    return gr.run(experiment(**given_fields), store=str(tmp_path), executor=SerialExecutor(0), search_path=[str(ROOT)])


def test_tuning_uses_seeds_of_its_own_and_is_recorded(tmp_path: Path) -> None:
    methods = ["ntk-final/surrogate", "ntk-final/target", "random"]
    done = run(tmp_path, methods=methods, tune={"parameter": "lambda", "values": [10.0, 0.01], "seeds": [7, 8]})
    about = done.choices["tune"]
    assert about["parameter"] == "surrogate.lambda"
    assert [list(tried["methods"]) for tried in about["tried"]] == [["ntk-final/surrogate"]] * 2
    means = [tried["mean"] for tried in about["tried"]]
    assert about["chosen"] == about["tried"][means.index(max(means))]["value"] == done.plan.experiment.surrogate.lam
    assert set(done.deletion().collect()["seed"]) == {0, 1}
    fixed = run(tmp_path / "fixed", methods=methods, surrogate={"lambda": about["chosen"]})
    assert done.deletion().collect().equals(fixed.deletion().collect())
    tried = [
        run(tmp_path / str(v), methods=methods, seeds=[7, 8], surrogate={"lambda": v})
        .summary()
        .filter(method=methods[0])["auc_del_negative"][0]
        for v in (10.0, 0.01)
    ]
    assert means == pytest.approx(tried, abs=1e-12)


def test_values_are_tried_with_the_metrics_settings_of_the_tuning(tmp_path: Path) -> None:
    methods = ["ntk-final/surrogate", "random"]
    tune = {"parameter": "lambda", "values": [10.0, 0.01], "seeds": [7, 8], "settings": {"fractions": [0.0, 0.3]}}
    done = run(tmp_path, methods=methods, tune=tune)
    about = done.choices["tune"]
    tried = [
        run(tmp_path / str(v), methods=methods, seeds=[7, 8], surrogate={"lambda": v}, deletion={"fractions": [0.0, 0.3]})
        .summary()
        .filter(method=methods[0])["auc_del_negative"][0]
        for v in (10.0, 0.01)
    ]
    assert [one["mean"] for one in about["tried"]] == pytest.approx(tried, abs=1e-12)
    assert "auc_del_negative (fractions [0.0, 0.3]) of" in choice_facts(done)["Tuned on other seeds"]
    fixed = run(tmp_path / "fixed", methods=methods, surrogate={"lambda": about["chosen"]})
    assert done.deletion().collect().equals(fixed.deletion().collect()), "the reported seeds have the experiment's own shares"


def test_settings_of_a_metric_of_another_package_are_tuned_with(tmp_path: Path) -> None:
    def removing(count: int) -> dict[str, Any]:
        return {"self_removal": {"class": "tests.outside_metrics:SelfRemoval", "count": count}}

    methods = ["ntk-final/surrogate", "random"]
    tune = {"parameter": "lambda", "values": [10.0, 0.01], "seeds": [7], "metric": "mean_drop", "settings": {"count": 3}}
    done = run(tmp_path / "tuned", methods=methods, seeds=1, metrics=removing(1), tune=tune)
    first = done.choices["tune"]["tried"][0]
    alone = run(tmp_path / "alone", methods=methods, seeds=[7], metrics=removing(3), surrogate={"lambda": 10.0})
    assert first["mean"] == pytest.approx(alone.metrics().filter(metric="mean_drop", method=methods[0])["mean"][0], abs=1e-12)
    assert done.plan.experiment.metrics["self_removal"]["count"] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"fraction": [0.0, 0.1]},
            r"field tune\.settings\.fraction: expected no such field \(did you mean fractions\?\); got \[0\.0, 0\.1\]",
        ),
        ({"fractions": [0.0, 2.0]}, r"field tune\.settings\.fractions\.1: expected a share of at least 0 and less than 1, .*; got 2\.0"),
        ({"counts": [1]}, "field tune.settings: expected fractions or counts, not both"),
        ({"signs": ["positive"]}, "expected settings with which auc_del_negative is measured, not auc_del_positive"),
    ],
)
def test_settings_that_the_metric_does_not_accept_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        experiment(tune={"parameter": "lambda", "values": [1.0, 2.0], "seeds": 2, "settings": settings})


@pytest.mark.parametrize("values", [[1.0, float("nan")], [1.0, float("inf")], [0.1, 0.1, 1.0]])
def test_values_to_try_are_finite_and_different(values: list[float]) -> None:
    with pytest.raises(ValueError, match=r"field tune\.values: expected finite values, all of them different"):
        experiment(tune={"parameter": "lambda", "values": values, "seeds": 2})


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no such parameter": ({"parameter": "lambdas", "values": [1.0, 2.0]}, "names no parameter of a method"),
    "a value below its range": (
        {"parameter": "lambda", "values": [1.0, -1.0]},
        r"field surrogate\.lambda: expected a number .*; got -1\.0",
    ),
    "no number": ({"parameter": "lambda", "values": [1.0, "a"]}, r"field surrogate\.lambda: expected a number; got 'a'"),
    "two values that are read as one": ({"parameter": "lambda", "values": [1.0, "1e0"]}, "two values of a tuned parameter are equal"),
    "no method uses it": ({"parameter": "damping", "values": [1.0, 2.0]}, "change no method"),
    "one parameter twice": ({"grid": {"lambda": [1.0, 2.0], "surrogate.lambda": [1.0, 3.0]}}, "two names of one parameter"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_tuned_is_refused_by_the_plan_and_before_a_model_is_trained(tmp_path: Path, case: str) -> None:
    tune, message = WRONG[case]
    asked = experiment(tune={**tune, "seeds": 2}, methods=["ntk-final/surrogate", "random"])
    prepared = prepare(asked, Store(str(tmp_path)), [str(ROOT)])
    for refused in (lambda: dry_run(prepared, probe=False), lambda: gr.run(asked, str(tmp_path), serial=True, search_path=[str(ROOT)])):
        with pytest.raises(gr.GenRepError, match=message) as error:
            refused()
        assert "what to do:" in str(error.value)
    assert not list(tmp_path.glob("artifacts/train/*"))


def test_equal_values_are_not_called_better(tmp_path: Path) -> None:
    tune = {"parameter": "lambda", "values": [10.0, 0.01], "seeds": [7], "settings": {"fractions": [0.0]}}
    done = run(tmp_path, methods=["ntk-final/surrogate", "random"], seeds=1, tune=tune)
    assert done.choices["tune"]["chosen"] == 10.0
    assert "surrogate.lambda = 10.0, best (the first of equal ones) in auc_del_negative" in choice_facts(done)["Tuned on other seeds"]


def test_a_grid_tries_all_combinations_and_is_recorded_by_parameter(tmp_path: Path) -> None:
    grid = {"lambda": [10.0, 0.01], "influence.damping": [0.01, 1.0]}
    done = run(tmp_path, methods=["ntk-final/surrogate", "influence-function", "random"], seeds=1, tune={"grid": grid, "seeds": [7]})
    about = done.choices["tune"]
    assert about["parameter"] == "surrogate.lambda, influence.damping"
    expected = [{"surrogate.lambda": lam, "influence.damping": damping} for lam in (10.0, 0.01) for damping in (0.01, 1.0)]
    assert [one["value"] for one in about["tried"]] == expected
    assert {len(one["methods"]) for one in about["tried"]} == {2}
    means = [one["mean"] for one in about["tried"]]
    assert about["chosen"] == expected[means.index(max(means))]
    chosen = done.plan.experiment
    assert {"surrogate.lambda": chosen.surrogate.lam, "influence.damping": chosen.influence.damping} == about["chosen"]
    lam, damping = about["chosen"].values()
    assert f"= {lam} and {damping}, best in auc_del_negative" in choice_facts(done)["Tuned on other seeds"]
    assert "not tuned" not in facts(done, done.judge())["Damping of H"]


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ({"grid": {"lambda": [1.0, 2.0], "surrogate.lambda": [1.0, 2.0]}}, "two names of one parameter"),
        ({"grid": {"lambda": [1.0, 2.0], "damping": [1.0, 2.0]}}, "change no method"),
        ({"grid": {"lambda": [1.0, 2.0], "nothing": [1.0, 2.0]}}, "no parameter of a method"),
        ({"grid": {"lambda": [1.0, 2.0]}, "parameter": "lambda", "values": [1, 2]}, "parameter and values, or grid"),
        ({"parameter": "lambda"}, "parameter and values, or grid"),
        ({}, "parameter and values, or grid"),
        ({"grid": {"lambda": [*range(1, 10)], "damping": [*range(1, 10)]}}, "at most 64 combinations of values \\(the grid has 81\\)"),
        ({"grid": {"lambda": [1.0]}}, "at least 2"),
    ],
)
def test_a_grid_that_means_nothing_is_refused(tmp_path: Path, tune: dict[str, Any], message: str) -> None:
    with pytest.raises(gr.GenRepError, match=message):
        run(tmp_path, methods=["ntk-final/surrogate", "random"], tune={**tune, "seeds": [7]})


def test_tuning_on_a_reported_seed_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not reported; \[1\] are seeds of this experiment"):
        experiment(tune={"parameter": "lambda", "values": [1.0, 2.0], "seeds": [1, 5]})


def test_tuning_what_no_method_uses_is_refused(tmp_path: Path) -> None:
    with pytest.raises(gr.GenRepError, match="change no method"):
        run(tmp_path, methods=["ntk-final/target", "random"], tune={"parameter": "damping", "values": [1.0, 2.0], "seeds": 2})


def stopping(tmp_path: Path, half_width: float, **fields: Any) -> Experiment:
    asked = {
        "methods": ["ntk-final/tracking", "random"],
        "deletion": {"fractions": [0.0, 0.1, 0.2]},
        "stop": {"half_width": half_width, "min_seeds": 3, "max_seeds": 8},
        **fields,
    }
    plain = experiment("tests.toys:Counting", {"folder": str(tmp_path)}, **{k: v for k, v in asked.items() if k != "stop"}).resolved()
    del plain["seeds"]
    return Experiment.model_validate({**plain, "stop": asked["stop"]})


def test_it_stops_when_it_is_known_and_pays_for_no_more(tmp_path: Path) -> None:
    asked = stopping(tmp_path, half_width=1e9)
    done = gr.run(asked, store=str(tmp_path / "store"), executor=SerialExecutor(0), search_path=[str(ROOT)])
    assert done.summary()["num_seeds"].to_list() == [3, 3]
    assert done.choices["stop"]["reached"] is True
    assert trainings(tmp_path) == 3 + done.costs()["unique"]
    again = gr.run(asked, store=str(tmp_path / "store"), executor=SerialExecutor(0), search_path=[str(ROOT)])
    assert again.summary().equals(done.summary())
    assert trainings(tmp_path) == 3 + done.costs()["unique"]


def test_status_tells_of_the_rule_from_the_first_round_on(tmp_path: Path) -> None:
    told: list[str] = []

    class Listener(NoProgress):
        def stage(self, name: str, total: int, done: int) -> None:
            told.append(stop_text(gr.open_run(str(tmp_path / "store"), "toy").choices["stop"]))

    gr.run(
        stopping(tmp_path, 1e-9), store=str(tmp_path / "store"), executor=SerialExecutor(0), search_path=[str(ROOT)], progress=Listener()
    )
    assert told[0].startswith("auc_del_negative: first round, 3 seeds; target ± 1e-09, at most 8 seeds")
    assert next(text for text in told if "projected, at most 8" in text).startswith("auc_del_negative: ± ")
    assert "after 6 seeds" in told[-1]


def test_rounds_go_on_to_the_last_seed_and_equal_a_run_of_all_at_once(tmp_path: Path) -> None:
    done = gr.run(stopping(tmp_path, half_width=1e-9), store=str(tmp_path / "store"), executor=SerialExecutor(0), search_path=[str(ROOT)])
    assert [found["seeds"] for found in done.choices["stop"]["rounds"]] == [3, 6, 8]
    assert done.choices["stop"]["reached"] is False
    assert trainings(tmp_path) == 8 + done.costs()["unique"], "a round trained again what another had"
    (tmp_path / "all").mkdir()
    options = {"folder": str(tmp_path / "all")}
    asked = experiment(
        "tests.toys:Counting", options, methods=["ntk-final/tracking", "random"], seeds=8, deletion={"fractions": [0.0, 0.1, 0.2]}
    )
    whole = gr.run(asked, store=str(tmp_path / "all" / "store"), executor=SerialExecutor(0), search_path=[str(ROOT)])
    assert done.deletion().collect().equals(whole.deletion().collect())


def test_seeds_and_stop_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="stop or seeds, not both"):
        experiment(stop={"half_width": 0.1})


def test_what_it_stops_by_must_be_measured(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"stop\.metric: expected a metric of this experiment"):
        stopping(tmp_path, 0.1, stop={"half_width": 0.1, "metric": "lds"})
