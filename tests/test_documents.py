"""Documents that follow from the code are current, and the tutorial runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from genrep_dist.cli.main import EXIT_CODES
from genrep_dist.diagnostics.checks import CHECKS
from jobs.schema_reference import PAGE, page
from tests.experiments import ROOT


def test_the_reference_of_experiment_files_is_current() -> None:
    assert PAGE.read_text() == page(), "run: python jobs/schema_reference.py"


def test_exit_codes_are_documented_as_the_command_line_has_them() -> None:
    declared = set(re.findall(r"(?:: |; |SIGINT\);\s)(\d+) ", EXIT_CODES))
    assert declared == {"0", "1", "2", "75", "130", "143"}
    for name in ("troubleshooting", "command-line"):
        listed = set(re.findall(r"^\| (\d+) \|", (ROOT / f"docs/{name}.md").read_text(), flags=re.MULTILINE))
        assert declared <= listed, name


def test_findings_that_are_explained_are_those_of_checks() -> None:
    text = (ROOT / "docs/troubleshooting.md").read_text()
    table = text[text.index("## The doctor") : text.index("## During a run")]
    named = re.findall(r"^\| `([a-z ]+)` \|", table, flags=re.MULTILINE)
    assert len(named) > 4
    assert set(named) <= set(CHECKS)


def test_the_tutorial_runs_and_shows_what_it_says(tmp_path: Path) -> None:
    notebook = json.loads((ROOT / "docs/tutorial.ipynb").read_text())
    copy = tmp_path / "tutorial.ipynb"
    copy.write_text(json.dumps(notebook | {"cells": [cell | {"outputs": []} if "outputs" in cell else cell for cell in notebook["cells"]]}))
    command = [sys.executable, "-W", "error", str(ROOT / "tests/run_notebook.py"), str(copy), "--write"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GENREP_STATE": str(tmp_path / "state")}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert re.search(r"ntk-final/tracking +logit (\S+) -> (\S+) without", result.stdout)
    kinds = [[output["output_type"] for output in cell.get("outputs", [])] for cell in json.loads(copy.read_text())["cells"]]
    assert kinds == [[output["output_type"] for output in cell.get("outputs", [])] for cell in notebook["cells"]], "run it with --write"
    assert any("display_data" in found for found in kinds), "the curves are drawn"
    assert not re.search(r"/(?:tmp|home|work|root)/", (ROOT / "docs/tutorial.ipynb").read_text())
