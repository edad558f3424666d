"""``attributions.top``: only the strongest scores are kept; removals, and what is measured by retraining, stay the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import genrep_dist as gr
from genrep_dist.diagnostics.run_checks import diagnose
from genrep_dist.errors import PlanError
from genrep_dist.runner.export import export_run
from genrep_dist.store import Store
from genrep_dist.workflow.prepare import prepare
from genrep_dist.workflow.stages import artifacts_of
from tests.experiments import ROOT, experiment

TOP = 9
METHODS = [
    "ntk-final/tracking",
    "ntk-final/surrogate",
    "last-layer-final/target",
    "tracincp",
    "influence-function",
    "rbf-final/target",
    "own-loss",
    "random",
]


def asked(num_classes: int = 3, **fields: Any) -> gr.Experiment:
    given: dict[str, Any] = {
        "methods": METHODS,
        "seeds": 1,
        "kernels": {"rbf": {"class": "tests.test_explain:Inner"}},
        "resources": {"memory_budget": "64KiB"},
        "deletion": {"counts": [0, 4], "signs": ["negative", "positive"]},
        "tracincp": {"checkpoints": [1, 4]},
        **fields,
    }
    return experiment(options={"num_classes": num_classes}, **given)


def run(folder: Path, **fields: Any) -> gr.Run:
    return gr.run(asked(**fields), store=str(folder), serial=True, search_path=[str(ROOT)])


@pytest.fixture(scope="module", params=[2, 3])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[gr.Run, gr.Run]:
    """The run that keeps all scores, and the one that keeps the strongest, in stores of their own."""
    folder = tmp_path_factory.mktemp("top")
    return run(folder / "all", num_classes=request.param), run(folder / "top", num_classes=request.param, attributions={"top": TOP})


def published(one: gr.Run, name: str) -> bytes:
    (path,) = Path(one.store.uri).rglob(name)
    return path.read_bytes()


def test_what_retraining_measures_does_not_change(pair: tuple[gr.Run, gr.Run]) -> None:
    for name in ("deletion.parquet", "points.parquet"):
        assert published(pair[0], name) == published(pair[1], name)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_kept_equals_the_beginning_of_all(pair: tuple[gr.Run, gr.Run], method: str) -> None:
    whole, kept = pair
    for sign in ("negative", "positive"):
        ids, scores = whole.strongest(method, 0, sign, TOP)
        np.testing.assert_array_equal(kept.removal_order(method, 0, sign), ids)
        np.testing.assert_array_equal(kept.strongest(method, 0, sign)[1], scores)
    phi, some = whole.attributions(method, 0), kept.attributions(method, 0)
    assert (~np.isnan(some)).sum(axis=0).tolist() == [min(2 * TOP, len(phi))] * phi.shape[1]
    np.testing.assert_array_equal(np.where(np.isnan(some), phi, some), phi)


def test_kernels_are_not_stored_and_can_be_computed(pair: tuple[gr.Run, gr.Run]) -> None:
    whole, kept = pair
    kinds = {spec.name for spec in (Path(kept.store.uri) / "artifacts").iterdir()}
    assert "strongest" in kinds
    assert "term" not in kinds
    assert set(kept.plan.needs.streamed) == {*whole.plan.needs.features} - {("ntk", 4)} | {("ntk", 4), ("ntk", 1)}
    np.testing.assert_array_equal(kept.kernel("last-layer", "final", 0), whole.kernel("last-layer", "final", 0))
    gaps = [one.certificates()["efficiency_gap_test"].to_list() for one in pair]
    assert gaps[1] == pytest.approx(gaps[0], nan_ok=True) if gaps[0][0] is not None else gaps[1] == gaps[0]


def test_the_doctor_and_the_report(pair: tuple[gr.Run, gr.Run], tmp_path: Path) -> None:
    findings = {finding.name: finding for finding in diagnose(pair[1]) if finding.name in ("scores", "finite", "efficiency")}
    assert {finding.colour for finding in findings.values()} <= {"green", "amber"}
    assert findings["scores"].colour == "green"
    sample = pair[0].removal_example(methods=["tracincp", "random"])
    assert sample == pair[1].removal_example(methods=["tracincp", "random"])
    paths = {path.name for path in export_run(pair[1], tmp_path)}
    assert {"tracincp.npz", "random.npz"} <= paths


def test_spans_of_another_budget_are_other_parts(tmp_path: Path) -> None:
    """A run that goes on where another was stopped takes none of its spans for its own."""
    fields: dict[str, Any] = {"methods": METHODS[:1], "attributions": {"top": 1}, "deletion": {"counts": [0]}}
    budgets = [{"memory_budget": budget} for budget in ("20KiB", "1GiB")]
    plans = [prepare(asked(**fields, resources=one), Store(str(tmp_path)), [str(ROOT)]).plan for one in budgets]
    few, one = (next(iter(artifacts_of(plan, "strongest"))) for plan in plans)
    assert len(few.units) > 1 == len(one.units)
    assert few.key == one.key
    assert few.array is not None
    assert one.array is not None
    assert few.array.name != one.array.name
    assert not set(few.parts) & set(one.parts)


def test_groups_and_other_blocks(tmp_path: Path) -> None:
    """Means of groups, with the budget that divides the rows otherwise."""
    fields: dict[str, Any] = {"target": {"group": "mean"}, "test_points": [[5000, 5006], [5009, 5012, 5003]], "methods": METHODS[:4]}
    whole = run(tmp_path / "all", **fields)
    kept = run(tmp_path / "top", **fields, attributions={"top": TOP}, resources={"memory_budget": "1GiB"})
    for method in METHODS[:4]:
        for found, expected in zip(kept.strongest(method, 0), whole.strongest(method, 0, count=TOP), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"lds": {"subsets": 8}, "loo": {"samples": 4}}, r"lds, loo need the scores of all[\s\S]*attributions.top: 9"),
        ({"relabel": {"samples": 4}}, "relabel needs the scores of all"),
        ({"deletion": {"counts": [0, 10]}}, r"at least 10, the samples of the largest removal[\s\S]*got: 9"),
        ({"brittleness": {"counts": [0, 12]}}, r"at least 12[\s\S]*got: 9"),
    ],
)
def test_what_is_refused_before_anything_is_computed(fields: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=expected):
        prepare(asked(attributions={"top": TOP}, **fields), Store(str(tmp_path)), [str(ROOT)])
    assert not list(tmp_path.rglob("attribution"))


def test_only_the_setting_enters_the_keys(tmp_path: Path) -> None:
    plain, same, other = (
        prepare(asked(attributions=fields), Store(str(tmp_path)), [str(ROOT)]).plan for fields in ({}, {"top": None}, {"top": TOP})
    )
    assert plain.keys.results == same.keys.results
    method = plain.experiment.method("tracincp")
    assert plain.keys.attribution(0, method) == same.keys.attribution(0, method) != other.keys.attribution(0, method)
    assert plain.keys.model(0) == other.keys.model(0)
    assert plain.keys.retraining(0, [1003], "same") == other.keys.retraining(0, [1003], "same")
    assert isinstance(other.top, int)
    written = {stage.name: stage.bytes_written for stage in other.stages}
    assert written["strongest"] > 0
    del written["strongest"]
    assert pl.Series(list(written.values())).is_not_null().all()
