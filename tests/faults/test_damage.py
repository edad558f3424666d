"""Files of the store are damaged: refused by name, never read as numbers, put aside and made again by the same command."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genrep_dist.errors import CorruptError, DamagedArtifact, FailureKind
from genrep_dist.runner.progress import NoProgress
from genrep_dist.store import Store
from genrep_dist.store.artifacts import Artifact
from genrep_dist.store.damaged import move_damaged
from tests.faults.conftest import Undisturbed
from tests.faults.trial import Trial, assert_equal, report

KEY = "ab" * 32
Damage = Callable[[Path], object]


class Said(NoProgress):
    """What a run says, and how many units of each stage it had to do."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.missing: dict[str, int] = {}

    def stage(self, name: str, total: int, done: int) -> None:
        self.missing[name] = max(self.missing.get(name, 0), total - done)

    def message(self, text: str) -> None:
        self.messages.append(text)


@pytest.fixture
def finished(tmp_path: Path, undisturbed: Undisturbed) -> Trial:
    """A copy of the undisturbed run, whose results are still to be published."""
    trial = Trial.make(tmp_path)
    shutil.copytree(undisturbed.trial.store, trial.store)
    shutil.copy(undisturbed.trial.folder / "trainings", trial.folder)
    (Path(trial.store) / "results/toy/manifest.json").unlink()
    return trial


def forget(trial: Trial, *kinds: str) -> None:
    """As if what is made of these kinds had not been made: it has to read what it is made from again."""
    for kind in kinds:
        shutil.rmtree(Path(trial.store) / "artifacts" / kind)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def first(trial: Trial, pattern: str) -> Path:
    return trial.recorded(pattern)[0]


