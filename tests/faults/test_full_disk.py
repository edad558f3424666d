"""The store's disk fills up while the experiment runs. With room again the same command goes on."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genrep_dist.errors import StoreError
from genrep_dist.runner.progress import NoProgress
from genrep_dist.store import Store
from tests.faults.conftest import Undisturbed
from tests.faults.trial import RETRIES, Trial, assert_equal, report

DISK = "32m"


@pytest.fixture
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    options = getattr(request, "param", f"size={DISK}")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip() or 'mount failed'}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


class Filler(NoProgress):
    """Fills ``disk`` to the last byte when the first unit of a stage is done."""

    def __init__(self, disk: Path, stage: str) -> None:
        self.ballast, self._wanted, self._stage = disk / "ballast", stage, ""

    def stage(self, name: str, total: int, done: int) -> None:
        self._stage = name

    def advance(self, units: int, statistics: Mapping[str, float]) -> None:
        if self._stage == self._wanted:
            with self.ballast.open("ab", buffering=0) as file, suppress(OSError):
                while True:
                    file.write(bytes(4096))


def test_a_full_disk_is_told_and_costs_what_was_in_hand(tmp_path: Path, disk: Path, undisturbed: Undisturbed, record_property: Any) -> None:
    """Where arrays are written by Zarr, where the ledger is; the message names the place and the bytes that are free."""
    trial = Trial.make(tmp_path / "trial", store=str(disk / "store"))
    for stage in ("train", "gradients", "attributions", "retrain"):
        filler = Filler(disk, stage)
        with pytest.raises(StoreError) as refused:
            trial.run_here(filler)
        text = str(refused.value)
        assert str(disk) in text
        assert "0 bytes are free" in text
        assert "free space" in text
        assert "same command again" in text
        filler.ballast.unlink()
    trial.run_here()
    assert_equal(trial.published(), undisturbed.published)
    repeated = trial.trainings() - undisturbed.trainings
    report(record_property, tried=4, trainings_repeated=repeated)
    # One unit is tried as often as it may, in case the disk was full for a moment; nothing else is begun.
    assert repeated <= 2 * (1 + RETRIES)


@pytest.mark.parametrize("disk", [f"size={DISK},nr_inodes=12"], indirect=True)
def test_a_full_table_of_inodes_is_named(disk: Path) -> None:
    """Bytes are free, but no file can be created: by our own writes, by Zarr's, for a lease."""
    store = Store(str(disk))
    with suppress(OSError):
        for number in range(12):
            (disk / f"ballast-{number}").touch()
    writes = (
        lambda: store.objects.put("a", b"1"),
        lambda: store.objects.create("b", b"1"),
        lambda: store.artifact("train", "ab" * 32).write("values", np.ones(3), ("a",)),
    )
    for write in writes:
        with pytest.raises(StoreError, match=r"inode table is full: it holds 12 files[\s\S]*bytes are free"):
            write()
    (disk / "ballast-0").unlink()
    store.objects.put("a", b"1")
