"""The speed of writing and reading blocks of gradients in the store, compared with numpy's own files.

A block is 64 MiB of float32, the largest that the store makes. All methods take turns on the same values and the same disk. Writing to the
store is as in a unit of work: refuse values that are not finite, compute a checksum, write a temporary file, read it back and compare,
sync, rename, sync the folder, record. The other writers are a numpy memmap that is flushed to the disk, which guarantees less; numpy.save
with fsync, which guarantees still less; a memmap that is not flushed, which guarantees nothing about the disk; and zarr with obstore, which
a store without its own file path would use. Reading is warm, or cold after the system was told to drop the file from its cache. Every read
of the store verifies the checksum, and maps the file instead of copying it; numpy.load verifies nothing. All methods must return equal
values. Goals: writing at least as fast as the flushed memmap, cold reading at least at 90% of numpy.load.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import Crc32cCodec
from zarr.storage import ObjectStore

from genrep_dist.store import Store
from genrep_dist.store.disk import sync_files
from tests.benchmarks import measured_on, publish, spread, table

ROWS, WIDTH = 128, 131_072
Block = npt.NDArray[np.float32]


def sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def drop(path: Path) -> None:
    """Drop the pages of a synced file from the system's cache."""
    handle = os.open(path, os.O_RDONLY)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


class Sides:
    """Writers and readers of block ``number`` in one folder; each writer makes a new file."""

    def __init__(self, folder: Path, rounds: int) -> None:
        self.folder, self.store = folder, Store(str(folder / "store"))
        self.artifact = self.store.artifact("features", "ab" * 32)
        self.artifact.create("features", (ROWS * rounds, WIDTH), (ROWS, WIDTH), "float32", ("train", "parameter"))
        # Zarr on obstore's local files, as the store uses zarr for buckets.
        self.other = zarr.create_array(
            ObjectStore(self.store.objects.subfolder("through-zarr")),
            shape=(ROWS * rounds, WIDTH),
            chunks=(ROWS, WIDTH),
            dtype="float32",
            fill_value=float("nan"),
            compressors=[Crc32cCodec()],
            config={"write_empty_chunks": True},
        )

    def path(self, side: str, number: int) -> Path:
        root = self.folder / "store"
        chunk = f"c/{number}/0"
        folders = {"store": root / self.artifact.path / "features" / chunk, "zarr": root / "through-zarr" / chunk}
        return folders.get(side, self.folder / f"{side}-{number}.npy")

    def write_store(self, number: int, values: Block) -> None:
        self.artifact.write_part(f"rows-{number}", "features", (number * ROWS, 0), values)

    def write_zarr(self, number: int, values: Block) -> None:
        window = slice(number * ROWS, (number + 1) * ROWS)
        assert np.isfinite(values).all()
        self.other[window] = values
        assert np.array_equal(np.asarray(self.other[window]), values)
        sync_files([self.path("zarr", number)], self.folder)
        self.store.objects.put_json(f"through-zarr/parts/{number}.json", {"number": number})

    def write_memmap_flushed(self, number: int, values: Block) -> None:
        mapped = np.lib.format.open_memmap(self.path("flushed", number), "w+", values.dtype, values.shape)
        mapped[...] = values
        mapped.flush()

    def write_memmap(self, number: int, values: Block) -> None:
        mapped = np.lib.format.open_memmap(self.path("mapped", number), "w+", values.dtype, values.shape)
        mapped[...] = values

    def write_numpy(self, number: int, values: Block) -> None:
        with self.path("numpy", number).open("wb") as file:
            np.save(file, values)
            file.flush()
            os.fsync(file.fileno())

    def read_store(self, number: int) -> Any:
        return self.reader.read(slice(number * ROWS, (number + 1) * ROWS))

    def read_zarr(self, number: int) -> Any:
        return np.asarray(self.other[number * ROWS : (number + 1) * ROWS])

    def read_numpy(self, number: int) -> Any:
        return np.load(self.path("numpy", number))

    def commit(self) -> None:
        self.artifact.commit({})
        self.reader = self.artifact.reader("features")


