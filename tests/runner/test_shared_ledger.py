"""Several experiments at once on one store: no model is trained twice."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import genrep_dist as gr
from genrep_dist.errors import StoreError
from genrep_dist.runner import stage_runner
from genrep_dist.runner.progress import NoProgress
from genrep_dist.store.ledger import Ledger
from tests.experiments import ROOT, experiment
from tests.toys import trainings

DRIVER = """
import sys, time
from pathlib import Path
import genrep_dist as gr
import pytest
from tests.experiments import ROOT
from tests.publication import publish_tables_only
from tests.runner.test_shared_ledger import asked

folder, number = Path(sys.argv[1]), int(sys.argv[2])
publish_tables_only(pytest.MonkeyPatch())
question = asked(folder, number)
(folder / f"ready-{number}").touch()
while len(list(folder.glob("ready-*"))) < 2:
    time.sleep(0.01)
gr.run(question, store=str(folder / "store"), serial=True, search_path=[str(ROOT)])
"""


def asked(folder: Path, number: int) -> gr.Experiment:
    """Two experiments with the same models, seeds and points, of which each removes other shares too."""
    fractions = [[0.0, 0.1, 0.2], [0.0, 0.2, 0.3]][number]
    fields: dict[str, Any] = {"methods": ["ntk-final/tracking", "random"], "deletion": {"fractions": fractions}, "name": f"asked-{number}"}
    return experiment("tests.toys:Counting", {"folder": str(folder)}, **fields)


def test_experiments_at_once_train_each_model_once(tmp_path: Path) -> None:
    drivers = [
        subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path), str(number)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for number in range(2)
    ]
    for driver in drivers:
        _, said = driver.communicate(timeout=300)
        assert driver.returncode == 0, said
    runs = [gr.open_run(str(tmp_path / "store"), f"asked-{number}") for number in range(2)]
    (key,) = {run.plan.keys.training for run in runs}
    rows = runs[0].store.ledger(key).scan().filter(pl.col("num_removed") > 0).select("key").collect()["key"]
    originals = list((tmp_path / "store/artifacts/train").glob("*/*/manifest.json"))
    assert len(rows) == rows.n_unique()
    # Two trial steps in each preparation count as trainings too.
    alone = trainings(tmp_path) - len(rows) - len(originals)
    assert alone % 2 == 0
    before = trainings(tmp_path)
    again = gr.run(
        asked(tmp_path, 1).model_copy(update={"name": "again"}), store=str(tmp_path / "store"), serial=True, search_path=[str(ROOT)]
    )
    assert trainings(tmp_path) - before == alone // 2
    assert again.deletion().collect().equals(runs[1].deletion().collect())


class Messages(NoProgress):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def message(self, text: str) -> None:
        self.texts.append(text)

    def advance(self, units: int, statistics: Mapping[str, float]) -> None:
        del units, statistics
        self.texts.append("a unit ended")


def test_a_ledger_of_many_parts_is_compacted_by_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_runner, "MANY_PARTS", 3)
    monkeypatch.setattr(stage_runner, "COMPACTION_PAUSE", 0)
    fields: dict[str, Any] = {"methods": ["random"], "resources": {"task_seconds": 1e-9}, "deletion": {"fractions": [0.0, 0.1]}}
    progress = Messages()
    question = experiment(**fields)
    run = gr.run(question, store=str(tmp_path), serial=True, search_path=[str(ROOT)], progress=progress)
    ledger = run.store.ledger(run.plan.keys.training)
    assert len(ledger.parts()) < 3
    # Two of eight tasks end after the second compaction.
    assert progress.texts[-1] == "a unit ended", "the last task ended after a compaction"
    assert [text for text in progress.texts if "parts became 1" in text]
    deletion = run.deletion().collect()
    run.store.objects.delete("results/toy/manifest.json")
    monkeypatch.setattr(Ledger, "compact", lambda self: pytest.fail("a compacted ledger is compacted again"))
    monkeypatch.setattr(stage_runner, "retrain_requests", lambda *_: pytest.fail("the requests of a run with all models are made again"))
    assert gr.run(question, store=str(tmp_path), serial=True, search_path=[str(ROOT)]).deletion().collect().equals(deletion)


def test_a_compaction_that_fails_costs_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Ledger) -> None:
        raise StoreError("a part vanished")

    monkeypatch.setattr(stage_runner, "MANY_PARTS", 1)
    monkeypatch.setattr(Ledger, "compact", fails)
    progress = Messages()
    fields: dict[str, Any] = {"methods": ["random"], "seeds": 1, "deletion": {"fractions": [0.0, 0.1]}}
    gr.run(experiment(**fields), store=str(tmp_path), serial=True, search_path=[str(ROOT)], progress=progress).summary()
    assert [text for text in progress.texts if "not compacted: a part vanished" in text]