CASES: dict[str, tuple[str, tuple[str, ...], dict[str, int]]] = {
    # What is damaged; what is made from it and has gone, too; how many units of each stage both take at most.
    "a block of features": ("artifacts/features/*/*/blocks/c/0/0", ("gram",), {"gradients": 1, "kernels": 12}),
    "the numbers of a block": ("artifacts/features/*/*/*-values-*/c/0", ("gram",), {"gradients": 1, "kernels": 12}),
    "a tile of a gram": ("artifacts/gram/*/*/gram/c/0/1", ("surrogate",), {"kernels": 1, "importances": 2}),
    "a block of a kernel": ("artifacts/kernel/*/*/kernel/c/1/0/0", ("attribution",), {"kernels": 1, "attributions": 8}),
    "the description of a gram": ("artifacts/gram/*/*/gram/zarr.json", ("surrogate",), {"kernels": 6, "importances": 2}),
    "outputs of an original model": ("artifacts/train/*/*/outputs_test/c/0/0", (), {"train": 1}),
    "a manifest": ("artifacts/train/*/*/manifest.json", (), {"train": 1}),
    "a manifest of many parts": ("artifacts/gram/*/*/manifest.json", (), {"kernels": 0}),
    "a record of a part": ("artifacts/gram/*/*/parts/*-000001.json", (), {}),
    "a part of the ledger": ("ledger/*/part-*.parquet", (), {"retrain": 1}),
    "the training samples": ("data/*/train.parquet", ("attribution",), {"attributions": 8}),
    "a removal order": ("artifacts/attribution/*/*/order_negative/c/0/0", (), {"attributions": 1}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_command_mends_it(finished: Trial, undisturbed: Undisturbed, record_property: Any, case: str) -> None:
    pattern, readers, bounds = CASES[case]
    forget(finished, *readers)
    victim = first(finished, pattern)
    (flip if victim.suffix != ".json" else truncate)(victim)
    said = Said()
    finished.run_here(said)
    assert_equal(finished.published(), undisturbed.published)
    place = victim.relative_to(finished.store).parts
    name = place[3] if place[0] == "artifacts" else place[-1]
    assert any(name in message and "refused/" in message for message in said.messages), said.messages
    assert finished.recorded("**/refused/**/*"), "nothing is thrown away"
    needed = {name: units for name, units in said.missing.items() if units}
    report(record_property, **{f"{name}_repeated": units for name, units in needed.items()})
    assert {name: units for name, units in needed.items() if units > bounds.get(name, 0)} == {}


def test_what_is_found_damaged_while_publishing_is_mended_too(finished: Trial, undisturbed: Undisturbed) -> None:
    """Scores themselves are read by the report alone, and only those that it shows."""
    for victim in finished.recorded("artifacts/attribution/*/*/phi/c/0/0"):
        flip(victim)
    said = Said()
    finished.run_here(said)
    assert any("artifacts/attribution" in message and "refused/" in message for message in said.messages), said.messages
    found, expected = finished.published(), undisturbed.published
    assert [name for name in expected if name.startswith("results/") and found[name] != expected[name]] == []
    assert said.missing["attributions"] == 1


@pytest.mark.parametrize(("name", "harm"), [("deletion.parquet", truncate), ("metrics.parquet", Path.unlink), ("manifest.json", truncate)])
def test_published_results_that_are_damaged_are_published_again(finished: Trial, undisturbed: Undisturbed, name: str, harm: Damage) -> None:
    shutil.copy(Path(undisturbed.trial.store) / "results/toy/manifest.json", Path(finished.store) / "results/toy")
    harm(Path(finished.store) / "results/toy" / name)
    said = Said()
    finished.run_here(said)
    assert said.missing != {}, "it was not taken for finished"
    assert set(said.missing.values()) == {0}
    assert_equal(finished.published(), undisturbed.published)
    finished.run_here(said := Said())
    assert said.missing == {}


# -- one artifact -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    """Three tiles of a gram, recorded and committed."""
    made = Store(str(tmp_path)).artifact("gram", KEY)
    made.create("gram", (20, 20), (10, 10), "float32", ("row", "column"))
    for row, column in ((0, 0), (0, 1), (1, 1)):
        made.write_part(f"tile-{row}-{column}", "gram", (row * 10, column * 10), np.full((10, 10), row + column + 1.0, dtype=np.float32))
    made.commit({}, ["tile-0-0", "tile-0-1", "tile-1-1"])
    return Store(str(tmp_path)).artifact("gram", KEY)


def read_all(artifact: Artifact) -> list[float]:
    assert artifact.is_intact()
    reader = artifact.reader("gram")
    return [float(reader.read(slice(r, r + 10), slice(c, c + 10))[0, 0]) for r, c in ((0, 0), (0, 10), (10, 10))]


@pytest.mark.parametrize(
    "harm", [flip, truncate, Path.unlink, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(bytes(404))]
)
@pytest.mark.parametrize("file", ["gram/c/0/1", "gram/zarr.json", "manifest.json"])
def test_no_damage_is_read_as_a_number(artifact: Artifact, tmp_path: Path, file: str, harm: Damage) -> None:
    """Every kind of it is refused, or changes nothing; once it is put aside the artifact is not finished, and the rest is kept."""
    before = read_all(artifact)
    victim = tmp_path / artifact.path / file
    harm(victim)
    fresh = Store(str(tmp_path)).artifact("gram", KEY)
    if file == "manifest.json" and not victim.exists():
        assert not fresh.is_intact()
        return
    try:
        assert read_all(fresh) == before
        assert file.endswith(".json"), "a flipped bit of a description may be one of a name that nobody reads"
        return
    except CorruptError as error:
        refused = error
    assert refused.damaged
    assert artifact.path in str(refused)
    said = move_damaged(Store(str(tmp_path)).objects, refused.damaged)
    assert "refused/" in said
    assert not fresh.is_intact()
    assert fresh.parts_done() == {"gram/c/0/1": {"tile-0-0", "tile-1-1"}, "manifest.json": {"tile-0-0", "tile-0-1", "tile-1-1"}}.get(
        file, set()
    )


def test_a_missing_block_of_numbers_without_a_nan_is_refused_too(tmp_path: Path) -> None:
    """The fill value of integers is a number like any other."""
    artifact = Store(str(tmp_path)).artifact("attribution", KEY)
    artifact.write("order", np.arange(12).reshape(3, 4), ("test", "rank"))
    artifact.commit({})
    (tmp_path / artifact.path / "order/c/0/0").unlink()
    with pytest.raises(CorruptError, match="does not exist"):
        artifact.read("order")
    with pytest.raises(CorruptError, match="does not exist"):
        artifact.reader("order").read(slice(0, 1))


def test_a_manifest_of_another_artifact_is_refused(artifact: Artifact, tmp_path: Path) -> None:
    other = Store(str(tmp_path)).artifact("gram", "cd" * 32)
    (tmp_path / other.path).mkdir(parents=True)
    shutil.copy(tmp_path / artifact.path / "manifest.json", tmp_path / other.path)
    with pytest.raises(CorruptError, match="belongs to another artifact"):
        other.is_intact()


def test_the_error_keeps_what_is_damaged_across_processes() -> None:
    import pickle

    raised = CorruptError("what", damaged=DamagedArtifact("gram", KEY), where="here", remedy="do")
    error = pickle.loads(pickle.dumps(raised))
    assert isinstance(error, CorruptError)
    assert (error.damaged, str(error), error.failure_kind) == (raised.damaged, str(raised), FailureKind.CORRUPT)
    assert (error.what, error.where, error.remedy) == ("what", "here", "do")
