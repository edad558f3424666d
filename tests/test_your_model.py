"""docs/your-model.md: every snippet is run as printed, and the models of the adapters are those of plain scripts."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from tests.experiments import ROOT
from tests.plain_scripts import SCRIPTS
from tests.test_readme import blocks

pytestmark = pytest.mark.ray

DOCUMENT = ROOT / "docs/your-model.md"
SNIPPETS = {text.partition("\n")[0].removeprefix("# "): text for kind in ("python", "yaml") for text in blocks(DOCUMENT, kind)}
NEEDS = {"bert_problem": "transformers accelerate", "lightning_problem": "lightning", "lora_inputs": "peft"}
PROBLEMS = {
    "script_problem": "WithScript",
    "hooks_problem": "WithHooks",
    "bert_problem": "WithTrainer",
    "lightning_problem": "WithLightning",
    "boosting_problem": "WithBoosting",
    "dict_inputs": "WithMask",
    "row_inputs": "WithRows",
    "loss_inputs": "WithOwnLoss",
    "lora_inputs": "WithLora",
}
METHODS = {
    "hooks_problem": ["ntk-final/target", "ntk-middle/tracking", "tracincp", "random"],
    "script_problem": ["ntk-final/target", "ntk-middle/target", "neighbours", "random"],
    "bert_problem": ["ntk-final/target", "neighbours", "random"],
    "lightning_problem": ["ntk-final/target", "neighbours", "random"],
    "boosting_problem": ["neighbours", "random"],
}
"""Default: ntk-final/target and random."""
JUDGE = """
import importlib
import runpy
import sys

import numpy as np

import genrep_dist as gr
from genrep_dist.config.resources import ResourcesSection
from genrep_dist.executors.ray_executor import RayExecutor
from genrep_dist.runner import track
from tests import plain_scripts

track.track = lambda *a, **k: type("Link", (), dict(tracking_uri="", experiment_id="", run_id="", hint="none"))()
runpy.run_path("neighbours.py")
for name in sys.argv[1].split():
    gr.run(f"{name}.yaml", serial=True)
executor = RayExecutor(ResourcesSection.model_validate({"workers": 1}))
for item in sys.argv[2].split():
    module, problem = item.split(":")
    plain_scripts.write_scores(getattr(importlib.import_module(module), problem)(), f"{module}-scores.npz")
    run = gr.run(f"{module}.yaml", executor=executor)
    np.savez(f"{module}-outputs.npz", **plain_scripts.outputs(run, plain_scripts.SCRIPTS[module]))
for name in sys.argv[3].split():
    gr.run(f"{name}.yaml", executor=executor)
executor.close()
"""
"""Judges a list of experiments serially, and the adapters' and another list through Ray. One process and one worker: imports take most of
the time."""
THROUGH_RAY = ["dict_inputs"]


def methods_of(module: str) -> list[str]:
    return METHODS.get(module, ["ntk-final/target", "random"])


def missing(module: str) -> list[str]:
    """Packages of ``module`` that are not installed."""
    return [name for name in NEEDS.get(module, "").split() if importlib.util.find_spec(name) is None]


def require(module: str) -> None:
    if missing(module):
        pytest.skip(f"not installed: {', '.join(missing(module))} (pip install -e '.[adapters]')")


def make(folder: Path, **fields: Any) -> None:
    """Write all snippets, and an experiment for each problem. ``fields`` replace those of the experiments."""
    for name, text in SNIPPETS.items():
        (folder / name).write_text(text)
    (folder / "judge.py").write_text(JUDGE)
    for module, problem in PROBLEMS.items():
        methods = methods_of(module)
        declared: dict[str, Any] = {
            "name": module,
            "problem": {"name": f"{module}:{problem}"},
            "seeds": 1,
            "test_points": 1,
            "methods": methods,
            "deletion": {"fractions": [0.0, 0.1]},
        }
        if "neighbours" in methods:
            declared["external"] = {"neighbours": {"path": f"{module}-scores.npz", "positive_raises": True, "unverified": True}}
        (folder / f"{module}.yaml").write_text(yaml.safe_dump(declared | fields))


def judge(folder: Path, names: list[str], adapters: list[str]) -> subprocess.Popen[str]:
    """The judge's process, on the experiments ``names`` and on modules with an adapter."""
    through_ray = [name for name in names if name in THROUGH_RAY]
    serial = [name for name in names if name not in THROUGH_RAY]
    lists = [" ".join(serial), " ".join(f"{module}:{PROBLEMS[module]}" for module in adapters), " ".join(through_ray)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "judge.py", *lists]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all snippets, in which every problem that can be imported was judged."""
    folder = tmp_path_factory.mktemp("your_model")
    make(folder)
    there = [module for module in PROBLEMS if not missing(module)]
    with judge(folder, ["recipe", "boosting", *(m for m in there if m not in SCRIPTS)], [m for m in there if m in SCRIPTS]) as process:
        output, _ = process.communicate()
    assert process.returncode == 0, output
    return folder


@pytest.mark.parametrize("module", PROBLEMS)
def test_each_situation_is_judged(module: str, place: Path) -> None:
    require(module)
    summary = pl.read_parquet(place / f"store/results/{module}/summary.parquet")
    assert sorted(summary["method"]) == sorted(methods_of(module))


@pytest.mark.parametrize(("name", "other"), [("recipe", "ntk-final/target"), ("boosting", "neighbours")])
def test_the_experiments_are_run_as_printed(name: str, other: str, place: Path) -> None:
    summary = pl.read_parquet(place / f"store/results/{name}/summary.parquet")
    assert sorted(summary["method"]) == [other, "random"]


@pytest.mark.parametrize("module", SCRIPTS)
def test_the_ledger_has_the_predictions_of_a_plain_script(module: str, place: Path) -> None:
    require(module)
    with np.load(place / f"{module}-outputs.npz") as found:
        assert len(found["ledger"]) >= 3, "the original, and models without samples"
        assert len(np.unique(found["ledger"], axis=0)) == len(found["ledger"])
        assert np.array_equal(found["ledger"], found["plain"])


def test_training_functions_are_short() -> None:
    for name, text in SNIPPETS.items():
        if not name.endswith("problem.py"):
            continue
        compile(text, name, "exec")
        before, found, body = text.partition("    def train(")
        assert sum(bool(line.strip()) for line in (found + body).splitlines()) <= 15, name
        assert found or name == "recipe_problem.py"
        assert before
