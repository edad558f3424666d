"""A healthy run is green, the examination repeats itself, and what it is made of."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

import genrep_dist as gr
from genrep_dist.diagnostics import Finding, examine, model_modes, training, worst
from genrep_dist.diagnostics.fixture import Patient
from genrep_dist.errors import MethodError, NotCommittedError
from genrep_dist.runner.export import export_problem
from genrep_dist.runner.run import train_originals
from tests.diagnostics.patients import change, look, run
from tests.experiments import ROOT, experiment


def test_a_healthy_run_is_green_but_for_its_few_seeds(healthy: gr.Run) -> None:
    findings = look(healthy)
    assert findings.sick() == set()
    assert worst(findings) == "amber"
    names = {
        *("mode", "normalisation", "dropout", "gradients", "features", "batch size", "reproduction", "kernel"),
        *("gram symmetry", "gram eigenvalue"),
        *("surrogate residual", "efficiency", "influence residual", "tracking identity", "optimiser", "finite", "scores"),
        *("ledger", "originals", "retraining", "judgement", "learning", "power"),
    }
    assert {finding.name for finding in findings} == names
    for found in findings:
        assert (found.remedy == "") == (found.colour == "green"), found
        assert found.text
    json.dumps([asdict(found) for found in findings], allow_nan=False)


def test_the_examination_repeats_itself_and_leaves_no_trace(healthy: gr.Run) -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    files = {path: path.read_bytes() for path in Path(healthy.store.uri).rglob("*") if path.is_file()}
    assert examine(healthy, samples=3) == examine(healthy, samples=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert {path: path.read_bytes() for path in Path(healthy.store.uri).rglob("*") if path.is_file()} == files


def test_retraining_here_and_now_gives_the_same_bits(healthy: gr.Run) -> None:
    findings = look(healthy)
    found = findings.of("retraining")
    assert found.number == 0
    assert f"both with torch {torch.__version__} on cpu" in found.text


def test_more_samples_than_there_are(healthy: gr.Run) -> None:
    assert any("over 40 samples" in found.text for found in examine(healthy, samples=1000))
    with pytest.raises(MethodError, match="at least 1"):
        examine(healthy, samples=0)


def test_a_model_in_float64_is_held_to_float64(tmp_path: Path) -> None:
    done = run(tmp_path, "Precise", methods=["ntk-final/tracking", "last-layer-final/tracking", "tracincp"])
    findings = look(done)
    assert findings.sick() == set()
    for name in ("gradients", "batch size", "reproduction"):
        bound = findings.of(name).bound
        assert bound is not None
        assert bound < 1e-12
    tracking = findings.of("tracking identity")
    assert tracking.bound is None
    assert "not linear in its parameters" in tracking.text
    assert tracking.number is not None
    assert tracking.number > 0.01


def test_the_tracking_identity_of_a_linear_model(tmp_path: Path) -> None:
    """Eq. 8 must hold, for several outputs too; and where it does not, that is seen."""
    done = run(tmp_path, "LearnableLinear", {"num_classes": 3}, methods=["ntk-final/tracking", "tracincp"])
    findings = look(done)
    assert findings.sick() == set()
    tracking = findings.of("tracking identity")
    assert tracking.bound is not None
    assert tracking.number is not None
    assert 0 < tracking.number <= tracking.bound
    change(done, "train", done.plan.keys.train(0), "tracking", lambda alpha: np.multiply(alpha, 1.01, out=alpha))
    assert look(done).sick() == {("tracking identity", "red"), ("scores", "red")}


def test_code_that_is_not_the_runs_any_more(patient: gr.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model cannot be examined; the store still is, and the reason is told once."""
    monkeypatch.setattr("genrep_dist.workflow.context.source_digest", lambda *_arguments: "another")
    findings = examine(patient)
    red = [found for found in findings if found.colour == "red"]
    assert len(red) == 1
    assert red[0].name.startswith("mode, normalisation, dropout, gradients")
    assert "differs" in red[0].text
    assert {"gram symmetry", "finite", "ledger", "originals", "judgement"} <= {found.name for found in findings if found.colour == "green"}


@pytest.mark.parametrize(
    ("count", "colour", "words"), [(1, "amber", "no interval"), (9, "amber", "94 to 95 %"), (10, "green", "94 to 95 %")]
)
def test_power_counts_seeds(count: int, colour: str, words: str) -> None:
    (found,) = training.power(cast("Patient", SimpleNamespace(seeds=range(count))))
    assert (found.colour, found.number, found.bound) == (colour, count, 10)
    assert words in found.text


def test_modes_of_single_layers() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False), nn.Dropout(0.5))
    assert model_modes.mode(model, 0).number == 4
    assert model_modes.mode(model.eval(), 0).colour == "green"
    assert model_modes.normalisation(model, 0).colour == "red"
    assert model_modes.dropout(model, 0).colour == "green"
    model[2].train()
    assert model_modes.dropout(model, 0).colour == model_modes.mode(model, 0).colour == "red"
    within = nn.Sequential(nn.InstanceNorm1d(2), nn.GroupNorm(1, 2), nn.LayerNorm(2), nn.Dropout(0.0))
    assert model_modes.normalisation(within, 0).colour == "green"
    assert "no dropout" in model_modes.dropout(within, 0).text
    assert model_modes.normalisation(nn.BatchNorm1d(2), 0).colour == "amber"


def test_an_unfinished_run_is_refused(patient: gr.Run) -> None:
    patient.store.objects.delete(f"results/{patient.name}/manifest.json")
    with pytest.raises(NotCommittedError, match="not finished"):
        examine(patient)


def test_worst() -> None:
    green = Finding("a", "green", 0, 0, "", "")
    assert worst([]) == "green"
    assert worst([green, replace(green, colour="amber"), green]) == "amber"
    assert worst([replace(green, colour="red"), replace(green, colour="amber")]) == "red"


def test_importing_the_doctor_imports_nothing_heavy() -> None:
    code = "import sys, genrep_dist.diagnostics; print([m for m in ('torch', 'polars', 'zarr', 'scipy', 'numpy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("unverified", [False, True])
def test_scores_from_elsewhere_are_examined_too(tmp_path: Path, unverified: bool) -> None:
    """Their orders and every metric are checked; that they do not say their model is told."""
    section = {"path": str(tmp_path / "scores"), "positive_raises": True, "unverified": unverified}
    asked = experiment(methods=["ntk-final/target", "theirs"], external={"theirs": section}, lds={"subsets": 4})
    trained = train_originals(asked, str(tmp_path / "store"), serial=True, search_path=[str(ROOT)])
    list(export_problem(trained, tmp_path / "models"))
    (tmp_path / "scores").mkdir()
    for seed in (0, 1):
        problem = gr.open_exported(tmp_path / "models", seed, [ROOT])
        scores = np.random.default_rng(seed).normal(size=(40, 2))
        if unverified:
            np.save(tmp_path / "scores" / f"{seed}.npy", scores)
        else:
            problem.save(tmp_path / "scores" / f"{seed}.npz", scores)
    done = gr.run(asked, store=str(tmp_path / "store"), serial=True, search_path=[str(ROOT)])
    findings = look(done)
    assert findings.of("scores from elsewhere").colour == ("amber" if unverified else "green")
    assert findings.of("scores").colour == findings.of("judgement").colour == "green"
    points = Path(done.store.uri) / "results/toy/points.parquet"
    pl.read_parquet(points).with_columns(pl.col("value") + 0.5).write_parquet(points)
    assert look(done).of("judgement").colour == "red"
