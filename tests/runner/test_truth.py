"""The ground truth of a run as files: computed from by others, verified to the byte, and read back as a ledger."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from genrep_dist.cli.main import app
from genrep_dist.config import load_experiment
from genrep_dist.errors import ConfigError, CorruptError, StoreError
from genrep_dist.external import open_truth
from genrep_dist.external.truth import RECORD, TABLES, write_record
from genrep_dist.results import Run, open_run
from genrep_dist.runner.progress import NoProgress
from genrep_dist.runner.run import run as run_experiment
from genrep_dist.runner.run import train_originals
from genrep_dist.runner.truth import export_truth, import_truth
from genrep_dist.store import Store
from tests.experiments import ROOT, experiment, experiment_file

FIELDS: dict[str, Any] = {
    "methods": ["ntk-final/target", "random"],
    "test_points": 3,
    "deletion": {"counts": [0, 4]},
    "lds": {"subsets": 6, "fraction": 0.5, "retrain": "fresh", "replicates": 3},
    "loo": {"samples": 3, "weight": 2.0},
    "relabel": {"samples": 2},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_experiment(experiment(options={"num_classes": 3}, **FIELDS), str(tmp_path_factory.mktemp("store")), serial=True)


@pytest.fixture(scope="module")
def package(finished: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "truth"
    written = {path.relative_to(folder).as_posix() for path in export_truth(finished, folder)}
    assert written == {path.name for path in folder.iterdir()} == {RECORD, *(f"{name}.parquet" for name in TABLES)}
    return folder


@pytest.fixture
def copied(package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(package, tmp_path / "truth"))


class StopsAfter(NoProgress):
    """Stops a run when ``models`` are retrained."""

    def __init__(self, models: int) -> None:
        self.left, self.retrains = models, False

    def stage(self, name: str, total: int, done: int) -> None:
        self.retrains = name == "retrain"

    def advance(self, units: int, statistics: Mapping[str, float]) -> None:
        self.left -= units if self.retrains else 0
        if self.left <= 0:
            raise KeyboardInterrupt


def snippet() -> str:
    section = (ROOT / "docs" / "external-scores.md").read_text().partition("## Ground truth as files")[2]
    return section.partition("```python\n")[2].partition("```")[0]


def computed(package: Path, phi: npt.NDArray[np.float64], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(package.parent)
    names: dict[str, Any] = {"phi": phi}
    exec(compile(snippet(), "docs/external-scores.md: truth", "exec"), names)
    return names


def check_documented_lines(run: Run, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for method in ("ntk-final/target", "random"):
        names = computed(package, run.attributions(method, 0), monkeypatch)
        order = np.argsort(run.test_ids(0))
        ours = run.points().filter(metric="lds", method=method, seed=0).sort("test_id").collect()["value"].to_list()
        np.testing.assert_allclose(names["lds"][order], ours, atol=1e-12)
        known = run.judged()["ceilings"].filter(metric="lds", seed=0).sort("test_id")["ceiling"].to_list()
        np.testing.assert_allclose(names["ceiling"][order], known, atol=1e-12)


def test_ten_documented_lines_compute_our_numbers(finished: Run, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len([line for line in snippet().splitlines() if line and not line.startswith("import")]) == 10
    check_documented_lines(finished, package, monkeypatch)


def test_the_numbers_are_those_of_the_target(finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = finished.plan.experiment.with_fixed_seeds(name="grouped", target={"kind": "margin", "group": "mean"})
    grouped = run_experiment(asked, finished.store.uri, serial=True)
    list(export_truth(grouped, tmp_path / "truth"))
    check_documented_lines(grouped, tmp_path / "truth", monkeypatch)
    points = open_truth(tmp_path / "truth").table("points").to_pylist()
    assert [row["members"] for row in points if row["seed"] == 1] == grouped.test_groups(1)
    assert [row["output"] for row in points] == [None, None]


def test_it_says_what_was_trained_and_on_what(finished: Run, package: Path) -> None:
    truth, keys = open_truth(package), finished.plan.keys
    assert truth.training == keys.training
    assert truth.record["models"] == {str(seed): keys.model(seed) for seed in (0, 1)}
    assert truth.table("train").column("id").to_pylist() == finished.train.ids.tolist()
    assert truth.table("test").column("target").to_pylist() == finished.test.targets.tolist()
    points = truth.table("points").to_pylist()
    assert [row["members"] for row in points if row["seed"] == 1] == finished.test_groups(1)
    models, uses = truth.table("models").to_pylist(), truth.table("requests").to_pylist()
    assert len({row["key"] for row in models}) == len(models)
    scanned = finished.store.ledger(keys.training).scan().collect()
    ledger = {row["key"]: row for row in scanned.iter_rows(named=True)}
    assert all(row["outputs"] == ledger[row["key"]]["outputs"] and row["removed"] == ledger[row["key"]]["removed"] for row in models)
    assert all(models[use["original"]]["removed"] == [] and models[use["original"]]["seed"] == use["seed"] for use in uses)
    # Deletion's published differences, from the package alone.
    for row in finished.deletion().collect().iter_rows(named=True):
        use = next(
            use
            for use in uses
            if use["metric"] == "deletion" and all(use[name] == row[name] for name in ("seed", "method", "test_id", "sign", "fraction"))
        )
        place = [point["test_id"] for point in points if point["seed"] == row["seed"]].index(row["test_id"])
        after, before = (models[use[which]]["numbers"][place] for which in ("model", "original"))
        assert after - before == pytest.approx(row["delta"], abs=1e-9)


def test_a_run_on_an_imported_truth_retrains_nothing(finished: Run, package: Path, tmp_path: Path) -> None:
    store = str(tmp_path / "new")
    done = import_truth(package, Store(store))
    assert (done.training, done.known) == (finished.plan.keys.training, 0)
    again = run_experiment(finished.plan.experiment, store, serial=True)
    trained = again.store.ledger(done.training).scan().filter(pl.col("num_removed") > 0).select(pl.len()).collect().item()
    assert trained == done.written - len(again.plan.experiment.seeds), "no model was added but the originals"
    ours, theirs = finished.judged(), again.judged()
    for name in ours:
        assert name == "costs" or theirs[name].equals(ours[name]), name
    repeated = import_truth(package, Store(store))
    assert (repeated.written, repeated.known) == (0, done.written)


def test_equal_runs_give_equal_bytes(finished: Run, package: Path, tmp_path: Path) -> None:
    list(export_truth(finished, tmp_path / "again"))
    for path in package.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


@pytest.mark.parametrize("name", [RECORD, *(f"{name}.parquet" for name in TABLES)])
def test_one_altered_byte_is_refused_by_name(copied: Path, name: str, tmp_path: Path) -> None:
    path = copied / name
    whole = path.read_bytes()
    places = {0, 4, len(whole) // 3, len(whole) // 2, len(whole) - 9, len(whole) - 1}
    damaged = [whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :] for place in places]
    for data in (*damaged, whole[:-1], whole + b"\n", b""):
        path.write_bytes(data)
        with pytest.raises(CorruptError) as refused:
            import_truth(copied, Store(str(tmp_path / "store")))
        assert name in str(refused.value)
    path.unlink()
    with pytest.raises(ConfigError if name == RECORD else CorruptError, match=name):
        open_truth(copied)
    assert not list((tmp_path / "store").rglob("*.parquet")), "nothing was written"


def rewritten(folder: Path, changes: dict[str, Any]) -> None:
    """The table of models with columns replaced, and honest digests: what someone else could hand out."""
    table = pq.read_table(folder / "models.parquet")
    for name, values in changes.items():
        field = table.schema.field(name)
        table = table.set_column(table.column_names.index(name), field, [pa.array(values, field.type)])
    pq.write_table(table, folder / "models.parquet")
    record = json.loads((folder / RECORD).read_text())
    write_record(folder, {key: value for key, value in record.items() if key not in ("digest", "files", "format")})


def test_rows_that_contradict_their_key_are_refused(copied: Path, tmp_path: Path) -> None:
    columns = pq.read_table(copied / "models.parquet").to_pydict()
    other_outputs = [values[:-1] for values in columns["outputs"]]
    not_finite = [[float("nan"), *values[1:]] for values in columns["outputs"]]
    shuffled = columns["removed"][::-1]
    for changes, expected in (
        ({"seed": [seed + 1 for seed in columns["seed"]]}, "key"),
        ({"removed": shuffled, "num_removed": [len(ids) for ids in shuffled]}, "key"),
        ({"policy": ["same"] * len(shuffled)}, "key"),
        ({"outputs": other_outputs}, "outputs"),
        ({"outputs": not_finite}, "outputs"),
    ):
        rewritten(copied, {name: columns[name] for name in columns} | changes)
        with pytest.raises(CorruptError, match=expected):
            import_truth(copied, Store(str(tmp_path / "store")))
    assert not list((tmp_path / "store").rglob("*.parquet")), "nothing was written"


def test_a_record_that_someone_else_wrote_is_checked(copied: Path, tmp_path: Path) -> None:
    record = json.loads((copied / RECORD).read_text())
    whole = {key: value for key, value in record.items() if key not in ("digest", "files", "format")}
    for field, value in (
        ("training", "../../elsewhere"),
        ("training", None),
        ("num_test", "12"),
        ("num_outputs", 0),
        ("numbers_version", []),
    ):
        write_record(copied, whole | {field: value})
        with pytest.raises(CorruptError, match=field):
            import_truth(copied, Store(str(tmp_path / "store")))
    (copied / RECORD).write_text("[" * 200 + "]" * 200)
    with pytest.raises(CorruptError, match=RECORD):
        open_truth(copied)
    assert not list(tmp_path.rglob("part-*.parquet"))


def test_other_outputs_than_the_ledgers_are_refused(finished: Run, copied: Path) -> None:
    columns = pq.read_table(copied / "models.parquet").to_pydict()
    rewritten(copied, {"outputs": [[value + 0.1 for value in values] for values in columns["outputs"]]})
    with pytest.raises(StoreError, match="other outputs"):
        import_truth(copied, finished.store)
    record = json.loads((copied / RECORD).read_text())
    old = {key: value for key, value in record.items() if key not in ("digest", "files", "format")}
    write_record(copied, old | {"numbers_version": 1})
    with pytest.raises(StoreError, match="version"):
        import_truth(copied, finished.store)


def test_other_files_and_unfinished_runs(finished: Run, copied: Path, tmp_path: Path) -> None:
    target = copied / "models.parquet"
    moved = target.rename(tmp_path / "elsewhere.parquet")
    target.symlink_to(moved)
    with pytest.raises(CorruptError, match=r"models\.parquet"):
        open_truth(copied)
    with pytest.raises(ConfigError, match="no package"):
        open_truth(tmp_path / "nothing")
    trained = train_originals(experiment(name="early"), str(tmp_path / "early"), serial=True)
    with pytest.raises(StoreError, match="no ground truth yet"):
        list(export_truth(trained, tmp_path / "truth"))


@pytest.mark.parametrize("target", [{}, {"target": {"kind": "margin"}}])
def test_a_run_that_was_stopped_goes_on_in_another_store(tmp_path: Path, target: dict[str, Any]) -> None:
    declared = experiment_file(tmp_path / "toy.yaml", options={"num_classes": 3}, **{**FIELDS, **target})
    asked = load_experiment(declared)
    whole = run_experiment(asked, str(tmp_path / "whole"), serial=True)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(asked, str(tmp_path / "stopped"), serial=True, progress=StopsAfter(7))
    stopped = open_run(str(tmp_path / "stopped"), asked.name)
    list(export_truth(stopped, tmp_path / "truth"))
    record = open_truth(tmp_path / "truth").record
    assert record["complete"] is False
    done = import_truth(tmp_path / "truth", Store(str(tmp_path / "new")))
    assert 7 <= done.written < whole.store.ledger(done.training).scan().select(pl.len()).collect().item()
    planned = CliRunner().invoke(app, ["plan", str(declared), "--store", str(tmp_path / "new"), "--no-probe"])
    assert f"the ledger has {done.written - 2} more models of this training" in " ".join(planned.output.split())
    went_on = run_experiment(asked, str(tmp_path / "new"), serial=True)
    assert went_on.points().collect().equals(whole.points().collect())
    assert went_on.store.ledger(done.training).keys() == whole.store.ledger(done.training).keys()


def test_commands(finished: Run, tmp_path: Path) -> None:
    runner = CliRunner()
    folder, store = str(tmp_path / "truth"), str(tmp_path / "store")
    done = runner.invoke(app, ["export", "truth", "toy", "--to", folder, "--store", finished.store.uri])
    assert done.exit_code == 0, done.output
    assert f"{folder}/{RECORD}" in done.stdout
    done = runner.invoke(app, ["import", "truth", folder, "--store", store])
    assert done.exit_code == 0, done.output
    assert finished.plan.keys.training in done.stdout
    assert runner.invoke(app, ["import", "scores", folder, "--store", store]).exit_code == 2
    assert open_run(finished.store.uri, "toy").name == "toy"


def test_slices_of_two_stores_are_merged_and_never_trained_again(tmp_path: Path) -> None:
    fields = {**FIELDS, "methods": ["random"]}
    here, there = (
        run_experiment(experiment(seeds=[seed], **fields), str(tmp_path / name), serial=True) for seed, name in ((0, "here"), (1, "there"))
    )
    list(export_truth(there, tmp_path / "truth"))
    done = import_truth(tmp_path / "truth", here.store)
    assert (done.written, done.known) == (there.store.ledger(done.training).scan().select(pl.len()).collect().item(), 0)
    before = here.store.ledger(done.training).keys()
    both = run_experiment(experiment(seeds=[0, 1], **fields), here.store.uri, serial=True)
    assert both.store.ledger(done.training).keys() == before, "no model was trained"
    alone = run_experiment(experiment(seeds=[0, 1], **fields), str(tmp_path / "alone"), serial=True)
    assert both.deletion().collect().equals(alone.deletion().collect())
    assert both.points().collect().equals(alone.points().collect())
