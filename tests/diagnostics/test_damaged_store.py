"""The store is changed in one place: the finding of that fault turns, and no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import genrep_dist as gr
from genrep_dist.diagnostics import diagnose
from genrep_dist.diagnostics.checks import gram
from genrep_dist.diagnostics.context import CheckContext
from genrep_dist.diagnostics.grams import gram_artifact, gram_spectrum
from tests.diagnostics.runs import Array, change, change_ledger, change_manifest, doctor, drawn_key, run, unexplained


def test_an_asymmetric_gram(run_copy: gr.Run) -> None:
    """By one float32 rounding: too little for anything else to notice."""

    def one_ulp(gram: Array) -> None:
        gram[0, 1] = np.nextafter(gram[0, 1], np.float32(np.inf))

    change(run_copy, "gram", run_copy.plan.keys.gram(1, "ntk", 6), "gram", one_ulp)
    findings = doctor(run_copy)
    assert findings.not_green() == {("gram symmetry", "red")}
    assert findings.worst_of("gram symmetry").seed == 1


def test_a_gram_that_is_not_positive_semi_definite(run_copy: gr.Run) -> None:
    def negate(gram: Array) -> None:
        gram[3, 3] *= -1

    change(run_copy, "gram", run_copy.plan.keys.gram(1, "ntk", 6), "gram", negate)
    findings = doctor(run_copy)
    assert findings.not_green() == {("gram eigenvalue", "red")}
    # In the first seed's gram, alpha is also seen not to be its projection any more.
    change(run_copy, "gram", run_copy.plan.keys.gram(0, "ntk", 6), "gram", negate)
    findings = doctor(run_copy)
    assert findings.not_green() == {("gram eigenvalue", "red"), ("surrogate residual", "red")}


def test_nan_in_a_gram(run_copy: gr.Run) -> None:
    change(run_copy, "gram", run_copy.plan.keys.gram(1, "ntk", 6), "gram", lambda gram: gram.__setitem__((5, 7), np.nan))
    findings = doctor(run_copy)
    assert findings.not_green() == {("gram symmetry", "red"), ("gram eigenvalue", "red")}
    assert findings.worst_of("gram eigenvalue").number is None


def test_a_large_gram_is_judged_by_a_principal_minor(healthy: gr.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram, "EIGEN_ROWS", 10)
    monkeypatch.setattr(gram, "ALL_SEEDS_BYTES", 0)
    findings = doctor(healthy)
    found = findings.worst_of("gram eigenvalue")
    assert found.colour == "green"
    assert "a principal minor, 10 of 40 rows" in found.text
    assert found.bound == -10 * 2.0**-23


def test_a_gram_in_tiles_has_the_eigenvalues_of_the_whole(healthy: gr.Run, tmp_path: Path) -> None:
    tiled = run(tmp_path, methods=["ntk-final/surrogate"], resources={"memory_budget": "20KiB"})
    assert len(tiled.plan.tiles("ntk")) > 1
    findings = doctor(tiled)
    assert findings.not_green() == set()
    assert "a principal minor, 25 of 40 rows" in findings.worst_of("gram eigenvalue").text
    # The budget holds several copies of the gradients of so few samples.
    assert len(CheckContext(tiled, 40).rows) == 20 * 1024 // (8 * 4 * tiled.plan.shape.num_parameters) < 40
    stored = healthy.store.artifact("gram", healthy.plan.keys.gram(0, "ntk", 6)).read("gram").astype(np.float64)
    eigenvalues = np.linalg.eigvalsh(stored)
    for done in (healthy, tiled):
        asymmetry, smallest = gram_spectrum(gram_artifact(CheckContext(done, 8), 0, "ntk", 6), np.arange(40))
        assert asymmetry == 0
        assert smallest == pytest.approx(eigenvalues[0] / eigenvalues[-1], abs=1e-14 if done is healthy else 1e-6)


def test_a_budget_without_room_for_the_gradients_of_all_outputs(tmp_path: Path) -> None:
    """A few outputs are checked, one after the other, and the findings say which."""
    methods = ["ntk-final/tracking", "last-layer-final/target"]
    small = run(tmp_path, options={"num_classes": 5}, methods=methods, test_points=1, resources={"memory_budget": "14KiB"})
    context = CheckContext(small, 8)
    assert len(context.outputs) == 3 < small.plan.shape.num_outputs
    findings = doctor(small)
    assert findings.not_green() <= {("learning", "amber")}
    for name in ("gradients", "features"):
        assert f"outputs {', '.join(map(str, context.outputs))} only" in findings.worst_of(name).text


def test_a_surrogate_that_is_not_the_projection(run_copy: gr.Run) -> None:
    key = run_copy.plan.keys.solved("surrogate", 0, "ntk", 6)
    change(run_copy, "surrogate", key, "alpha", lambda alpha: np.multiply(alpha, 1.001, out=alpha))
    findings = doctor(run_copy)
    assert findings.not_green() == {("surrogate residual", "red"), ("scores", "red")}


def test_a_surrogate_that_was_certified_badly(run_copy: gr.Run) -> None:
    change_manifest(run_copy, "surrogate", run_copy.plan.keys.solved("surrogate", 1, "ntk", 6), residual=1e-3)
    findings = doctor(run_copy)
    assert findings.not_green() == {("surrogate residual", "red")}
    assert findings.worst_of("surrogate residual").number == 1e-3


def test_a_projection_far_from_the_model(run_copy: gr.Run) -> None:
    flat = run(Path(run_copy.store.uri), name="flat", methods=["ntk-final/surrogate"], surrogate={"lambda": 10.0})
    findings = doctor(flat)
    assert findings.not_green() == {("efficiency", "amber")}
    far = [found for found in findings if found.name == "efficiency"]
    assert [found.colour for found in far] == ["amber", "amber"]
    on_test = next(found for found in far if "test points" in found.text)
    assert on_test.seed is not None
    artifact = flat.store.artifact("train", flat.plan.keys.train(on_test.seed))
    outputs = artifact.read("outputs_test")[flat.plan.keys.test_positions(on_test.seed), 0]
    gap = np.abs(outputs - flat.attributions("ntk-final/surrogate", on_test.seed).sum(axis=0)).max()
    assert on_test.number == pytest.approx(gap / np.ptp(artifact.read("outputs_train")[-1]), rel=1e-5)


def test_kernel_descent_with_rates_too_large(run_copy: gr.Run) -> None:
    fields: dict[str, Any] = {"methods": ["ntk-final/descent"], "name": "down"}
    findings = doctor(run(Path(run_copy.store.uri), **fields))
    assert {name for name, _ in findings.not_green()} <= {"efficiency", "descent rate"}
    rate = findings.worst_of("descent rate")
    assert rate.number is not None
    stable = doctor(run(Path(run_copy.store.uri), **fields, descent={"learning_rate": 0.5 * 0.1 / rate.number}))
    assert stable.worst_of("descent rate").number == pytest.approx(0.5, rel=0.05)
    assert stable.worst_of("descent rate").colour == "green"
    fast = doctor(run(Path(run_copy.store.uri), **fields, descent={"learning_rate": 1.5 * 0.1 / rate.number, "epochs": 1}))
    assert ("descent rate", "amber") in fast.not_green()


def test_a_stored_kernel_that_is_not_the_models(run_copy: gr.Run) -> None:
    key = run_copy.plan.keys.kernel(0, "last-layer", 6)
    change(run_copy, "kernel", key, "kernel", lambda kernel: np.multiply(kernel, 1.001, out=kernel))
    findings = doctor(run_copy)
    assert findings.not_green() == {("kernel", "red"), ("scores", "red")}
    assert "last-layer at epoch 6" in findings.worst_of("kernel").text


def test_scores_that_are_not_alpha_times_the_kernel(run_copy: gr.Run) -> None:
    key = run_copy.plan.keys.attribution(0, run_copy.plan.experiment.method("tracincp"))
    change(run_copy, "attribution", key, "phi", lambda phi: phi.__setitem__((2, 1), phi[2, 1] * (1 + 1e-9) + 1e-9))
    findings = doctor(run_copy)
    assert findings.not_green() == {("scores", "red")}
    assert findings.worst_of("scores").text.startswith("tracincp")


def test_a_removal_order_that_is_not_that_of_the_scores(run_copy: gr.Run) -> None:
    key = run_copy.plan.keys.attribution(0, run_copy.plan.experiment.method("tracincp"))
    change(run_copy, "attribution", key, "order_negative", lambda order: order.__setitem__((0, slice(None)), order[0, ::-1].copy()))
    findings = doctor(run_copy)
    assert findings.not_green() == {("scores", "red"), ("ledger", "red")}


def test_nan_among_scores_is_told_with_its_sample_id(run_copy: gr.Run) -> None:
    key = run_copy.plan.keys.attribution(1, run_copy.plan.experiment.method("tracincp"))
    change(run_copy, "attribution", key, "phi", lambda phi: phi.__setitem__(([4, 9], 1), np.nan))
    findings = doctor(run_copy)
    assert findings.not_green() == {("finite", "red")}
    found = findings.worst_of("finite")
    assert (found.number, found.seed) == (2, 1)
    assert f"sample id {run_copy.train_ids(1)[4]}" in found.text
    assert key in found.remedy


@pytest.mark.parametrize("array", ["outputs_train", "outputs_test"])
def test_infinite_outputs_are_told_with_their_sample_id(array: str, run_copy: gr.Run) -> None:
    key = run_copy.plan.keys.train(1)
    where = (1, 6, 0) if array == "outputs_train" else (unexplained(run_copy), 0)
    change(run_copy, "train", key, array, lambda outputs: outputs.__setitem__(where, np.inf))
    dataset = run_copy.train if array == "outputs_train" else run_copy.test
    findings = doctor(run_copy)
    found = findings.worst_of("finite")
    assert found.number == 1
    assert f"{array} of train seed=1: sample id {int(dataset.ids[where[-2]])}" in found.text


def test_nan_in_the_ledger_is_told_with_its_sample_id(run_copy: gr.Run) -> None:
    row, drawn = unexplained(run_copy), drawn_key(run_copy)
    keys = run_copy.store.ledger(run_copy.plan.keys.training).scan().filter(pl.col("num_removed") > 0).collect()["key"]
    key = next(key for key in keys if not key.startswith(drawn))
    assert change_ledger(run_copy, lambda line: line["key"] == key, lambda line: line["outputs"].__setitem__(row, np.nan)) == 1
    findings = doctor(run_copy)
    assert findings.not_green() == {("finite", "red")}
    found = findings.worst_of("finite")
    assert f"sample id {int(run_copy.test.ids[row])}" in found.text
    assert key in found.remedy


def test_a_ledger_of_another_training(run_copy: gr.Run) -> None:
    row = unexplained(run_copy)
    change_ledger(
        run_copy, lambda line: line["num_removed"] > 0, lambda line: line["outputs"].__setitem__(row, line["outputs"][row] + 0.01)
    )
    findings = doctor(run_copy)
    assert findings.not_green() == {("retraining", "red")}


def test_a_ledger_that_was_changed_after_the_judgement(run_copy: gr.Run) -> None:
    drawn = drawn_key(run_copy)
    touched = change_ledger(
        run_copy,
        lambda line: line["num_removed"] > 0 and not line["key"].startswith(drawn),
        lambda line: np.add(line["outputs"], 0.1, out=line["outputs"]),
    )
    assert touched > 0
    findings = doctor(run_copy)
    assert findings.not_green() == {("published results", "red")}


def test_originals_that_differ_by_one_rounding(run_copy: gr.Run) -> None:
    row = unexplained(run_copy)
    change_ledger(
        run_copy,
        lambda line: line["num_removed"] == 0 and line["seed"] == 1,
        lambda line: line["outputs"].__setitem__(row, np.nextafter(line["outputs"][row], np.float32(np.inf))),
    )
    findings = doctor(run_copy)
    assert findings.not_green() == {("originals", "red")}
    assert findings.worst_of("originals").seed == 1


def test_a_forged_removed_set(run_copy: gr.Run) -> None:
    drawn = drawn_key(run_copy)

    def swap(line: dict[str, Any]) -> None:
        line["removed"] = [*line["removed"][1:], next(int(i) for i in run_copy.train_ids(0) if i not in line["removed"])]

    change_ledger(run_copy, lambda line: line["num_removed"] > 0 and not line["key"].startswith(drawn), swap)
    findings = doctor(run_copy)
    assert findings.not_green() == {("ledger", "red")}


def test_missing_ledger_rows(run_copy: gr.Run) -> None:
    ledger = run_copy.store.ledger(run_copy.plan.keys.training)
    retrained = [path for path in ledger.parts() if len(pl.read_parquet(Path(run_copy.store.uri) / path).filter(pl.col("num_removed") > 0))]
    for path in retrained:
        run_copy.store.objects.delete(path)
    findings = doctor(run_copy)
    assert findings.not_green() == {("ledger", "red"), ("published results", "red"), ("retraining", "red")}
    asked = run_copy.plan.retrainings_at_most
    number = findings.worst_of("ledger").number
    assert number is not None
    assert 0 < number <= asked
    assert "not checked" in findings.worst_of("published results").text


def test_a_checkpoint_that_does_not_give_the_stored_outputs(run_copy: gr.Run) -> None:
    def shake(state: Array) -> None:
        state[-1] += 1e-3

    change(run_copy, "train", run_copy.plan.keys.train(0), "state_float32", shake)
    findings = doctor(run_copy)
    assert ("reproduction", "red") in findings.not_green()


def test_damaged_bytes_hide_no_other_finding(run_copy: gr.Run) -> None:
    folder = (
        Path(run_copy.store.uri)
        / run_copy.store.artifact("surrogate", run_copy.plan.keys.solved("surrogate", 0, "ntk", 6)).path
        / "alpha"
        / "c"
    )
    chunk = next(path for path in folder.rglob("*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-5] + b"oops!")
    findings = diagnose(run_copy)
    red = [found for found in findings if found.colour == "red"]
    # One fault gives one finding for all checks that it stops.
    assert [found.name for found in red] == ["surrogate residual, efficiency, scores", "finite"]
    assert "not checked: a file of the store is damaged" in red[0].text
    assert "run the experiment again" in red[0].remedy
    assert len([found for found in findings if found.colour == "green"]) > 10


def test_influence_certificates(run_copy: gr.Run) -> None:
    key = run_copy.plan.keys.kernel(1, "influence", 6)
    change_manifest(run_copy, "kernel", key, residual=1e-3)
    findings = doctor(run_copy)
    assert findings.not_green() == {("influence residual", "red")}
    change_manifest(run_copy, "kernel", key, residual=1e-12, negative_curvature=2)
    findings = doctor(run_copy)
    assert findings.not_green() == {("influence curvature", "amber")}
    found = findings.worst_of("influence curvature")
    assert (found.number, found.bound, found.seed) == (2, 0, 1)
    change_manifest(run_copy, "kernel", key, negative_curvature=0, smallest_rayleigh=-0.5, largest_rayleigh=5.0)
    findings = doctor(run_copy)
    assert findings.not_green() == {("influence curvature", "amber")}
    assert findings.worst_of("influence curvature").number == pytest.approx(-0.1)
    change_manifest(run_copy, "kernel", key, smallest_rayleigh=0.5, residual=0.5, tolerance=None)
    findings = doctor(run_copy)
    assert findings.not_green() == {("influence residual", "amber")}


def test_the_true_hessians_influence(run_copy: gr.Run) -> None:
    bent = run(
        Path(run_copy.store.uri),
        name="bent",
        methods=["influence-function"],
        influence={"curvature": "hessian", "damping": 1.0},
    )
    findings = doctor(bent)
    assert findings.not_green() <= {("influence curvature", "amber")}
    assert findings.worst_of("influence residual").bound == 1e-4
    assert findings.worst_of("influence curvature").bound is not None
