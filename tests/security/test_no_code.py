"""A store runs no code: classes that it names are imported only if the user of this machine has named them."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import genrep_dist as gr
from genrep_dist.cli.main import app
from genrep_dist.cli.status import status_record
from genrep_dist.errors import ConfigError, GenRepError, ProblemError, StoreError
from genrep_dist.results import Run
from genrep_dist.runner.export import export_problem
from genrep_dist.store import Store
from genrep_dist.store.publications import Publications
from genrep_dist.store.sealed import seal_json, unseal_json
from genrep_dist.workflow.record import plan_of_record
from tests.security.conftest import MODULE, Finished

PLANTED = "planted_module:Planted"
COMMANDS: tuple[tuple[str, ...], ...] = (("status",), ("status", "--json"), ("report",), ("doctor",), ("export",), ("ledger", "compact"))


def invoke(store: Path, command: tuple[str, ...], *more: str) -> Any:
    to = ("--to", str(store.parent / "to")) if command == ("export",) else ()
    found = CliRunner().invoke(app, [*command, "toy", "--store", str(store), *to, *more])
    assert found.exception is None or isinstance(found.exception, SystemExit | GenRepError), found.exception
    return found


class Hostile:
    """A copy of a store with a module, in it, in the current folder and in the record's folders, that leaves a mark when it is imported."""

    def __init__(self, finished: Finished, place: Path) -> None:
        self.store = finished.copy(place)
        self.mark = place / "it-ran"
        for folder in (place, self.store, self.store / "experiments/toy"):
            (folder / "planted_module.py").write_text(f"open({str(self.mark)!r}, 'w').close()\n")

    def plant(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Change the record, and with it all that a reader compares it with: digests and checksums too."""
        objects = Store(str(self.store)).objects
        record = objects.get_json("experiments/toy/record.json")
        record["search_path"] = [str(self.store / "experiments/toy"), str(self.store)]
        change(record)
        try:
            question = plan_of_record(record).keys.results
        except GenRepError:
            question = record["question"]
        (self.store / f"experiments/toy/requests-{record['question']}.parquet").rename(
            self.store / f"experiments/toy/requests-{question}.parquet"
        )
        record["question"] = question
        objects.put_json("experiments/toy/record.json", record)
        Publications(objects, "toy").update({"question": question, "record": record})

    def assert_silent(self) -> None:
        assert not self.mark.exists()
        assert "planted_module" not in sys.modules


@pytest.fixture
def hostile(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hostile]:
    made = Hostile(finished, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # as `python -m genrep_dist` does
    yield made
    made.assert_silent()


def rename_problem(name: str, **options: Any) -> Callable[[dict[str, Any]], None]:
    return lambda record: record["experiment"]["problem"].update(name=name, options=options)


def add_kernel(known: bool) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        record["experiment"]["kernels"] = {"mine": {"class": PLANTED, "options": {}}}
        if known:
            record["own_kernels"]["mine"] = "0" * 64

    return change


PLANTS: dict[str, Callable[[dict[str, Any]], None]] = {
    "a module of the store": rename_problem(PLANTED),
    "a function of Python": rename_problem("os:system", command="touch it-ran"),
    "a class of Python": rename_problem("subprocess:Popen", args=["touch", "it-ran"]),
    "a function of this package": rename_problem("genrep_dist.registry:import_object", path=PLANTED),
    "a module that another one imports": rename_problem("tests.toys:torch.os.system", command="touch it-ran"),
    "a class of kernels": add_kernel(known=False),
    "a function of pairs": add_kernel(known=True),
    "an augmentation": lambda record: record["experiment"]["recipe"].update(augment=PLANTED),
    "a metric": lambda record: record["experiment"].update(metrics={"mine": {"class": PLANTED}}),
}


@pytest.mark.parametrize("plant", PLANTS)
def test_no_command_imports_what_a_store_names(hostile: Hostile, plant: str) -> None:
    hostile.plant(PLANTS[plant])
    # What needs no code fails or succeeds in the same way for all classes of this kind.
    for command in COMMANDS if plant in ("a module of the store", "a class of kernels", "a metric") else (("report",), ("doctor",)):
        found = invoke(hostile.store, command)
        if command == ("doctor",):
            assert found.exit_code == 1
        hostile.assert_silent()


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, key))
    else:
        yield path


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(copy[path[0]], path[1:], new)
    return copy


def test_no_field_of_any_json_file_is_imported(hostile: Hostile) -> None:
    tried = set()
    for file in sorted(hostile.store.rglob("*.json")):
        whole = file.read_bytes()
        value = unseal_json(whole)
        for path in leaves(value):
            # One entry of each list, of each part of an identity, and one file of each kind.
            kind = (file.name, *[key for key in path if isinstance(key, str)][: 3 if "identities" in path else None])
            if kind in tried or file.name == "zarr.json":
                continue
            tried.add(kind)
            file.write_bytes(seal_json(replaced(value, path, PLANTED)))
            try:
                status_record(str(hostile.store), "toy")
                gr.open_run(str(hostile.store), "toy").problem(0)
            except Exception:
                continue  # a damaged record is another matter
            finally:
                file.write_bytes(whole)
                assert not hostile.mark.exists(), f"{file.name}: {path}"
    assert len(tried) > 90


def test_no_field_of_any_table_is_imported(hostile: Hostile) -> None:
    changed = 0
    for file in sorted((hostile.store / "results").rglob("*.parquet")):
        table = pq.read_table(file)
        for index, field in enumerate(table.schema):
            if pa.types.is_string(field.type):
                table = table.set_column(index, field, pa.array([PLANTED] * table.num_rows))
                changed += 1
        pq.write_table(table, file)
    assert changed > 10
    digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (hostile.store / "results/toy").glob("*.parquet")}
    Publications(Store(str(hostile.store)).objects, "toy").update({"tables": digests})
    assert PLANTED in gr.open_run(str(hostile.store), "toy").metrics()["method"].to_list(), "what was planted is read"
    for command in (("status",), ("report",)):
        invoke(hostile.store, command)


# -- what a user can still do -----------------------------------------------------------------------------------------------------


def test_a_users_own_run_needs_no_naming(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = gr.open_run(str(finished.store), "toy")
    assert run.has_code
    assert len(run.problem(0).train.ids) == 40
    assert run.explain("ntk-final/target", 0, test_ids=run.test_ids(0).tolist()).shape == (40, 2)
    assert invoke(finished.store, ("doctor",)).exit_code == 0


@pytest.mark.usefixtures("stranger")
def test_tables_and_arrays_need_no_code(finished: Finished, tmp_path: Path) -> None:
    store = finished.copy(tmp_path)
    run = gr.open_run(str(store), "toy")
    assert not run.has_code
    assert {"ntk-final/target", "random"} <= set(run.summary()["method"])
    assert run.attributions("ntk-final/target", 0).shape == (40, 2)
    known = Run(run.store, "toy").judge().metrics
    assert known.equals(run.metrics())
    for name in ("target", "tracking", "ntk-final/surrogate"):
        assert np.isfinite(run.importance(name, 0)).all()
    for command in (("status",), ("report",), ("export",), ("ledger", "compact")):
        assert invoke(store, command).exit_code == 0
    for need in (lambda: run.problem(0), lambda: run.explain("ntk-final/target", 0, test_ids=[run.test_ids(0)[0]])):
        with pytest.raises(StoreError, match=r"a store runs no code[\s\S]*own_problem:OwnProblem[\s\S]*--experiment"):
            need()
    assert "a store runs no code" in " ".join(invoke(store, ("doctor",), "--all").output.split())


@pytest.mark.usefixtures("stranger")
def test_code_that_is_named_again(finished: Finished, tmp_path: Path) -> None:
    store = finished.copy(tmp_path)
    named = gr.open_run(str(store), "toy", experiment=finished.file)
    assert len(named.problem(0).train.ids) == 40
    assert invoke(store, ("doctor",), "--experiment", str(finished.file)).exit_code == 0
    with pytest.raises(ConfigError, match=r"not the one of this run[\s\S]*own_problem:OwnProblem[\s\S]*none"):
        gr.open_run(str(store), "toy", experiment="smoke")
    shutil.copy(finished.file, store / "experiment.yaml")
    shutil.copy(finished.folder / "own_problem.py", store)
    inside = gr.open_run(str(store), "toy", experiment=store / "experiment.yaml")
    assert str(store) not in inside._checked_code().folders


def test_a_file_that_was_edited_is_not_imported(finished: Finished) -> None:
    module = finished.folder / "own_problem.py"
    module.write_text(MODULE + "raise SystemExit('imported')\n")
    try:
        with pytest.raises(ProblemError, match=r"differs from the one that the run was made with[\s\S]*own_problem\.py"):
            gr.open_run(str(finished.store), "toy").problem(0)
    finally:
        module.write_text(MODULE)


def test_an_export_runs_no_code(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to = tmp_path / "models"
    list(export_problem(gr.open_run(str(finished.store), "toy"), to))
    assert gr.open_exported(to, 0).seed == 0
    monkeypatch.setenv("GENREP_STATE", str(tmp_path / "nothing"))
    with pytest.raises(ProblemError, match=r"runs no code of its own[\s\S]*own_problem:OwnProblem"):
        gr.open_exported(to, 0)
    assert gr.open_exported(to, 0, [finished.folder]).seed == 0
    record = json.loads((to / "seed-0/problem.json").read_text())
    for name, options in (("os:system", {"command": f"touch {tmp_path}/it-ran"}), ("own_problem:Blobs", {})):
        record["problem"] |= {"name": name, "options": options}
        (to / "seed-0/problem.json").write_text(json.dumps(record))
        with pytest.raises(ProblemError, match="runs no code of its own"):
            gr.open_exported(to, 0, [finished.folder])
    assert not (tmp_path / "it-ran").exists()
