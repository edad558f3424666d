"""What the documents print is run as printed, and what they name exists."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import yaml
from typer.main import get_command

from genrep_dist.cli import app
from genrep_dist.config import load_experiment
from tests.experiments import ROOT

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
BY_NAME = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def blocks(document: Path, language: str) -> list[str]:
    """The fenced code blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(), flags=re.MULTILINE | re.DOTALL)


def block(document: Path, language: str, beginning: str) -> str:
    """The one block that begins so."""
    (found,) = [text for text in blocks(document, language) if text.startswith(beginning)]
    return found


def python(*arguments: str, folder: Path) -> str:
    """Run Python in ``folder`` as a user does, without this repository on the path, and return what it prints."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    result = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the README's two files, in which its command was run."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "my_problem.py").write_text(block(ROOT / "README.md", "python", "# my_problem.py"))
    (folder / "my_experiment.yaml").write_text(block(ROOT / "README.md", "yaml", "# my_experiment.yaml"))
    command, *arguments = shlex.split(block(ROOT / "README.md", "console", "genrep run my_experiment.yaml"))
    assert command == "genrep"
    python("-m", "genrep_dist", *arguments, folder=folder)
    return folder


def test_a_problem_of_ones_own_is_under_40_lines() -> None:
    assert len(block(ROOT / "README.md", "python", "# my_problem.py").splitlines()) < 40


def test_the_example_runs_as_printed_and_shows_something(place: Path) -> None:
    summary = pl.read_parquet(place / "store/results/tumours/summary.parquet")
    assert summary["method"].to_list() == yaml.safe_load((place / "my_experiment.yaml").read_text())["methods"]
    lows, highs = (dict(summary.select("method", f"ci95_clustered_{end}").iter_rows()) for end in ("low", "high"))
    assert lows["ntk-final/tracking"] > highs["random"]
    compared = pl.read_parquet(place / "store/results/tumours/comparisons.parquet")
    assert compared.filter(method="ntk-final/tracking", baseline="random", metric="auc_del_negative")["p_holm"].item() < 0.05


def test_the_results_are_read_in_python_as_printed(place: Path) -> None:
    (place / "read.py").write_text(block(ROOT / "README.md", "python", "import genrep_dist as gr"))
    printed = python("-W", "error", "read.py", folder=place)
    assert re.search(r"test sample \d+: without training sample \d+ its logit should rise", printed)
    assert "test_accuracy" in printed
    assert "residual" in printed


def test_the_store_is_read_with_other_tools_as_printed(place: Path) -> None:
    python("-m", "genrep_dist", "run", "smoke", "--serial", folder=place)
    snippets = blocks(ROOT / "docs/store-format.md", "python")
    assert len(snippets) == 3
    for number, snippet in enumerate(snippets):
        (place / f"snippet_{number}.py").write_text(snippet)
        printed = python("-W", "error", f"snippet_{number}.py", folder=place)
        assert "genrep_dist" not in snippet
        assert printed.count("removes first") == (4 + 4 if number == 0 else 0), "four methods in each of the two experiments"


def test_a_kernel_of_ones_own_runs_as_printed(place: Path) -> None:
    methods = ROOT / "docs/methods.md"
    (place / "my_kernel.py").write_text(block(methods, "python", "# my_kernel.py"))
    fields = yaml.safe_load((place / "my_experiment.yaml").read_text()) | {"name": "own"}
    fields |= yaml.safe_load(block(methods, "yaml", "# in my_experiment.yaml"))
    (place / "own.yaml").write_text(yaml.safe_dump(fields))
    python("-m", "genrep_dist", "run", "own.yaml", "--serial", "--set", "seeds=1", folder=place)
    summary = pl.read_parquet(place / "store/results/own/summary.parquet")
    assert summary["method"].to_list() == fields["methods"]


def test_more_metrics_run_as_printed(place: Path) -> None:
    fields = yaml.safe_load((place / "my_experiment.yaml").read_text()) | {"name": "more"}
    fields |= yaml.safe_load(block(ROOT / "README.md", "yaml", "# more of my_experiment.yaml"))
    (place / "more.yaml").write_text(yaml.safe_dump(fields))
    python("-m", "genrep_dist", "run", "more.yaml", "--serial", "--set", "seeds=2", folder=place)
    metrics = pl.read_parquet(place / "store/results/more/metrics.parquet")
    assert set(metrics["metric"]) == {"auc_del_negative", "lds", "loo_correlation", "brittleness_flipped", "brittleness_removed"}


def test_scores_of_ones_own_are_judged_as_printed(place: Path) -> None:
    (place / "my_scores.yaml").write_text(block(ROOT / "README.md", "yaml", "# my_scores.yaml"))
    (place / "my_scores.py").write_text(block(ROOT / "README.md", "python", "# my_scores.py"))
    python("-m", "genrep_dist", "export", "problem", "my_scores.yaml", "--to", "models", "--serial", folder=place)
    python("-W", "error", "my_scores.py", folder=place)
    python("-m", "genrep_dist", "run", "my_scores.yaml", "--serial", folder=place)
    assert pl.read_parquet(place / "store/results/mine/summary.parquet")["method"].to_list()[0] == "similarity"


def test_what_the_judges_document_prints_is_an_experiment(tmp_path: Path) -> None:
    full, *others = blocks(ROOT / "docs/judge.md", "yaml")
    fields = yaml.safe_load(full)
    for number, more in enumerate(({}, *map(yaml.safe_load, others))):
        path = tmp_path / f"{number}.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in fields.items() if k != "seeds" or "stop" not in more} | more))
        assert load_experiment(path).metric_names


@BY_NAME
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        assert path.exists(), f"{document.name} links to {target}"
        if anchor:
            assert anchor in anchors(path), f"{document.name} links to {target}"


def anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", document.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-") for heading in headings}


@BY_NAME
def test_files_that_are_named_exist(document: Path) -> None:
    users_own = {"my_problem.py", "my_kernel.py", "my_experiment.yaml", "config.yaml"}
    for name in re.findall(r"`([A-Za-z0-9_./-]+\.(?:py|yaml|toml|txt))`", document.read_text()):
        if name not in users_own and not name.startswith("store/"):
            assert (ROOT / name).is_file() or (ROOT / "genrep_dist" / name).is_file(), f"{document.name} names {name}"


@BY_NAME
def test_commands_that_are_named_exist(document: Path) -> None:
    command = get_command(app)
    known = set(command.commands)  # type: ignore[attr-defined]
    assert set(re.findall(r"`genrep ([a-z]+)", document.read_text())) <= known
    assert set(re.findall(r"^(?:.* )?genrep ([a-z]+) ", "\n".join(blocks(document, "console")), flags=re.MULTILINE)) <= known


@BY_NAME
def test_names_of_the_code_that_are_named_exist(document: Path) -> None:
    """`name` in `file.py`, and `name` (`file.py`): the file has the name."""
    text = document.read_text()
    pairs = re.findall(r"`([A-Za-z_.]+)`(?:, `[A-Za-z_.]+`)* (?:in|of) `([a-z_/]+\.py)`", text)
    pairs += re.findall(r"`([A-Za-z_.]+)` \(`([a-z_/]+\.py)`", text)
    for name, file in pairs:
        path = ROOT / "genrep_dist" / file if (ROOT / "genrep_dist" / file).is_file() else ROOT / file
        assert re.search(rf"\b{name.rpartition('.')[2]}\b", path.read_text()), f"{document.name}: {name} in {file}"
