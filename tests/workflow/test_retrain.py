"""The stage: whatever shares a step, a task or a run, the ledger holds the same models; one that diverges is named and holds no other."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import torch

import genrep_dist as gr
from genrep_dist.errors import NonFiniteError
from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.runner import stage_runner
from genrep_dist.store import Store
from genrep_dist.training.graphs.emulated import EmulatedGraph
from genrep_dist.training.trainer import Trainer
from genrep_dist.units import Retraining
from genrep_dist.workflow import context, retrain
from genrep_dist.workflow.execute import worker_context
from genrep_dist.workflow.prepare import prepare, publish_inputs
from genrep_dist.workflow.retrain import RetrainStage, RetrainUnit
from tests.experiments import ROOT, experiment
from tests.toys import Blobs

METHODS = ["ntk-final/tracking", "last-layer-final/target", "random"]
PUBLISHED = ("deletion.parquet", "table.md")


def published(folder: Path, size: int, per_task: int, monkeypatch: pytest.MonkeyPatch, policy: str) -> tuple[pl.DataFrame, list[bytes]]:
    """The ledger without seconds and paths, and the bytes of what is published."""
    monkeypatch.setattr(Trainer, "pack_size", lambda self, models: size)
    monkeypatch.setattr(stage_runner, "MAX_MODELS_PER_TASK", per_task)
    deletion = {"fractions": [0.0, 0.1, 0.2], "signs": ["negative", "positive"], "retrain": policy}
    asked = experiment(methods=["ntk-final/target", "random"], seeds=2, deletion=deletion)
    run = gr.run(asked, store=str(folder), serial=True)
    ledger = run.store.ledger(run.plan.keys.training).scan().select("key", "seed", "num_removed", "removed", "outputs")
    results = folder / "results" / "toy"
    return ledger.unique("key").sort("key").collect(), [(results / name).read_bytes() for name in PUBLISHED]


@pytest.mark.parametrize("policy", ["same", "fresh", "rebatch"])
def test_pack_size_and_task_size_change_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str) -> None:
    first = published(tmp_path / "a", 1, 1, monkeypatch, policy)
    assert first[0].filter(pl.col("num_removed") > 0).height > 15
    for index, (size, per_task) in enumerate([(4, 7), (64, 256)]):
        other = published(tmp_path / f"{index}", size, per_task, monkeypatch, policy)
        assert first[0].equals(other[0])
        assert first[1] == other[1]


def test_replayed_steps_change_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``resources.cuda_graphs``, and the rules of CUDA graphs kept on a CPU."""
    monkeypatch.setattr(context, "CudaGraph", EmulatedGraph)
    found = []
    for graphs, note in ((False, None), (True, "steps are replayed")):
        asked = experiment(
            seeds=1, methods=["last-layer-final/target"], deletion={"fractions": [0.0, 0.1]}, resources={"cuda_graphs": graphs}
        )
        run = gr.run(asked, store=str(tmp_path / f"{graphs}"), serial=True)
        found.append([(tmp_path / f"{graphs}" / "results" / "toy" / name).read_bytes() for name in PUBLISHED])
        assert run.store.artifact("train", run.plan.keys.train(0)).manifest().get("cuda_graphs") == note
    assert found[0] == found[1]


class Explosive(Blobs):
    """One row is so large that every model which keeps it diverges, unless it starts elsewhere than where its gradient begins."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = "squared"
        self.recipe = Recipe(epochs=3, batch_size=8, learning_rate=0.05)

    def model(self) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.Linear(3, 1))

    def train_data(self) -> Dataset:
        data = super().train_data()
        data.inputs[6] = 1e25
        return data


def test_one_model_that_diverges_holds_no_other(tmp_path: Path) -> None:
    asked = experiment("tests.workflow.test_retrain:Explosive", methods=METHODS)
    prepared = prepare(asked, Store(str(tmp_path)), [str(ROOT)])
    publish_inputs(prepared)
    bench = worker_context(prepared.job)
    bad = int(prepared.train.ids[6])
    others = [int(i) for i in prepared.train.ids[:4]]
    sets = [(bad,), (others[0],), tuple(sorted((bad, others[1]))), tuple(sorted((bad, *others)))]
    keys = prepared.plan.keys
    rows = tuple(Retraining(keys.retraining(0, removed, "same"), 0, "same", removed) for removed in sets)
    with pytest.raises(NonFiniteError) as raised:
        RetrainStage().run(RetrainUnit(0, rows), bench)
    assert rows[1].key[:12] in str(raised.value)
    assert f"seed 0, without 1 samples ({others[0]})" in str(raised.value)
    ledger = prepared.store.ledger(keys.training)
    assert ledger.keys() == {rows[index].key for index in (0, 2, 3)}
    alone = retrain.retrain(rows[2], bench)
    kept = ledger.scan().filter(pl.col("key") == rows[2].key).collect()["outputs"].to_list()[0]
    assert kept == alone.outputs.ravel().tolist()
    with pytest.raises(NonFiniteError, match="training diverged"):
        retrain.retrain(rows[1], bench)


def test_what_a_unit_reports(tmp_path: Path) -> None:
    prepared = prepare(experiment(methods=METHODS), Store(str(tmp_path)), [str(ROOT)])
    publish_inputs(prepared)
    bench = worker_context(prepared.job)
    removed = tuple(sorted(int(i) for i in prepared.train.ids[:2]))
    statistics = RetrainStage().run(
        RetrainUnit(0, (Retraining(prepared.plan.keys.retraining(0, removed, "same"), 0, "same", removed),)), bench
    )
    assert statistics["models"] == 1
    assert statistics["pack_size"] == 1
    assert 0 < statistics["training_seconds"] <= statistics["seconds"]
