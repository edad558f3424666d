"""A healthy run is green, the examination repeats itself, and what it is made of."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import cast

import numpy as np
import polars as pl
import pytest
import torch
from rich.console import Console
from torch import nn

import genrep_dist as gr
from genrep_dist.cli.display import show_findings
from genrep_dist.diagnostics import Finding, diagnose, worst_colour
from genrep_dist.diagnostics.checks import dropout, mode, normalisation, power
from genrep_dist.diagnostics.context import CheckContext
from genrep_dist.errors import MethodError, NotCommittedError
from genrep_dist.runner.export import export_problem
from genrep_dist.runner.run import train_originals
from tests.diagnostics.runs import Learnable, change, doctor, run
from tests.experiments import ROOT, experiment


def test_a_healthy_run_is_green_but_for_its_few_seeds(healthy: gr.Run) -> None:
    findings = doctor(healthy)
    assert findings.not_green() == set()
    assert worst_colour(findings) == "amber"
    names = {
        *("mode", "normalisation", "dropout", "gradients", "features", "batch size", "reproduction", "kernel"),
        *("gram symmetry", "gram eigenvalue"),
        *("surrogate residual", "efficiency", "influence residual", "loss curvature"),
        *("tracking identity", "optimizer", "finite", "scores", "equal scores"),
        *("ledger", "originals", "retraining", "published results", "logits", "divergence", "learning", "overlap", "power"),
    }
    assert {finding.name for finding in findings} == names
    for found in findings:
        assert (found.remedy == "") == (found.colour == "green"), found
        assert found.text
    json.dumps([asdict(found) for found in findings], allow_nan=False)


def test_the_examination_repeats_itself_and_leaves_no_trace(healthy: gr.Run) -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    files = {path: path.read_bytes() for path in Path(healthy.store.uri).rglob("*") if path.is_file()}
    assert diagnose(healthy, samples=3) == diagnose(healthy, samples=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert {path: path.read_bytes() for path in Path(healthy.store.uri).rglob("*") if path.is_file()} == files


def test_retraining_here_and_now_gives_the_same_bits(healthy: gr.Run) -> None:
    findings = doctor(healthy)
    found = findings.worst_of("retraining")
    assert found.number == 0
    assert f"both with torch {torch.__version__} on cpu" in found.text


def test_more_samples_than_there_are(healthy: gr.Run) -> None:
    assert any("over 40 samples" in found.text for found in diagnose(healthy, samples=1000))
    with pytest.raises(MethodError, match="at least 1"):
        diagnose(healthy, samples=0)


def test_a_model_in_float64_is_held_to_float64(tmp_path: Path) -> None:
    done = run(tmp_path, "Precise", methods=["ntk-final/tracking", "last-layer-final/tracking", "tracincp"])
    findings = doctor(done)
    assert findings.not_green() == set()
    for name in ("gradients", "batch size", "reproduction"):
        bound = findings.worst_of(name).bound
        assert bound is not None
        assert bound < 1e-12
    tracking = findings.worst_of("tracking identity")
    assert tracking.bound is None
    assert "not linear in its parameters" in tracking.text
    assert tracking.number is not None
    assert tracking.number > 0.01


def test_the_tracking_identity_of_a_linear_model(tmp_path: Path) -> None:
    """Eq. 8 must hold, for several outputs too; and where it does not, that is seen."""
    done = run(tmp_path, "LearnableLinear", {"num_classes": 3}, methods=["ntk-final/tracking", "tracincp"])
    findings = doctor(done)
    assert findings.not_green() == set()
    tracking = findings.worst_of("tracking identity")
    assert tracking.bound is not None
    assert tracking.number is not None
    assert 0 < tracking.number <= tracking.bound
    change(done, "train", done.plan.keys.train(0), "tracking", lambda alpha: np.multiply(alpha, 1.01, out=alpha))
    # Scores are sums of products with these importances, which are checked with the kernel.
    assert doctor(done).not_green() == {("tracking identity", "red"), ("kernel", "red")}


def test_code_that_is_not_the_runs_any_more(run_copy: gr.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model cannot be examined; the store still is, and the reason is told once."""
    monkeypatch.setattr(Learnable, "scale", 2.0, raising=False)
    findings = diagnose(run_copy)
    red = [found for found in findings if found.colour == "red"]
    assert len(red) == 1
    assert red[0].name.startswith("mode, normalisation, dropout, gradients")
    assert "differs" in red[0].text
    assert {"gram symmetry", "finite", "ledger", "originals", "published results"} <= {
        found.name for found in findings if found.colour == "green"
    }


