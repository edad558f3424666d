"""Experiments that would give numbers without meaning are refused or warned of when they are planned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import genrep_dist as gr
from genrep_dist.cli import app
from genrep_dist.diagnostics import diagnose
from genrep_dist.errors import MethodError, PlanError
from genrep_dist.results.reporting import report_data
from genrep_dist.store import Store
from genrep_dist.workflow.prepare import PreparedExperiment, prepare
from tests.experiments import ROOT, experiment, experiment_file


def plan(store: Path, options: dict[str, Any] | None = None, **fields: Any) -> PreparedExperiment:
    defaults: dict[str, Any] = {"methods": ["influence-function", "random"], "seeds": 1}
    asked = experiment("tests.own_losses:Rows", options, **(defaults | fields))
    return prepare(asked, Store(str(store)), [str(ROOT)])


def run(store: Path, options: dict[str, Any], **fields: Any) -> gr.Run:
    defaults: dict[str, Any] = {"methods": ["influence-function", "ntk-final/target", "random"], "seeds": 1}
    return gr.run(
        experiment("tests.own_losses:Rows", options, **(defaults | fields)), store=str(store), serial=True, search_path=[str(ROOT)]
    )


# -- losses without curvature ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curvature", ["ggn", "last-layer"])
@pytest.mark.parametrize("loss", ["hinge", "absolute", "pinball"])
def test_gauss_newton_influence_of_a_linear_loss_is_refused(tmp_path: Path, loss: str, curvature: str) -> None:
    with pytest.raises(MethodError) as caught:
        plan(tmp_path, {"loss": loss}, influence={"curvature": curvature})
    message = str(caught.value)
    kernel = "ntk" if curvature == "ggn" else "last-layer"
    assert f"would be the {kernel} kernel divided by the damping" in message
    for choice in ("influence.curvature: hessian", f"{kernel}-final/target", "influence.allow_zero_curvature: true"):
        assert choice in message


@pytest.mark.parametrize(
    ("loss", "fields"),
    [
        ("hinge", {"influence": {"curvature": "hessian"}}),
        ("absolute", {"influence": {"allow_zero_curvature": True}}),
        ("pinball", {"methods": ["ntk-final/target", "random"]}),
        ("huber", {}),
        ("squared", {}),
        ("logistic", {}),
    ],
)
def test_other_losses_and_explicit_choices_are_planned(tmp_path: Path, loss: str, fields: dict[str, Any]) -> None:
    assert plan(tmp_path, {"loss": loss}, **fields).plan.stages


def test_a_choice_for_a_linear_loss_is_in_doctor_and_report(tmp_path: Path) -> None:
    done = run(tmp_path, {"loss": "absolute"}, influence={"allow_zero_curvature": True})
    (finding,) = [found for found in diagnose(done) if found.name == "loss curvature"]
    assert (finding.colour, finding.number) == ("amber", 1.0)
    assert any("linear in the outputs on 100%" in warning for warning in report_data(done, done.judged()).warnings)
    expected = done.attributions("ntk-final/target", 0) / 0.1
    assert abs(done.attributions("influence-function", 0) - expected).max() <= 1e-5 * abs(expected).max(), "nothing but NTK / damping"


def test_a_loss_that_is_linear_on_many_samples_is_said(tmp_path: Path) -> None:
    done = run(tmp_path, {"loss": "huber"})
    (share,) = {certificate["flat_share"] for certificate in done.certificates().to_dicts()}
    assert 0.5 < share < 1
    (finding,) = [found for found in diagnose(done) if found.name == "loss curvature"]
    assert (finding.colour, finding.number) == ("amber", share)


# -- what is explained ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "num_outputs"), [("squared", 2), ("absolute", 3), ("pinball", 3), ("huber", 2)])
def test_several_outputs_without_classes_need_a_declared_output(tmp_path: Path, loss: str, num_outputs: int) -> None:
    methods = ["ntk-final/target", "random"]
    with pytest.raises(PlanError) as caught:
        plan(tmp_path, {"loss": loss, "num_outputs": num_outputs}, methods=methods)
    message = str(caught.value)
    assert "target.output" in message
    assert f"0 to {num_outputs - 1}" in message
    assert "`target: {output: 0}`" in message
    chosen = plan(tmp_path, {"loss": loss, "num_outputs": num_outputs}, methods=methods, target={"output": num_outputs - 1})
    assert chosen.plan.shape.num_outputs == num_outputs


@pytest.mark.parametrize(("loss", "num_outputs"), [("squared", 1), ("entropy", 3), ("declared", 2), ("absolute", 1)])
def test_one_output_and_classes_need_none(tmp_path: Path, loss: str, num_outputs: int) -> None:
    plan(tmp_path, {"loss": loss, "num_outputs": num_outputs}, methods=["ntk-final/target", "random"])


# -- shares that remove nothing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fractions", [[0.0, 0.01, 0.02], [0.005], [0.0, 0.001, 0.0208]])
@pytest.mark.parametrize("metric", ["deletion", "brittleness"])
def test_shares_that_all_remove_nothing_are_refused(tmp_path: Path, metric: str, fractions: list[float]) -> None:
    with pytest.raises(PlanError) as caught:
        plan(tmp_path, {"loss": "logistic"}, **{metric: {"fractions": fractions}})
    message = str(caught.value)
    assert f"{metric}.fractions" in message
    assert "1/24 = 0.0417" in message
    assert f"{fractions[-1]:g}" in message


@pytest.mark.parametrize("removals", [{"fractions": [0.0]}, {"counts": [0]}])
def test_brittleness_needs_a_removal(tmp_path: Path, removals: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match=r"no prediction could flip[\s\S]*1/24"):
        plan(tmp_path, {"loss": "logistic"}, brittleness=removals)


def test_single_shares_that_remove_nothing_or_the_same_are_warned_of(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"deletion": {"fractions": [0.0, 0.01, 0.04, 0.05, 0.2]}, "brittleness": {"fractions": [0.01, 0.02, 0.3]}}
    first, second, third = plan(tmp_path, {"loss": "logistic"}, **fields).plan.warnings
    assert first.startswith("deletion.fractions: the share 0.01 of 24 training samples removes no sample")
    assert "1/24 = 0.0417" in first
    assert second.startswith("deletion.fractions: the shares 0.04, 0.05 of 24 training samples are the same removal, of 1 sample")
    assert third.startswith("brittleness.fractions: the shares 0.01, 0.02 of 24 training samples remove no sample")


def test_the_plan_shows_its_warnings(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"deletion": {"fractions": [0.01, 0.2]}, "seeds": 1}
    path = experiment_file(tmp_path / "toy.yaml", "tests.own_losses:Rows", {"loss": "logistic"}, **fields)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        shown = CliRunner().invoke(app, ["plan", str(path), "--no-probe", "--store", str(tmp_path / "store")])
    assert "warning: deletion.fractions: the share 0.01 of 24 training samples removes no sample" in shown.output


def test_nothing_removed_on_purpose_is_warned_of(tmp_path: Path) -> None:
    (warning,) = plan(tmp_path, {"loss": "logistic"}, deletion={"counts": [0]}, lds={"subsets": 4}).plan.warnings
    assert "removes no sample" in warning


@pytest.mark.parametrize(("fraction", "kept"), [(0.01, "no sample"), (0.02, "no sample"), (0.99, "all samples"), (0.98, "all samples")])
def test_subsets_of_nothing_and_of_everything_are_refused(tmp_path: Path, fraction: float, kept: str) -> None:
    with pytest.raises(
        PlanError, match=rf"the subsets would have {kept}[\s\S]*lds\.fraction[\s\S]*1/24 = 0\.0417[\s\S]*{fraction:g} of 24"
    ):
        plan(tmp_path, {"loss": "logistic"}, lds={"subsets": 4, "fraction": fraction})
