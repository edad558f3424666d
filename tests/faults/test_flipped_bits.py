"""One bit of any file that a run leaves is flipped: the same results, or an error that names the file; and the same command mends it."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

import genrep_dist as gr
from genrep_dist.errors import CorruptError, GenRepError
from genrep_dist.evaluation.tables import table_specs
from genrep_dist.workflow import execute
from tests.experiments import ROOT, experiment
from tests.faults.test_damage import Said
from tests.faults.trial import report

METHODS = ["ntk-final/surrogate", "last-layer-final/target", "influence-function", "random"]
FLIPS_OF_A_KIND = 3
NOT_READ = {"lease", "group"}
"""Kinds that hold no result: a lease, and the metadata of a Zarr group, which only other programs read."""


def run(store: Path, said: Said | None = None) -> gr.Run:
    asked = experiment(methods=METHODS, seeds=1, deletion={"fractions": [0.0, 0.2], "signs": ["negative"]})
    return gr.run(asked, store=str(store), serial=True, search_path=[str(ROOT)], progress=said)


def readings(store: Path) -> dict[str, Callable[[], Any]]:
    """All numbers that a reader can ask for, without seconds, by name."""
    execute._contexts.clear()
    opened = gr.open_run(str(store), "toy")

    def certificates() -> Any:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in opened.certificate_records()]

    def published() -> Any:
        tables = opened.judged()
        return {name: tables[name].to_dicts() for name in table_specs() if name != "costs"}

    arrays: dict[str, Callable[[], Any]] = {
        "surrogate": lambda: opened.importance("surrogate", 0),
        "ntk": lambda: opened.kernel("ntk", "final", 0),
        "influence": lambda: opened.kernel("influence", "final", 0),
        "train": lambda: np.asarray(opened.train.inputs),
        "test": lambda: np.asarray(opened.test.targets),
        "state": lambda: np.concatenate([values.flatten() for values in opened.checkpoint(0, "initial").values()]),
        **{method: lambda method=method: opened.attributions(method, 0) for method in METHODS},  # type: ignore[misc]
    }
    return {
        "published": published,
        "summary": lambda: opened.summary().to_dicts(),
        "judged again": lambda: opened.judge()["deletion"].sort(pl.all()).to_dicts(),
        "requests": lambda: opened._requests().sort(pl.all()).to_dicts(),
        "training": lambda: opened.training().to_dicts(),
        "certificates": certificates,
        **{name: lambda read=read: np.ascontiguousarray(read()).tobytes() for name, read in arrays.items()},  # type: ignore[misc]
    }


def everything(store: Path) -> dict[str, Any]:
    return {name: read() for name, read in readings(store).items()}


def kind_of(path: str) -> str:
    """Files of one kind are written in the same way."""
    if path.startswith("artifacts/"):
        _, kind, _, _, *rest = path.split("/")
        if rest == ["zarr.json"]:
            return "group"
        name = {"zarr.json": "metadata", "manifest.json": "manifest"}.get(rest[-1], rest[0] if rest[0] == "parts" else "block")
        return f"{name} of {kind}"
    return "lease" if "/lease/" in path else re.sub(r"[0-9a-f]{12,}", "*", path)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("sound") / "store"
    run(store)
    return store


@pytest.fixture(scope="module")
def expected(sound: Path) -> dict[str, Any]:
    return everything(sound)


def files_of(store: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in sorted(path for path in store.rglob("*") if path.is_file()):
        found.setdefault(kind_of(path.relative_to(store).as_posix()), []).append(path)
    return found


def flip(path: Path, chance: random.Random) -> bytes:
    """What the file held."""
    before = path.read_bytes()
    data = bytearray(before)
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)
    return before


def flips(store: Path, chance: random.Random) -> Iterator[tuple[str, Path]]:
    """Each flip is undone when the next one is asked for."""
    for kind, paths in files_of(store).items():
        for _ in range(FLIPS_OF_A_KIND):
            path = chance.choice(paths)
            before = flip(path, chance)
            yield kind, path
            path.write_bytes(before)


def test_no_flipped_bit_is_read_as_another_number(sound: Path, expected: dict[str, Any], tmp_path: Path, record_property: Any) -> None:
    store = tmp_path / "store"
    shutil.copytree(sound, store)
    kinds, refused = set(), set()
    for kind, path in flips(store, random.Random(1)):
        kinds.add(kind)
        refusal = None
        try:
            found = everything(store)
        except GenRepError as error:
            refusal = error
        if refusal is None:
            assert found == expected, path
            continue
        refused.add(kind)
        place = path.relative_to(store)
        # An artifact in many files is named by its folder, a ledger part or a table by its file.
        named = Path(*place.parts[:4]) if place.parts[0] == "artifacts" else place
        assert str(named) in str(refusal), (path, refusal)
    report(record_property, tried=FLIPS_OF_A_KIND * len(kinds))
    assert len(kinds) >= 40, kinds
    assert {"data/*/train.parquet", "ledger/*/part-*.parquet", "results/toy/deletion.parquet", "metadata of kernel"} <= refused
    assert {"manifest of surrogate", "experiments/toy/record.json", "block of kernel"} <= refused


@pytest.mark.parametrize("seed", [1, 2])
def test_the_same_command_mends_a_flipped_bit_in_a_file_of_every_kind(
    sound: Path, expected: dict[str, Any], tmp_path: Path, seed: int, record_property: Any
) -> None:
    """At once, in an experiment whose results are still to be published; then nothing is left to do."""
    store, chance = tmp_path / "store", random.Random(seed)
    shutil.copytree(sound, store)
    kinds = {kind: paths for kind, paths in files_of(store).items() if kind not in NOT_READ}
    for paths in kinds.values():
        flip(chance.choice(paths), chance)
    mended(store, expected)
    report(record_property, tried=len(kinds))


def mended(store: Path, expected: dict[str, Any]) -> None:
    """Run again until nothing is left to do: a run reads less than a reader may, who notes what is damaged."""
    for _ in range(3):
        execute._contexts.clear()
        run(store)
        for read in readings(store).values():
            with suppress(CorruptError):
                read()
    run(store, again := Said())
    assert again.missing == {}
    assert everything(store) == expected


def test_damage_that_a_reader_finds_in_published_results_is_mended_by_the_same_command(
    sound: Path, expected: dict[str, Any], tmp_path: Path
) -> None:
    """A run whose results are published reads no scores, samples or models; the reader's note says what is to be made again."""
    store, chance = tmp_path / "store", random.Random(5)
    shutil.copytree(sound, store)
    harmed = [*files_of(store)["manifest of kernel"], *store.glob("data/*/test.parquet"), *store.glob("artifacts/train/*/*/state_*/c/0/0")]
    assert len(harmed) >= 4
    for path in harmed:
        flip(path, chance)
    run(store, said := Said())
    assert said.missing == {}
    for name, read in readings(store).items():
        if name in ("ntk", "test", "state"):
            with pytest.raises(CorruptError):
                read()
    mended(store, expected)
    assert not list(store.glob("damaged/*"))


