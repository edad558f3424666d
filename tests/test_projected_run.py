"""An experiment whose NTK features are projected at random: what changes, what does not, and what it says about itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import genrep_dist as gr
from genrep_dist.diagnostics import diagnose
from tests.experiments import ROOT, experiment

METHODS = ["ntk-final/tracking", "ntk-final/surrogate", "influence-final/target", "last-layer-final/tracking"]
DIM = 512


def run(store: Path, **arguments: Any) -> gr.Run:
    asked = experiment(methods=METHODS, seeds=1, surrogate={"lambda": 0.1}, **arguments)
    return gr.run(asked, store=str(store), serial=True, search_path=[str(ROOT)])


@pytest.mark.parametrize("kind", ["rademacher", "sparse"])
def test_a_projected_run(tmp_path: Path, kind: str) -> None:
    asked = {"dim": DIM, "kind": kind}
    exact, lossy = run(tmp_path / "store"), run(tmp_path / "store", name="lossy", projection=asked)
    np.testing.assert_array_equal(lossy.kernel("last-layer", "final", 0), exact.kernel("last-layer", "final", 0))
    true, found = exact.kernel("ntk", "final", 0), lossy.kernel("ntk", "final", 0)
    assert 0 < np.abs(found - true).max() < 0.4 * np.abs(true).max()
    assert np.corrcoef(found.ravel(), true.ravel())[0, 1] > 0.9
    keys = lossy.plan.keys
    for kind_of_artifact, key in (
        ("features", keys.features(0, "ntk", 4)),
        ("kernel", keys.kernel(0, "ntk", 4)),
        ("gram", keys.gram(0, "ntk", 4)),
    ):
        assert lossy.store.artifact(kind_of_artifact, key).manifest()["projection"] == {"dim": DIM, "kind": kind, "seed": 0}
    assert any("projected to 512" in warning for warning in lossy.plan.warnings)
    finding = next(f for f in diagnose(lossy, samples=4) if f.name == "kernel" and "ntk" in f.text)
    assert finding.colour == "green"
    assert "standard deviations of a projection to 512 numbers" in finding.text
    assert finding.number is not None
    assert finding.number > 1e-3

    streamed = run(tmp_path / "streamed", name="lossy", projection=asked, resources={"features": "stream"})
    for method in METHODS:
        np.testing.assert_allclose(streamed.attributions(method, 0), lossy.attributions(method, 0), rtol=1e-3, atol=1e-5)


def test_a_run_with_projected_factors(tmp_path: Path) -> None:
    asked = {"dim": 16, "kind": "factored"}
    exact, lossy = run(tmp_path / "store"), run(tmp_path / "store", name="lossy", projection=asked)
    true, found = exact.kernel("ntk", "final", 0), lossy.kernel("ntk", "final", 0)
    assert 0 < np.abs(found - true).max() < np.abs(true).max()
    assert np.corrcoef(found.ravel(), true.ravel())[0, 1] > 0.6
    finding = next(f for f in diagnose(lossy, samples=4) if f.name == "kernel" and "ntk" in f.text)
    assert finding.colour == "green"
    assert "16 numbers of each layer" in finding.text
    streamed = run(tmp_path / "streamed", name="lossy", projection=asked, resources={"features": "stream"})
    for method in METHODS:
        np.testing.assert_allclose(streamed.attributions(method, 0), lossy.attributions(method, 0), rtol=1e-3, atol=1e-5)
    same = run(tmp_path / "whole", name="whole", projection={"dim": 4096, "kind": "factored"})
    np.testing.assert_allclose(same.kernel("ntk", "final", 0), true, rtol=1e-5, atol=1e-5)
