"""A store meets a newer and an older version of the package: what is older is read, what is newer is refused, nothing is moved away."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrep_dist import open_run
from genrep_dist.errors import StoreError
from genrep_dist.evaluation.metrics import base
from genrep_dist.problems import tables
from genrep_dist.results import tables as results
from genrep_dist.runner import publish
from genrep_dist.store import Store, artifacts, ledger, ledger_parts
from genrep_dist.store.objects import Objects
from genrep_dist.store.tables import put_table
from genrep_dist.workflow import execute, record
from tests.faults.conftest import Undisturbed
from tests.faults.test_damage import Said
from tests.faults.trial import Trial, assert_equal

Patch = pytest.MonkeyPatch


def newer_record(patch: Patch) -> None:
    patch.setattr(record, "RECORD_VERSION", record.RECORD_VERSION + 1)


def newer_ledger(patch: Patch) -> None:
    schema = ledger_parts.LEDGER_SCHEMA
    version = str(ledger_parts.VERSION + 1)
    newer = pa.schema(list(schema), metadata={**schema.metadata, b"genrep.version": version.encode()})
    for module in (ledger_parts, ledger):
        patch.setattr(module, "LEDGER_SCHEMA", newer)
    patch.setattr(ledger_parts, "VERSION", ledger_parts.VERSION + 1)


def newer_artifacts(patch: Patch) -> None:
    patch.setattr(artifacts, "SCHEMA_VERSION", artifacts.SCHEMA_VERSION + 1)


def newer_data(patch: Patch) -> None:
    patch.setattr(tables, "SCHEMA_VERSION", "genrep-dataset/2")


def newer_results(patch: Patch) -> None:
    for module in (base, publish, results):
        patch.setattr(module, "RESULTS_VERSION", base.RESULTS_VERSION + 1)


NEWER: dict[str, Callable[[Patch], None]] = {
    "record": newer_record,
    "ledger": newer_ledger,
    "artifacts": newer_artifacts,
    "data": newer_data,
    "results": newer_results,
}


def digests(store: str) -> dict[str, str]:
    files = [path for path in Path(store).rglob("*") if path.is_file() and "lease" not in path.parts and path.name != "progress.json"]
    return {path.relative_to(store).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_newer_version_reads_the_store_and_trains_nothing(tmp_path: Path, undisturbed: Undisturbed, monkeypatch: Patch) -> None:
    """One that has raised all format versions; also where results have to be published again, and after its own version is back."""
    trial = Trial.make(tmp_path)
    shutil.copytree(undisturbed.trial.store, trial.store)
    for raise_version in NEWER.values():
        raise_version(monkeypatch)
    execute._contexts.clear()
    trial.run_here(said := Said())
    assert set(said.missing.values()) == {0}, "results of an older version are published again"
    trial.run_here(again := Said())
    assert again.missing == {}
    assert not any("moved to" in message for message in [*said.messages, *again.messages])
    assert open_run(trial.store, "toy").summary().height
    assert trial.trainings() == 0
    assert_equal(trial.published(), undisturbed.published)
    execute._contexts.clear()


def raised(objects: Objects, path: str, field: str) -> None:
    value = objects.get_json(path)
    objects.put_json(path, {**value, field: value[field] + 1})


def raise_ledger(trial: Trial, objects: Objects) -> str:
    part = trial.recorded("ledger/*/part-*.parquet")[0]
    with pytest.MonkeyPatch.context() as patch:
        newer_ledger(patch)
        table = pq.read_table(part).cast(ledger_parts.LEDGER_SCHEMA)
        return ledger_parts.put_part(objects, part.relative_to(trial.store).parent.as_posix(), table)


def raise_data(trial: Trial, objects: Objects) -> str:
    path = trial.recorded("data/*/train.parquet")[0]
    table, place = pq.read_table(path), path.relative_to(trial.store).as_posix()
    put_table(objects, place, table.replace_schema_metadata({**table.schema.metadata, b"genrep.schema": b"genrep-dataset/2"}), sealed=True)
    return place


def raise_artifact(trial: Trial, objects: Objects) -> str:
    path = trial.recorded("artifacts/surrogate/*/*/manifest.json")[0].relative_to(trial.store).as_posix()
    raised(objects, path, "schema_version")
    return path


def raise_record(trial: Trial, objects: Objects) -> str:
    raised(objects, "experiments/toy/record.json", "schema_version")
    return "experiments/toy/record.json"


def raise_results(trial: Trial, objects: Objects) -> str:
    for path in (*trial.recorded("experiments/toy/publications/*.json"), *trial.recorded("results/toy/manifest.json")):
        raised(objects, path.relative_to(trial.store).as_posix(), "results_version")
    return "results/toy/manifest.json"


@pytest.mark.parametrize("newer", [raise_ledger, raise_data, raise_artifact, raise_record, raise_results])
def test_an_older_version_refuses_what_is_newer_by_name_and_moves_nothing(
    tmp_path: Path, undisturbed: Undisturbed, newer: Callable[[Trial, Objects], str]
) -> None:
    trial = Trial.make(tmp_path)
    shutil.copytree(undisturbed.trial.store, trial.store)
    if newer is not raise_results:
        (Path(trial.store) / "results/toy/manifest.json").unlink()
    name = newer(trial, Store(trial.store).objects)
    before = digests(trial.store)
    for _ in range(2):
        execute._contexts.clear()
        with pytest.raises(StoreError, match="newer version of genrep-dist") as refused:
            trial.run_here()
        assert name in str(refused.value)
        assert "install" in str(refused.value)
    after = digests(trial.store)
    assert {path for path in before if after.get(path) != before[path]} <= {"experiments/toy/record.json", "experiments/toy/doctor.json"}
    assert trial.trainings() == 0
    execute._contexts.clear()
