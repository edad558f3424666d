"""``features: {dtype: bfloat16}``: rounded wherever they are used, stored in half the bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import genrep_dist as gr
from genrep_dist.core.kernels.blocks import ntk_block
from genrep_dist.diagnostics.run_checks import diagnose
from genrep_dist.store import Store
from genrep_dist.store.bfloat16 import float32_tensor, upper_halves
from genrep_dist.workflow.prepare import prepare
from tests.experiments import ROOT, experiment

METHODS = ["ntk-final/tracking", "last-layer-final/surrogate", "last-layer-final/target", "influence-function"]


def asked(**fields: Any) -> gr.Experiment:
    given: dict[str, Any] = {"methods": METHODS, "seeds": 1, "deletion": {"counts": [0]}, "features": {"dtype": "bfloat16"}, **fields}
    return experiment(**given)


def run(folder: Path, **fields: Any) -> gr.Run:
    return gr.run(asked(**fields), store=str(folder), serial=True, search_path=[str(ROOT)])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, gr.Run]:
    folder = tmp_path_factory.mktemp("rounded")
    choices: dict[str, dict[str, Any]] = {
        "stored": {"resources": {"features": "store"}},
        "streamed": {"resources": {"features": "stream"}},
        "exact": {"resources": {"features": "store"}, "features": {"dtype": "float32"}},
    }
    return {name: run(folder / name, **fields) for name, fields in choices.items()}


def test_stored_and_streamed_are_the_same_bits(runs: dict[str, gr.Run]) -> None:
    for method in METHODS:
        stored = runs["stored"].attributions(method, 0)
        np.testing.assert_array_equal(runs["streamed"].attributions(method, 0), stored)
        exact = runs["exact"].attributions(method, 0)
        assert 0 < np.abs(stored - exact).max() < 0.05 * np.abs(exact).max()
    points = runs["stored"].explain("ntk-final/tracking", 0, test_ids=runs["stored"].test_ids(0).tolist())
    np.testing.assert_allclose(points, runs["stored"].attributions("ntk-final/tracking", 0), rtol=1e-5, atol=1e-6)


def test_the_last_layer_is_that_of_rounded_features(runs: dict[str, gr.Run]) -> None:
    rows = {}
    for name in ("stored", "exact"):
        one = runs[name]
        keys = one.plan.keys
        rows[name] = one.store.artifact("features", keys.features(0, "last-layer", keys.epochs)).read("features")
    assert rows["stored"].dtype == np.uint16
    exact = torch.from_numpy(rows["exact"])
    assert torch.equal(float32_tensor(rows["stored"]), exact.bfloat16().float())
    found = torch.from_numpy(runs["stored"].kernel("last-layer", "final", 0))
    positions = runs["exact"].plan.keys.test_positions(0)
    context = runs["exact"].context
    test = context.kernel("last-layer").features(context.model(0, context.keys.epochs), context.test.inputs[positions])  # type: ignore[attr-defined]
    expected = ntk_block(exact.bfloat16().float().unsqueeze(1), test)[:, 0]
    torch.testing.assert_close(found, expected)


def test_bytes_and_keys(runs: dict[str, gr.Run]) -> None:
    sizes = {}
    for name in ("stored", "exact"):
        (line,) = (stage for stage in runs[name].plan.stages if stage.name == "gradients")
        folder = Path(runs[name].store.uri) / "artifacts" / "features"
        sizes[name] = line.bytes_written, sum(path.stat().st_size for path in folder.rglob("*") if "c" in path.parts[-3:])
    assert sizes["stored"][0] * 2 == sizes["exact"][0]
    assert sizes["stored"][1] < sizes["exact"][1]
    assert not [finding for finding in diagnose(runs["stored"]) if finding.colour == "red" and finding.name != "learning"]
    keys = {name: one.plan.keys for name, one in runs.items()}
    for kernel in ("ntk", "last-layer", "influence"):
        assert keys["stored"].kernel(0, kernel, 4) == keys["streamed"].kernel(0, kernel, 4) != keys["exact"].kernel(0, kernel, 4)
    assert keys["stored"].model(0) == keys["exact"].model(0)


def test_projected_features_take_half_the_bytes(tmp_path: Path) -> None:
    fields = {"projection": {"kind": "factored", "dim": 16}, "resources": {"features": "store"}, "methods": METHODS[:1]}
    rounded, exact = run(tmp_path / "rounded", **fields), run(tmp_path / "exact", **fields, features={"dtype": "float32"})
    expected = exact.attributions(METHODS[0], 0)
    np.testing.assert_allclose(rounded.attributions(METHODS[0], 0), expected, atol=0.01 * np.abs(expected).max())


def test_a_default_changes_no_key(tmp_path: Path) -> None:
    plans = [prepare(asked(features=features), Store(str(tmp_path)), [str(ROOT)]).plan for features in ({}, {"dtype": "float32"})]
    assert plans[0].keys.results == plans[1].keys.results


def test_upper_halves() -> None:
    values = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    stored = upper_halves(values.numpy())
    assert stored.dtype == np.uint16
    assert torch.equal(float32_tensor(stored), values)
    assert torch.equal(float32_tensor(values.numpy()), values)
