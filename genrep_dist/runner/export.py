"""A run as plain files that any tool reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from genrep_dist.config.keys import checkpoint_epoch
from genrep_dist.errors import StoreError
from genrep_dist.external.exported import FORMAT, write_samples
from genrep_dist.filesystem import what_is_at
from genrep_dist.problems.named_code import remember_export
from genrep_dist.problems.tables import to_table
from genrep_dist.results import Run

NOTE = "export.json"
"""Says which run an export is of."""


def export_run(run: Run, folder: Path, seeds: Sequence[int] | None = None) -> Iterator[Path]:
    """Write ``run`` below ``folder`` and yield the paths written.

    export.json, which names the run; every published table as CSV (summary.csv, deletion.csv, metrics.csv, and so on);
    data/{train,test}.parquet; for every seed (or the given ones) seed-<s>/: test_ids.npy, {initial,middle,final}.pt (state dicts, those
    that were kept; loadable with ``weights_only=True``), and one phi of (N, M) per method as .npy, its rows in the order of
    data/train.parquet; of a run that keeps only the strongest scores, ids and scores (M, K) of each sign as .npz.

    Raises StoreError or NotCommittedError for a run that is not finished, StoreError for a folder that cannot be written, or that has the
    export of another run.
    """
    return checked_paths(folder, _run_files(run, folder, seeds))


def _run_files(run: Run, folder: Path, seeds: Sequence[int] | None) -> Iterator[Path]:
    tables = run.tables()
    _claim(folder, run)
    for name, table in tables.items():
        table.write_csv(folder / f"{name}.csv")
        yield folder / f"{name}.csv"
    (folder / "data").mkdir(exist_ok=True)
    for name, dataset in (("train", run.train), ("test", run.test)):
        pq.write_table(to_table(dataset), folder / "data" / f"{name}.parquet", compression="zstd")
        yield folder / "data" / f"{name}.parquet"
    for seed in seeds or run.plan.experiment.seeds:
        place = folder / f"seed-{seed}"
        place.mkdir(exist_ok=True)
        np.save(place / "test_ids.npy", run.test_ids(seed))
        yield place / "test_ids.npy"
        for checkpoint in _kept_checkpoints(run, seed):
            torch.save(run.checkpoint(seed, checkpoint), place / f"{checkpoint}.pt")
            yield place / f"{checkpoint}.pt"
        for method in run.plan.experiment.methods:
            name = method.replace("/", "--")
            if run.plan.top is None:
                np.save(place / f"{name}.npy", run.attributions(method, seed))
                yield place / f"{name}.npy"
                continue
            kept = {sign: run.strongest(method, seed, sign) for sign in ("negative", "positive")}
            arrays = {f"{what}_{sign}": values for sign, pair in kept.items() for what, values in zip(("ids", "scores"), pair, strict=True)}
            np.savez(place / f"{name}.npz", **arrays)  # type: ignore[arg-type]
            yield place / f"{name}.npz"


def _claim(folder: Path, run: Run) -> None:
    """Create the folder of an export, with a note of its run. StoreError for one that has the export of another run."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / NOTE).exists() and (folder / "summary.csv").exists():
        raise _of_another(folder, run.name, "unknown")
    refuse_other_export(folder / NOTE, folder, run.name, {"question": run.question})
    mine = {"store": run.store.uri, "experiment": run.name, "question": run.question}
    (folder / NOTE).write_text(json.dumps(mine, indent=1) + "\n", encoding="utf-8")


def refuse_other_export(note: Path, folder: Path, name: str, mine: Mapping[str, Any]) -> None:
    """Raise StoreError if ``note`` exists and lacks one of the entries ``mine``: ``folder`` has the export of another run than ``name``."""
    if not note.exists():
        return
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
    except ValueError:  # also of its encoding: it is not ours
        found = None
    known: Mapping[str, Any] = found if isinstance(found, dict) else {}
    if any(known.get(field) != value for field, value in mine.items()):
        store = f" of {known['store']}" if "store" in known else ""
        raise _of_another(folder, name, f"experiment {known['experiment']}{store}" if "experiment" in known else "unknown")


def _of_another(folder: Path, name: str, got: str) -> StoreError:
    return StoreError(
        "this folder has the export of another run",
        where=str(folder),
        expected=f"a new folder, or an export of {name} with the same results",
        got=got,
        remedy="choose another folder (--to), or delete this one",
    )