def timed(work: Callable[..., Any], *arguments: Any) -> float:
    began = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - began


def measure(folder: Path, rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of every round of writing, warm reading and cold reading, by method."""
    sides = Sides(folder, rounds)
    blocks = np.random.default_rng(0).normal(size=(2, ROWS, WIDTH)).astype(np.float32)
    writers: dict[str, Callable[[int, Block], None]] = {
        "store": sides.write_store,
        "flushed": sides.write_memmap_flushed,
        "numpy": sides.write_numpy,
        "mapped": sides.write_memmap,
        "zarr": sides.write_zarr,
    }
    written: dict[str, list[float]] = {name: [] for name in writers}
    for number in range(rounds):
        # The order rotates: unfinished disk writes of one method must not always delay the same other method.
        names = list(writers)[number % len(writers) :] + list(writers)[: number % len(writers)]
        for name in names:
            written[name].append(timed(writers[name], number, blocks[number % 2]))
            sync(sides.path(name, number))
        for name in ("flushed", "mapped"):
            sides.path(name, number).unlink()
    sides.commit()
    readers: dict[str, Callable[[int], Any]] = {"store": sides.read_store, "numpy": sides.read_numpy, "zarr": sides.read_zarr}
    for name, read in readers.items():
        assert np.array_equal(read(0), blocks[0]), name
    warm: dict[str, list[float]] = {name: [] for name in readers}
    cold: dict[str, list[float]] = {name: [] for name in readers}
    for number in range(rounds):
        names = list(readers)[number % 3 :] + list(readers)[: number % 3]
        for name in names:
            drop(sides.path(name, number))
            cold[name].append(timed(readers[name], number))
            warm[name].append(timed(readers[name], number))
    return written, warm, cold


def rows(found: Mapping[str, list[float]], names: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Rates in GB/s, and the store's rate relative to each method's in the same round."""
    size = 4 * ROWS * WIDTH / 1e9
    return [
        (
            names[side],
            spread([size / one for one in seconds], "{:.2f}"),
            spread([other / ours for other, ours in zip(seconds, found["store"], strict=True)], "{:.2f}"),
        )
        for side, seconds in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--folder", help="folder of the temporary files; default: the system's temporary folder")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/store_speed.md")
    asked = parser.parse_args()
    where = measured_on("numpy", "zarr", "obstore", "google-crc32c")
    folder = Path(tempfile.mkdtemp(prefix="genrep-benchmark-", dir=asked.folder))
    try:
        written, warm, cold = measure(folder, asked.rounds)
    finally:
        shutil.rmtree(folder)
    names = {
        "store": "the store",
        "flushed": "numpy memmap, flushed",
        "numpy": "numpy.save, fsync",
        "mapped": "numpy memmap, not flushed",
        "zarr": "zarr with obstore",
    }
    reads = {**names, "numpy": "numpy.load"}
    ratio = statistics.median(other / ours for other, ours in zip(written["flushed"], written["store"], strict=True))
    share = statistics.median(other / ours for other, ours in zip(cold["numpy"], cold["store"], strict=True))
    columns = ("method", "GB/s", "store's rate / this rate")
    sections = [
        " ".join(str(__doc__).split()),
        where,
        f"The store writes at {ratio:.2f} of the flushed memmap's rate (goal: 1) and reads cold at {share:.2f} of numpy.load's (goal: "
        f"0.9). Medians of {asked.rounds} rounds, quartiles in parentheses.",
        "Writing:",
        table(columns, rows(written, names)),
        "Cold reading:",
        table(columns, rows(cold, reads)),
        "Warm reading:",
        table(columns, rows(warm, reads)),
    ]
    publish("store_speed", "The store compared with numpy's files", sections, write=asked.write)


if __name__ == "__main__":
    main()
