"""Models, recipes and kernels that are ill by nature: their own finding turns, and no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import genrep_dist as gr
from genrep_dist.core.gradients.per_sample import per_sample_gradients
from genrep_dist.diagnostics import gradients
from tests.diagnostics.patients import Forgetful, copy, look, run


@pytest.mark.parametrize("name", ["momentum", "weight_decay"])
def test_an_optimiser_against_the_methods(name: str, tmp_path: Path) -> None:
    done = run(tmp_path, recipe={name: 0.3}, methods=["ntk-final/tracking", "tracincp", "random"])
    findings = look(done)
    assert findings.sick() == {("optimiser", "amber")}
    found = findings.of("optimiser")
    assert (found.number, found.bound) == (0.3, 0)
    assert "ntk-final/tracking, tracincp;" in found.text
    assert "not plain SGD" in findings.of("tracking identity").text
    other = run(tmp_path, recipe={name: 0.3}, methods=["random"], name="other")
    findings = look(other)
    assert findings.sick() == set()


def test_a_model_that_looks_at_its_batch(tmp_path: Path) -> None:
    done = run(tmp_path, "Companionable", methods=["ntk-final/tracking"])
    findings = look(done)
    assert findings.sick() == {("batch size", "red")}
    assert findings.of("batch size").text.startswith("outputs")


def test_batch_normalisation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(tmp_path / "store", "Normalised", methods=["ntk-final/tracking", "random"])
    findings = look(done)
    assert findings.sick() == {("normalisation", "amber")}
    assert "1 (3)" in findings.of("dropout").text
    assert "another function in training" in findings.of("tracking identity").text
    harmed = copy(done, tmp_path / "harmed")
    monkeypatch.setattr(Forgetful, "forgets", True)
    findings = look(harmed)
    assert ("normalisation", "red") in findings.sick()
    assert findings.of("normalisation").number == 1


def test_gradients_that_differ_from_backward(healthy: gr.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    right = per_sample_gradients
    monkeypatch.setattr(gradients, "per_sample_gradients", lambda *arguments: right(*arguments) * 1.001)
    findings = look(healthy)
    assert findings.sick() == {("gradients", "red")}
    assert findings.of("gradients").number == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize(("kernel", "expected"), [("Rbf", set()), ("Lopsided", {("kernel", "red")})])
def test_kernels_of_ones_own(kernel: str, expected: set[tuple[str, str]], patient: gr.Run) -> None:
    fields: dict[str, Any] = {"kernels": {"mine": {"class": f"tests.diagnostics.patients:{kernel}"}}, "methods": ["mine-final/target"]}
    assert look(run(Path(patient.store.uri), name="own", **fields)).sick() == expected


def test_a_model_that_has_learned_nothing(tmp_path: Path) -> None:
    lazy = run(tmp_path / "a", recipe={"learning_rate": 1e-6}, methods=["random"])
    findings = look(lazy)
    assert findings.sick() == {("learning", "amber")}
    for rate, expected in ((0.1, set()), (1e-6, {("learning", "amber")})):
        done = run(tmp_path / "b", "Regression", {"learning_rate": rate}, name=f"rate-{rate}", methods=["random"])
        assert look(done).sick() == expected