def _kept_checkpoints(run: Run, seed: int) -> list[str]:
    """Which of three checkpoints a seed has: a training function may keep fewer, and a model that is no torch module has none."""
    if not run.plan.shape.has_module:
        return []
    kept = run.store.artifact("train", run.plan.keys.train(seed)).read("epochs").tolist()
    return [name for name in ("initial", "middle", "final") if checkpoint_epoch(name, run.plan.keys.epochs) in kept]


def export_problem(run: Run, folder: Path, seeds: Sequence[int] | None = None) -> Iterator[Path]:
    """Write the models that ``run`` judges, and what they were trained on, below ``folder``; yield the paths written.

    data/{train,test}.npz: inputs, targets (those that were trained on), ids. For every seed (or the given ones) seed-<s>/:
    epoch-<k>.pt for every checkpoint that was kept, final.pt (state dicts, loadable with ``weights_only=True``), and problem.json:
    the model's content address, ids, explained outputs, checkpoints with their learning rates, loss, recipe, problem.
    Models that are no torch modules have no .pt files.
    :func:`genrep_dist.external.open_exported` opens it. The run need not be finished: NotCommittedError where a model is not trained,
    StoreError for a folder that has the models of another experiment, or of other data or another recipe.
    """
    return checked_paths(folder, _problem_files(run, folder, seeds))


def _problem_files(run: Run, folder: Path, seeds: Sequence[int] | None) -> Iterator[Path]:
    mine = {"experiment": run.name, "data": run.plan.keys.data, "recipe": run.plan.keys.recipe}
    for note in sorted(folder.glob("seed-*/problem.json")):
        refuse_other_export(note, folder, run.name, mine)
    for name, samples in (("train", run.train), ("test", run.test)):
        yield write_samples(folder, name, samples)
    for seed in run.plan.experiment.seeds if seeds is None else seeds:
        place = folder / f"seed-{seed}"
        record = _problem_record(run, seed)
        remember_export(record["problem"])
        place.mkdir(parents=True, exist_ok=True)
        files = {checkpoint["file"]: checkpoint["epoch"] for checkpoint in record["checkpoints"]}
        for file, which in (files | {"final.pt": "final"}).items() if run.plan.shape.has_module else ():
            torch.save(run.checkpoint(seed, which), place / file)
            yield place / file
        # Last: a folder with this file is whole.
        (place / "problem.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        yield place / "problem.json"


def checked_paths(folder: Path, paths: Iterator[Path]) -> Iterator[Path]:
    """``paths``, which are written while they are taken. StoreError where the folder or a file in it cannot be written."""
    try:
        yield from paths
    except OSError as error:
        raise StoreError(
            "the exported files cannot be written",
            where=str(error.filename or folder),
            expected="a folder, existing or new, and plain files in it",
            got=f"{what_is_at(error.filename or folder)} ({error.strerror or error})",
            remedy="choose another folder (--to), or move away what is there",
        ) from error


def _problem_record(run: Run, seed: int) -> dict[str, Any]:
    """What problem.json says of one seed."""
    keys, experiment, context = run.plan.keys, run.plan.experiment, run.context
    train_ids, test_ids = run.train_ids(seed).tolist(), run.test.ids[keys.test_positions(seed)].tolist()
    epochs = context.train_artifact(seed).read("epochs").tolist() if run.plan.shape.has_module else []
    return {
        "format": FORMAT,
        "experiment": run.name,
        "seed": seed,
        "model": keys.model(seed),
        "data": keys.data,
        "train_ids": train_ids,
        "test_ids": test_ids,
        "targets": context.test_points(seed).outputs.tolist(),
        "target": {**experiment.target.model_dump(mode="json"), "description": experiment.target.description(run.plan.shape.num_outputs)},
        "checkpoints": [{"epoch": epoch, "rate": context.learning_rate(seed, epoch), "file": f"epoch-{epoch}.pt"} for epoch in epochs],
        "loss": context.loss.name,
        "recipe": keys.recipe,
        "problem": {
            "name": experiment.problem.name,
            "options": experiment.problem.options,
            "search_path": [str(Path(path).resolve()) for path in context.job.search_path],
            "source": keys.problem,
        },
    }
