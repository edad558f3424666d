"""What the store holds is changed, one thing at a time: its own finding turns, and no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import genrep_dist as gr
from genrep_dist.diagnostics import examine, grams
from genrep_dist.diagnostics.fixture import Patient
from tests.diagnostics.patients import Array, change, change_ledger, change_manifest, drawn_key, look, run, unexplained


def test_an_asymmetric_gram(patient: gr.Run) -> None:
    """By one float32 rounding: too little for anything else to notice."""

    def one_ulp(gram: Array) -> None:
        gram[0, 1] = np.nextafter(gram[0, 1], np.float32(np.inf))

    change(patient, "gram", patient.plan.keys.gram(1, "ntk", 6), "gram", one_ulp)
    findings = look(patient)
    assert findings.sick() == {("gram symmetry", "red")}
    assert findings.of("gram symmetry").seed == 1


def test_a_gram_that_is_not_positive_semi_definite(patient: gr.Run) -> None:
    def negate(gram: Array) -> None:
        gram[3, 3] *= -1

    change(patient, "gram", patient.plan.keys.gram(1, "ntk", 6), "gram", negate)
    findings = look(patient)
    assert findings.sick() == {("gram eigenvalue", "red")}
    # In the first seed's gram, alpha is also seen not to be its projection any more.
    change(patient, "gram", patient.plan.keys.gram(0, "ntk", 6), "gram", negate)
    findings = look(patient)
    assert findings.sick() == {("gram eigenvalue", "red"), ("surrogate residual", "red")}


def test_nan_in_a_gram(patient: gr.Run) -> None:
    change(patient, "gram", patient.plan.keys.gram(1, "ntk", 6), "gram", lambda gram: gram.__setitem__((5, 7), np.nan))
    findings = look(patient)
    assert findings.sick() == {("gram symmetry", "red"), ("gram eigenvalue", "red")}
    assert findings.of("gram eigenvalue").number is None


def test_a_large_gram_is_judged_by_a_principal_minor(healthy: gr.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grams, "EIGEN_ROWS", 10)
    monkeypatch.setattr(grams, "ALL_SEEDS_BYTES", 0)
    findings = look(healthy)
    found = findings.of("gram eigenvalue")
    assert found.colour == "green"
    assert "a principal minor, 10 of 40 rows" in found.text
    assert found.bound == -10 * 2.0**-23


def test_a_gram_in_tiles_has_the_eigenvalues_of_the_whole(healthy: gr.Run, tmp_path: Path) -> None:
    tiled = run(tmp_path, methods=["ntk-final/surrogate"], resources={"memory_budget": "20KiB"})
    assert len(tiled.plan.tiles("ntk")) > 1
    findings = look(tiled)
    assert findings.sick() == set()
    assert "a principal minor, 25 of 40 rows" in findings.of("gram eigenvalue").text
    # So few samples' gradients fit that budget, several times over.
    assert len(Patient(tiled, 40).rows) == 20 * 1024 // (8 * 4 * tiled.plan.shape.num_parameters) < 40
    stored = healthy.store.artifact("gram", healthy.plan.keys.gram(0, "ntk", 6)).read("gram").astype(np.float64)
    eigenvalues = np.linalg.eigvalsh(stored)
    for done in (healthy, tiled):
        asymmetry, smallest = grams._look(Patient(done, 8), 0, "ntk", 6, np.arange(40))
        assert asymmetry == 0
        assert smallest == pytest.approx(eigenvalues[0] / eigenvalues[-1], abs=1e-14 if done is healthy else 1e-6)


def test_a_surrogate_that_is_not_the_projection(patient: gr.Run) -> None:
    key = patient.plan.keys.solved("surrogate", 0, "ntk", 6)
    change(patient, "surrogate", key, "alpha", lambda alpha: np.multiply(alpha, 1.001, out=alpha))
    findings = look(patient)
    assert findings.sick() == {("surrogate residual", "red"), ("scores", "red")}


def test_a_surrogate_that_was_certified_badly(patient: gr.Run) -> None:
    change_manifest(patient, "surrogate", patient.plan.keys.solved("surrogate", 1, "ntk", 6), residual=1e-3)
    findings = look(patient)
    assert findings.sick() == {("surrogate residual", "red")}
    assert findings.of("surrogate residual").number == 1e-3


def test_a_projection_far_from_the_model(patient: gr.Run) -> None:
    flat = run(Path(patient.store.uri), name="flat", methods=["ntk-final/surrogate"], surrogate={"lambda": 10.0})
    findings = look(flat)
    assert findings.sick() == {("efficiency", "amber")}
    far = [found for found in findings if found.name == "efficiency"]
    assert [found.colour for found in far] == ["amber", "amber"]
    on_test = next(found for found in far if "test points" in found.text)
    assert on_test.seed is not None
    artifact = flat.store.artifact("train", flat.plan.keys.train(on_test.seed))
    outputs = artifact.read("outputs_test")[flat.plan.keys.test_positions(on_test.seed), 0]
    gap = np.abs(outputs - flat.attributions("ntk-final/surrogate", on_test.seed).sum(axis=0)).max()
    assert on_test.number == pytest.approx(gap / np.ptp(artifact.read("outputs_train")[-1]), rel=1e-5)


def test_kernel_descent_with_rates_too_large(patient: gr.Run) -> None:
    fields: dict[str, Any] = {"methods": ["ntk-final/descent"], "name": "down"}
    findings = look(run(Path(patient.store.uri), **fields))
    assert {name for name, _ in findings.sick()} <= {"efficiency", "descent rate"}
    rate = findings.of("descent rate")
    assert rate.number is not None
    stable = look(run(Path(patient.store.uri), **fields, descent={"learning_rate": 0.5 * 0.1 / rate.number}))
    assert stable.of("descent rate").number == pytest.approx(0.5, rel=0.05)
    assert stable.of("descent rate").colour == "green"
    fast = look(run(Path(patient.store.uri), **fields, descent={"learning_rate": 1.5 * 0.1 / rate.number, "epochs": 1}))
    assert ("descent rate", "amber") in fast.sick()


def test_a_stored_kernel_that_is_not_the_models(patient: gr.Run) -> None:
    key = patient.plan.keys.kernel(0, "last-layer", 6)
    change(patient, "kernel", key, "kernel", lambda kernel: np.multiply(kernel, 1.001, out=kernel))
    findings = look(patient)
    assert findings.sick() == {("kernel", "red"), ("scores", "red")}
    assert "last-layer at epoch 6" in findings.of("kernel").text


def test_scores_that_are_not_alpha_times_the_kernel(patient: gr.Run) -> None:
    key = patient.plan.keys.attribution(0, patient.plan.experiment.method("tracincp"))
    change(patient, "attribution", key, "phi", lambda phi: phi.__setitem__((2, 1), phi[2, 1] * (1 + 1e-9) + 1e-9))
    findings = look(patient)
    assert findings.sick() == {("scores", "red")}
    assert findings.of("scores").text.startswith("tracincp")


def test_a_removal_order_that_is_not_that_of_the_scores(patient: gr.Run) -> None:
    key = patient.plan.keys.attribution(0, patient.plan.experiment.method("tracincp"))
    change(patient, "attribution", key, "order_negative", lambda order: order.__setitem__((0, slice(None)), order[0, ::-1].copy()))
    findings = look(patient)
    assert findings.sick() == {("scores", "red"), ("ledger", "red")}


def test_nan_among_scores_is_told_with_its_sample_id(patient: gr.Run) -> None:
    key = patient.plan.keys.attribution(1, patient.plan.experiment.method("tracincp"))
    change(patient, "attribution", key, "phi", lambda phi: phi.__setitem__(([4, 9], 1), np.nan))
    findings = look(patient)
    assert findings.sick() == {("finite", "red")}
    found = findings.of("finite")
    assert (found.number, found.seed) == (2, 1)
    assert f"sample id {patient.train_ids(1)[4]}" in found.text
    assert key in found.remedy


@pytest.mark.parametrize("array", ["outputs_train", "outputs_test"])
def test_infinite_outputs_are_told_with_their_sample_id(array: str, patient: gr.Run) -> None:
    key = patient.plan.keys.train(1)
    where = (1, 6, 0) if array == "outputs_train" else (unexplained(patient), 0)
    change(patient, "train", key, array, lambda outputs: outputs.__setitem__(where, np.inf))
    dataset = patient.train if array == "outputs_train" else patient.test
    findings = look(patient)
    found = findings.of("finite")
    assert found.number == 1
    assert f"{array} of train seed=1: sample id {int(dataset.ids[where[-2]])}" in found.text


def test_nan_in_the_ledger_is_told_with_its_sample_id(patient: gr.Run) -> None:
    row, drawn = unexplained(patient), drawn_key(patient)
    keys = patient.store.ledger(patient.plan.keys.training).scan().filter(pl.col("num_removed") > 0).collect()["key"]
    key = next(key for key in keys if not key.startswith(drawn))
    assert change_ledger(patient, lambda line: line["key"] == key, lambda line: line["outputs"].__setitem__(row, np.nan)) == 1
    findings = look(patient)
    assert findings.sick() == {("finite", "red")}
    found = findings.of("finite")
    assert f"sample id {int(patient.test.ids[row])}" in found.text
    assert key in found.remedy


def test_a_ledger_of_another_training(patient: gr.Run) -> None:
    row = unexplained(patient)
    change_ledger(patient, lambda line: line["num_removed"] > 0, lambda line: line["outputs"].__setitem__(row, line["outputs"][row] + 0.01))
    findings = look(patient)
    assert findings.sick() == {("retraining", "red")}


def test_a_ledger_that_was_changed_after_the_judgement(patient: gr.Run) -> None:
    drawn = drawn_key(patient)
    touched = change_ledger(
        patient,
        lambda line: line["num_removed"] > 0 and not line["key"].startswith(drawn),
        lambda line: np.add(line["outputs"], 0.1, out=line["outputs"]),
    )
    assert touched > 0
    findings = look(patient)
    assert findings.sick() == {("judgement", "red")}


def test_originals_that_differ_by_one_rounding(patient: gr.Run) -> None:
    row = unexplained(patient)
    change_ledger(
        patient,
        lambda line: line["num_removed"] == 0 and line["seed"] == 1,
        lambda line: line["outputs"].__setitem__(row, np.nextafter(line["outputs"][row], np.float32(np.inf))),
    )
    findings = look(patient)
    assert findings.sick() == {("originals", "red")}
    assert findings.of("originals").seed == 1


def test_a_forged_removed_set(patient: gr.Run) -> None:
    drawn = drawn_key(patient)

    def swap(line: dict[str, Any]) -> None:
        line["removed"] = [*line["removed"][1:], next(int(i) for i in patient.train_ids(0) if i not in line["removed"])]

    change_ledger(patient, lambda line: line["num_removed"] > 0 and not line["key"].startswith(drawn), swap)
    findings = look(patient)
    assert findings.sick() == {("ledger", "red")}


def test_missing_ledger_rows(patient: gr.Run) -> None:
    ledger = patient.store.ledger(patient.plan.keys.training)
    retrained = [path for path in ledger.parts() if len(pl.read_parquet(Path(patient.store.uri) / path).filter(pl.col("num_removed") > 0))]
    for path in retrained:
        patient.store.objects.delete(path)
    findings = look(patient)
    assert findings.sick() == {("ledger", "red"), ("judgement", "red"), ("retraining", "red")}
    asked = patient.plan.retrainings_at_most
    number = findings.of("ledger").number
    assert number is not None
    assert 0 < number <= asked
    assert "not checked" in findings.of("judgement").text


def test_a_checkpoint_that_does_not_give_the_stored_outputs(patient: gr.Run) -> None:
    def shake(state: Array) -> None:
        state[-1] += 1e-3

    change(patient, "train", patient.plan.keys.train(0), "state_float32", shake)
    findings = look(patient)
    assert ("reproduction", "red") in findings.sick()


def test_damaged_bytes_hide_no_other_finding(patient: gr.Run) -> None:
    folder = (
        Path(patient.store.uri)
        / patient.store.artifact("surrogate", patient.plan.keys.solved("surrogate", 0, "ntk", 6)).path
        / "alpha"
        / "c"
    )
    chunk = next(path for path in folder.rglob("*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-5] + b"oops!")
    findings = examine(patient)
    damaged = [found for found in findings if found.colour == "red"]
    # A fault is told once for all the checks that it stopped in the same place.
    assert [found.name for found in damaged] == ["surrogate residual, efficiency, scores", "finite"]
    assert "not checked: a file of the store is damaged" in damaged[0].text
    assert "run the experiment again" in damaged[0].remedy
    assert len([found for found in findings if found.colour == "green"]) > 10


def test_influence_certificates(patient: gr.Run) -> None:
    key = patient.plan.keys.kernel(1, "influence", 6)
    change_manifest(patient, "kernel", key, residual=1e-3)
    findings = look(patient)
    assert findings.sick() == {("influence residual", "red")}
    change_manifest(patient, "kernel", key, residual=1e-12, negative_curvature=2)
    findings = look(patient)
    assert findings.sick() == {("influence curvature", "amber")}
    found = findings.of("influence curvature")
    assert (found.number, found.bound, found.seed) == (2, 0, 1)
    change_manifest(patient, "kernel", key, negative_curvature=0, smallest_rayleigh=-0.5, largest_rayleigh=5.0)
    findings = look(patient)
    assert findings.sick() == {("influence curvature", "amber")}
    assert findings.of("influence curvature").number == pytest.approx(-0.1)
    change_manifest(patient, "kernel", key, smallest_rayleigh=0.5, residual=0.5, tolerance=None)
    findings = look(patient)
    assert findings.sick() == {("influence residual", "amber")}


def test_the_true_hessians_influence(patient: gr.Run) -> None:
    bent = run(
        Path(patient.store.uri),
        name="bent",
        methods=["influence-function"],
        influence={"curvature": "hessian", "damping": 1.0},
    )
    findings = look(bent)
    assert findings.sick() <= {("influence curvature", "amber")}
    assert findings.of("influence residual").bound == 1e-4
    assert findings.of("influence curvature").bound is not None