def without_date(content: bytes) -> bytes:
    return re.sub(rb"\d{4}-\d\d-\d\d \d\d:\d\d UTC", b"", content)


@pytest.mark.parametrize("name", ["deletion.parquet", "points.parquet", "table.md", "report.html", "config.yaml", "manifest.json"])
def test_a_flipped_bit_in_a_published_file_is_moved_away_and_published_again(sound: Path, tmp_path: Path, name: str) -> None:
    store = tmp_path / "store"
    shutil.copytree(sound, store)
    victim = store / "results/toy" / name
    before = flip(victim, random.Random(3))
    run(store, said := Said())
    assert set(said.missing.values()) == {0}, "it trained"
    assert any(f"refused/results/toy/{name}" in message for message in said.messages)
    if name != "manifest.json":
        # The report states when the results were published.
        assert without_date(victim.read_bytes()) == without_date(before)
    run(store, again := Said())
    assert again.missing == {}


def test_a_store_without_checksums_is_read_and_not_made_again(sound: Path, expected: dict[str, Any], tmp_path: Path) -> None:
    """As versions before the checksums have left it."""
    store = tmp_path / "store"
    shutil.copytree(sound, store)
    shutil.rmtree(store / "experiments/toy/publications")
    new = {"checksum", "metadata_sha256", "number", "staged", "files", "package", "lease", "beat"}
    for path in store.rglob("*.json"):
        if path.name != "zarr.json" and path.parent.name != "lease":
            value = {name: found for name, found in json.loads(path.read_text()).items() if name not in new}
            path.write_text(json.dumps(value, sort_keys=True, indent=1) + "\n")
    for path in [*store.glob("data/*/*.parquet"), *store.glob("experiments/toy/*.parquet")]:
        pq.write_table(pq.read_table(path), path, compression="zstd", write_page_checksum=True)
    assert everything(store) == expected
    run(store, said := Said())
    assert said.missing == {}
    assert everything(store) == expected
