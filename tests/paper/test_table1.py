"""The paper's table on real data, as a user makes it, at the smallest size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from genrep_dist.paper.published import BLOCKS, LAST_LAYER_INFLUENCE, LAST_LAYER_KERNEL
from genrep_dist.problems.datasets.catalogue import available
from tests.experiments import ROOT

TEXTS = ("toxicity", "newsgroups")
HERE = [name for name in ("mnist", "cifar10", *TEXTS) if available(name) and (name not in TEXTS or available("wordpiece"))]


def job(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "jobs/table1.py", *arguments, "--serial", "--profile", "smoke"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=550)


@pytest.mark.skipif(not HERE, reason="no real data in the cache: run `genrep data fetch mnist`, cifar10, toxicity, newsgroups, wordpiece")
def test_all_methods_on_all_real_data_that_are_here(tmp_path: Path) -> None:
    done = job(*HERE, "--store", str(tmp_path / "store"), "--to", str(tmp_path / "table"))
    assert done.returncode == 0, done.stdout + done.stderr
    table = pl.read_parquet(tmp_path / "table" / "table1.parquet")
    methods = {method for names in BLOCKS.values() for method in names}
    for name in HERE:
        measured = set(table.filter((pl.col("problem") == name) & pl.col("auc_del_negative").is_not_null())["method"].to_list())
        last_layer = {LAST_LAYER_KERNEL, LAST_LAYER_INFLUENCE}
        assert measured == (methods if name in TEXTS else methods - last_layer)
    assert table["auc_del_negative"].is_finite().all()
    page = (tmp_path / "table" / "table1.md").read_text()
    for heading in ("Experiment I:", "Experiment II:", "Experiment III:", "The paper's statements", "Differences of the set-ups"):
        assert heading in page
    assert "test accuracy" in page
    again = job(HERE[0], "--store", str(tmp_path / "store"), "--to", str(tmp_path / "again"), "--tune")
    assert "everything is done already" in again.stdout, "the same table is not computed twice"
    page = (tmp_path / "again" / "table1.md").read_text()
    tuned = page.partition("### Declared and tuned")[2].partition("\n### ")[0]
    assert [row.split(" | ")[1] for row in tuned.splitlines() if row.startswith("| ") and "\\[" in row] == [
        "influence-final/tracking",
        "influence-function",
        "ntk-final/surrogate",
    ]
    assert "tried on 6 other networks, with the mean area of the shares 0%, 10%: 0.001 (" in page


def test_what_is_not_there_is_an_error_and_no_trace(tmp_path: Path) -> None:
    done = job("minst", "--store", str(tmp_path / "store"))
    assert done.returncode == 2
    assert "invalid choice: 'minst' (choose from 'mnist', 'cifar10'" in done.stderr
    done = job("mnist", "--tune", "cifar10", "--store", str(tmp_path / "store"))
    assert done.returncode == 1
    assert done.stderr.startswith(
        "error: a data set that is not measured\n  where: --tune\n  expected: mnist\n  got: cifar10\n  what to do:"
    )
