"""docs/your-model.md: every snippet is run as printed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from tests.experiments import ROOT
from tests.test_readme import blocks

DOCUMENT = ROOT / "docs/your-model.md"
SNIPPETS = {text.partition("\n")[0].removeprefix("# "): text for kind in ("python", "yaml") for text in blocks(DOCUMENT, kind)}
NEEDS = {"bert_problem": "transformers", "lightning_problem": "lightning", "lora_inputs": "peft"}
PROBLEMS = {
    "recipe_problem": "WithRecipe",
    "script_problem": "WithScript",
    "hooks_problem": "WithHooks",
    "bert_problem": "WithTrainer",
    "lightning_problem": "WithLightning",
    "dict_inputs": "WithMask",
    "row_inputs": "WithRows",
    "loss_inputs": "WithOwnLoss",
    "lora_inputs": "WithLora",
}
METHODS = {
    "hooks_problem": ["ntk-final/target", "ntk-middle/tracking", "tracincp", "random"],
    "script_problem": ["ntk-middle/target", "random"],
}
JUDGE = """
import sys

import yaml

import genrep_dist as gr
from genrep_dist.runner import publish

publish._track = lambda *a, **k: type("Link", (), dict(tracking_uri="", experiment_id="", run_id="", hint="none"))()
for file in sys.argv[1:]:
    gr.run(file, serial=True)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all snippets, in which every problem that can be imported was judged."""
    folder = tmp_path_factory.mktemp("your_model")
    for name, text in SNIPPETS.items():
        (folder / name).write_text(text)
    files = ["boosting.yaml"]
    for module in available():
        methods = METHODS.get(module, ["ntk-final/target", "random"])
        (folder / f"{module}.yaml").write_text(
            f"name: {module}\nproblem: {{name: '{module}:{PROBLEMS[module]}'}}\nseeds: 1\ntest_points: 1\nmethods: {methods}\n"
            "deletion: {fractions: [0.0, 0.1]}\n"
        )
        files.append(f"{module}.yaml")
    (folder / "judge.py").write_text(JUDGE)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for arguments in (["neighbours.py"], ["judge.py", *files]):
        command = [sys.executable, *arguments]
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
    return folder


def available() -> list[str]:
    return [module for module in PROBLEMS if importlib.util.find_spec(NEEDS.get(module, "torch")) is not None]


@pytest.mark.parametrize("module", PROBLEMS)
def test_each_situation_is_judged(module: str, place: Path) -> None:
    pytest.importorskip(NEEDS.get(module, "torch"))
    summary = pl.read_parquet(place / f"store/results/{module}/summary.parquet")
    assert "random" in summary["method"].to_list()


def test_a_model_that_is_no_module_is_judged(place: Path) -> None:
    summary = pl.read_parquet(place / "store/results/boosting/summary.parquet")
    assert summary["method"].to_list() == ["neighbours", "random"]


def test_training_functions_are_short() -> None:
    for name, text in SNIPPETS.items():
        if not name.endswith("problem.py"):
            continue
        compile(text, name, "exec")
        before, found, body = text.partition("    def train(")
        assert sum(bool(line.strip()) for line in (found + body).splitlines()) <= 15, name
        assert found or name == "recipe_problem.py"
        assert before
