"""From a run to files, from files to a model that any tool can score, and from its scores back into an experiment."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from genrep_dist.errors import ConfigError, CorruptError, MethodError, NotCommittedError, ProblemError, StoreError
from genrep_dist.external import Exported, load_external, open_exported
from genrep_dist.results import Run, open_run
from genrep_dist.runner.export import export_problem
from genrep_dist.runner.run import train_originals
from genrep_dist.store import Store
from genrep_dist.workflow.prepare import prepare
from genrep_dist.workflow.record import write_record
from tests.experiments import ROOT, experiment
from tests.external.files import section

METHODS = ["ntk-final/target", "tracincp"]


@pytest.fixture(scope="module", params=[2, 3])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two seeds, originals trained, nothing else: not finished."""
    classes = {"num_classes": request.param}
    asked = experiment(options=classes, methods=METHODS)
    asked = asked.with_fixed_seeds(problem={**asked.problem.model_dump(), "flip_labels": {"share": 0.2}})
    return train_originals(asked, str(tmp_path_factory.mktemp("store")), serial=True)


@pytest.fixture(scope="module")
def folder(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("exported") / "models"
    assert all(path.is_file() for path in export_problem(run, to))
    return to


def logits(exported: Exported, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return exported.model(inputs).reshape(len(inputs), -1)  # type: ignore[no-any-return]


def test_a_run_that_is_not_finished_is_exported(run: Run, folder: Path) -> None:
    assert run.manifest() is None
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    epochs = run.context.train_artifact(0).read("epochs").tolist()
    assert names == sorted(
        ["data/test.npz", "data/train.npz"]
        + [f"seed-{seed}/{name}" for seed in (0, 1) for name in ["final.pt", "problem.json", *(f"epoch-{epoch}.pt" for epoch in epochs)]]
    )


@pytest.mark.parametrize("field", ["experiment", "data", "recipe"])
def test_models_do_not_replace_those_of_another_experiment(run: Run, folder: Path, tmp_path: Path, field: str) -> None:
    copied = Path(shutil.copytree(folder, tmp_path / "models"))
    assert list(export_problem(run, copied, [0]))
    record = json.loads((copied / "seed-1" / "problem.json").read_text())
    (copied / "seed-1" / "problem.json").write_text(json.dumps(record | {field: "another"}))
    (copied / "data" / "train.npz").write_bytes(b"its data")
    with pytest.raises(StoreError, match="this folder has the export of another run"):
        list(export_problem(run, copied, [0]))
    assert (copied / "data" / "train.npz").read_bytes() == b"its data"


@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_opened_is_exactly_what_is_judged(run: Run, folder: Path, seed: int) -> None:
    exported = open_exported(folder, seed)
    assert exported.identity == run.plan.keys.model(seed)
    assert not exported.model.training
    for ours, theirs in ((run.train, exported.train), (run.test, exported.test)):
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(ours, theirs, strict=True))
    assert run.flipped_ids(), "the labels that were trained on are not those of the problem"
    np.testing.assert_array_equal(exported.test_points.ids, run.test_ids(seed))
    positions = run.plan.keys.test_positions(seed)
    assert torch.equal(exported.test_points.inputs, run.test.inputs[positions])
    assert torch.equal(exported.test_points.targets, run.test.targets[positions])
    judged = torch.from_numpy(run.context.train_artifact(seed).read("outputs_test"))
    assert torch.equal(logits(exported, exported.test.inputs), judged)
    assert torch.equal(exported.targets, judged[positions].argmax(dim=1))
    assert exported.recipe == run.context.recipe
    assert exported.loss.name == run.context.loss.name


def test_checkpoints_and_their_rates(run: Run, folder: Path) -> None:
    exported = open_exported(folder, 1)
    assert [checkpoint.epoch for checkpoint in exported.checkpoints] == run.plan.keys.saved_epochs()
    for epoch, rate, state in exported.checkpoints:
        assert rate == run.context.learning_rate(1, epoch)
        assert all(torch.equal(value, state[name]) for name, value in run.checkpoint(1, epoch).items())
    final = exported.checkpoints[-1].state
    assert all(torch.equal(value, final[name]) for name, value in exported.model.state_dict().items())


def test_another_tool_needs_nothing_of_ours(folder: Path) -> None:
    record = json.loads((folder / "seed-0" / "problem.json").read_text())
    with np.load(folder / "data" / "train.npz", allow_pickle=False) as train:
        assert train["ids"].tolist() == record["train_ids"]
        assert len(train["inputs"]) == len(train["targets"]) == len(record["train_ids"])
    state = torch.load(folder / "seed-0" / "final.pt", weights_only=True)
    assert all(isinstance(value, Tensor) for value in state.values())
    assert len(record["targets"]) == len(record["test_ids"]) == 2
    assert record["recipe"]["epochs"] == record["checkpoints"][-1]["epoch"]
    assert {"seed", "model", "loss", "problem"} <= set(record)


def load(run: Run, path: Path | str, folders: list[Path]) -> dict[int, Any]:
    keys = run.plan.keys
    return load_external(
        "theirs",
        section(path),
        folders,
        seeds=[0, 1],
        models={seed: keys.model(seed) for seed in (0, 1)},
        train_ids=run.train.ids.numpy(),
        test_ids=run.test.ids.numpy(),
        positions={seed: keys.test_positions(seed) for seed in (0, 1)},
    )


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("columns", ["points", "test set"])
def test_saved_scores_are_verified(run: Run, folder: Path, tmp_path: Path, transposed: bool, columns: str) -> None:
    wanted = {}
    for seed in (0, 1):
        exported = open_exported(folder, seed)
        gram = exported.train.inputs @ exported.test.inputs.T * (seed + 1)
        points = run.plan.keys.test_positions(seed)
        wanted[seed] = gram.double().numpy()[:, points]
        scores = gram if columns == "test set" else gram[:, points]
        exported.save(tmp_path / "theirs" / f"seed-{seed}.npz", scores.T if transposed else scores, transposed=transposed)
    found = load(run, "theirs", [tmp_path])
    for seed in (0, 1):
        assert found[seed].verified
        np.testing.assert_array_equal(found[seed].phi, wanted[seed])
    (tmp_path / "theirs" / "seed-0.npz").rename(tmp_path / "theirs" / "seed-1.npz")
    shutil.copy(tmp_path / "theirs" / "seed-1.npz", tmp_path / "theirs" / "seed-0.npz")
    with pytest.raises(MethodError, match="wrong seed: seed 0"):
        load(run, "theirs", [tmp_path])


@pytest.mark.parametrize("convert", [Tensor.bfloat16, Tensor.half, Tensor.to_sparse, Tensor.requires_grad_])
def test_scores_of_any_real_dtype_and_layout_are_saved(run: Run, folder: Path, tmp_path: Path, convert: Callable[[Tensor], Tensor]) -> None:
    rounded = torch.arange(80.0).reshape(40, 2)
    for seed in (0, 1):
        open_exported(folder, seed).save(tmp_path / "theirs" / f"seed-{seed}.npz", convert(rounded.clone()))
    for scores in load(run, "theirs", [tmp_path]).values():
        np.testing.assert_array_equal(scores.phi, rounded.double().numpy())


def test_scores_that_are_not_saved(folder: Path, tmp_path: Path) -> None:
    exported = open_exported(folder, 0)
    scores = torch.zeros(40, 2)
    with pytest.raises(ConfigError, match=r"ends in \.npz"):
        exported.save(tmp_path / "a.pt", scores)
    with pytest.raises(MethodError, match=r"what to do: pass transposed=True"):
        exported.save(tmp_path / "a.npz", scores.T)
    with pytest.raises(MethodError, match=r"what to do: pass transposed=False"):
        exported.save(tmp_path / "a.npz", scores, transposed=True)
    for shape in ((40,), (40, 3), (39, 2), (40, 2, 1)):
        with pytest.raises(MethodError, match=r"40 training samples x 2 or 12 test samples"):
            exported.save(tmp_path / "a.npz", np.zeros(shape))
    with pytest.raises(MethodError, match=r"not real numbers[\s\S]*real part"):
        exported.save(tmp_path / "a.npz", torch.zeros(40, 2, dtype=torch.complex64))
    assert not list(tmp_path.iterdir())


def test_only_some_seeds(run: Run, tmp_path: Path) -> None:
    list(export_problem(run, tmp_path, [1]))
    assert open_exported(tmp_path, 1).seed == 1
    with pytest.raises(ConfigError, match=r"not exported[\s\S]*seed-0/problem.json[\s\S]*got: seed-1[\s\S]*genrep export problem"):
        open_exported(tmp_path, 0)
    with pytest.raises(MethodError, match="not a seed of this run"):
        list(export_problem(run, tmp_path, [7]))


def test_models_that_are_not_trained(tmp_path: Path) -> None:
    prepared = prepare(experiment(methods=["random"]), Store(str(tmp_path / "store")))
    write_record(prepared)
    from genrep_dist.workflow.prepare import publish_inputs

    publish_inputs(prepared)
    with pytest.raises(NotCommittedError):
        list(export_problem(open_run(str(tmp_path / "store"), "toy"), tmp_path / "to"))


def test_what_was_changed_afterwards_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    record = copy / "seed-0" / "problem.json"
    original = record.read_text()
    changed = json.loads(original)
    changed["problem"]["options"]["num_classes"] += 1
    record.write_text(json.dumps(changed))
    with pytest.raises(ProblemError, match=r"differs from the exported one[\s\S]*search_path"):
        open_exported(copy, 0, [ROOT])
    changed = json.loads(original) | {"format": "genrep-problem/0"}
    record.write_text(json.dumps(changed))
    with pytest.raises(ConfigError, match=r"another version[\s\S]*genrep-problem/1[\s\S]*genrep-problem/0"):
        open_exported(copy, 0)
    record.write_text(original)
    with np.load(copy / "data" / "train.npz") as archive:
        parts = dict(archive)
    parts["targets"] = parts["targets"][::-1]
    np.savez(copy / "data" / "train.npz", **parts)
    with pytest.raises(CorruptError, match="differ from the exported ones"):
        open_exported(copy, 0)


def test_a_problem_in_a_file_of_ones_own(tmp_path: Path) -> None:
    place, moved = tmp_path / "here", tmp_path / "moved"
    place.mkdir()
    (place / "their_own_problem.py").write_text("from tests.toys import Blobs\n\n\nclass Theirs(Blobs):\n    pass\n")
    asked = experiment("their_own_problem:Theirs", methods=["random"], seeds=1)
    trained = train_originals(asked, str(tmp_path / "store"), serial=True, search_path=[str(place)])
    list(export_problem(trained, tmp_path / "to"))
    assert open_exported(tmp_path / "to", 0).identity == trained.plan.keys.model(0)
    import sys

    place.rename(moved)
    del sys.modules["their_own_problem"]
    with pytest.raises(ProblemError, match="no such module"):
        open_exported(tmp_path / "to", 0)
    assert open_exported(tmp_path / "to", 0, search_path=[moved]).identity == trained.plan.keys.model(0)
    del sys.modules["their_own_problem"]
