"""Models, recipes and kernels with one fault: the finding of that fault turns, and no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import genrep_dist as gr
from genrep_dist.core.gradients.per_sample import per_sample_gradients
from genrep_dist.diagnostics import context
from tests.diagnostics.runs import LOSES_STATISTICS, copy, doctor, run


@pytest.mark.parametrize("name", ["momentum", "weight_decay"])
def test_an_optimizer_against_the_methods(name: str, tmp_path: Path) -> None:
    done = run(tmp_path, recipe={name: 0.3}, methods=["ntk-final/tracking", "tracincp", "random"])
    findings = doctor(done)
    assert findings.not_green() == {("optimizer", "amber")}
    found = findings.worst_of("optimizer")
    assert (found.number, found.bound) == (1, 0)
    assert "ntk-final/tracking, tracincp;" in found.text
    assert "not plain SGD" in findings.worst_of("tracking identity").text
    other = run(tmp_path, recipe={name: 0.3}, methods=["random"], name="other")
    findings = doctor(other)
    assert findings.not_green() == set()


def test_a_model_that_looks_at_its_batch(tmp_path: Path) -> None:
    done = run(tmp_path, "BatchDependent", methods=["ntk-final/tracking"])
    findings = doctor(done)
    assert findings.not_green() == {("batch size", "red")}
    assert findings.worst_of("batch size").text.startswith("outputs")


def test_batch_normalisation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(tmp_path / "store", "Normalised", methods=["ntk-final/tracking", "random"])
    findings = doctor(done)
    assert findings.not_green() == {("normalisation", "amber")}
    assert "1 (3)" in findings.worst_of("dropout").text
    assert "another function in training" in findings.worst_of("tracking identity").text
    faulty = copy(done, tmp_path / "faulty")
    monkeypatch.setenv(LOSES_STATISTICS, "1")
    findings = doctor(faulty)
    assert ("normalisation", "red") in findings.not_green()
    assert findings.worst_of("normalisation").number == 1


def test_gradients_that_differ_from_backward(healthy: gr.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    right = per_sample_gradients
    monkeypatch.setattr(context, "per_sample_gradients", lambda *arguments: right(*arguments) * 1.001)
    findings = doctor(healthy)
    assert findings.not_green() == {("gradients", "red")}
    assert findings.worst_of("gradients").number == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize(("kernel", "expected"), [("Rbf", set()), ("AsymmetricRbf", {("kernel", "red")})])
def test_kernels_of_ones_own(kernel: str, expected: set[tuple[str, str]], run_copy: gr.Run) -> None:
    fields: dict[str, Any] = {"kernels": {"mine": {"class": f"tests.diagnostics.runs:{kernel}"}}, "methods": ["mine-final/target"]}
    assert doctor(run(Path(run_copy.store.uri), name="own", **fields)).not_green() == expected


def test_a_model_that_has_learned_nothing(tmp_path: Path) -> None:
    lazy = run(tmp_path / "a", recipe={"learning_rate": 1e-6}, methods=["random"])
    findings = doctor(lazy)
    assert findings.not_green() == {("learning", "amber")}
    for rate, expected in ((0.1, set()), (1e-6, {("learning", "amber")})):
        done = run(tmp_path / "b", "Regression", {"learning_rate": rate}, name=f"rate-{rate}", methods=["random"])
        assert doctor(done).not_green() == expected