@pytest.mark.parametrize(
    ("count", "colour", "words"), [(1, "amber", "no interval"), (9, "amber", "94 to 95 %"), (10, "green", "94 to 95 %")]
)
def test_power_counts_seeds(count: int, colour: str, words: str) -> None:
    (found,) = power.check(cast("CheckContext", SimpleNamespace(seeds=range(count))))
    assert (found.colour, found.number, found.bound) == (colour, count, 10)
    assert words in found.text


def test_modes_of_single_layers() -> None:
    def only(check: ModuleType, model: nn.Module) -> Finding:
        (found,) = check.check(cast("CheckContext", SimpleNamespace(model=model, seed=0)))
        return cast("Finding", found)

    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False), nn.Dropout(0.5))
    assert only(mode, model).number == 4
    assert only(mode, model.eval()).colour == "green"
    assert only(normalisation, model).colour == "red"
    assert only(dropout, model).colour == "green"
    model[2].train()
    assert only(dropout, model).colour == only(mode, model).colour == "red"
    within = nn.Sequential(nn.InstanceNorm1d(2), nn.GroupNorm(1, 2), nn.LayerNorm(2), nn.Dropout(0.0))
    assert only(normalisation, within).colour == "green"
    assert "no dropout" in only(dropout, within).text
    assert only(normalisation, nn.BatchNorm1d(2)).colour == "amber"


def test_absurd_numbers_after_retraining_are_red(healthy: gr.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    published = healthy.deletion().with_columns(pl.lit(-1e9).alias("score_retrained"))
    monkeypatch.setattr(healthy, "deletion", lambda: published)
    found = doctor(healthy).worst_of("divergence")
    assert (found.colour, found.number) == ("red", 1e9)
    assert "retrained models" in found.text
    assert "learning_rate" in found.remedy


def test_the_terminal_shows_what_is_not_green_in_lines_of_80_columns(healthy: gr.Run) -> None:
    findings = [*doctor(healthy), Finding("logits", "red", 2.0, 1.0, "text " * 30 + "; more", "remedy", 0)]
    shown = StringIO()
    show_findings(Console(file=shown, width=160), "toy", findings)
    first, second, counts, last = shown.getvalue().splitlines()
    assert first.startswith("red   logits: 2, bound 1: text")
    assert second.startswith("amber power: 2, bound 10: number of seeds")
    assert max(map(len, (first, second))) <= 80
    assert "1 amber, 1 red" in counts
    assert "--all" in last
    show_findings(Console(file=shown, width=160), "toy", findings, every=True)
    assert "remedy" in shown.getvalue()


def test_an_unfinished_run_is_refused(run_copy: gr.Run) -> None:
    run_copy.store.objects.delete(f"results/{run_copy.name}/manifest.json")
    with pytest.raises(NotCommittedError, match="not finished"):
        diagnose(run_copy)


def test_worst() -> None:
    green = Finding("a", "green", 0, 0, "", "")
    assert worst_colour([]) == "green"
    assert worst_colour([green, replace(green, colour="amber"), green]) == "amber"
    assert worst_colour([replace(green, colour="red"), replace(green, colour="amber")]) == "red"


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
    findings = doctor(done)
    assert findings.worst_of("external scores").colour == ("amber" if unverified else "green")
    assert findings.worst_of("scores").colour == findings.worst_of("published results").colour == "green"
    points = Path(done.store.uri) / "results/toy/points.parquet"
    pl.read_parquet(points).with_columns(pl.col("value") + 0.5).write_parquet(points)
    assert doctor(done).worst_of("published results").colour == "red"
