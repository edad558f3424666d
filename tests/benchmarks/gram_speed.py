"""The speed of computing gram tiles from stored features, compared with one matrix product in memory.

The features are random and as wide as the gradient of the vision network (93,825 parameters); a block is 103 MiB. In core: all features are
in memory, and the whole gram is one matrix product with one thread, as in a worker. Out of core: the upper half of the gram is computed
tile by tile from the store, as in the stage. One thread computes and one reads ahead; every read is verified, every tile is written and
synced. The same is measured without reading ahead. Rates count the multiply-adds of the computed entries: all in core, the upper half out
of core. So computing only half of the gram is no advantage. The grams must agree. Each method runs in its own process; its memory is the
peak minus the peak before.
Goal: at least 70% of the in-core rate at a quarter of its memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genrep_dist.store import Store
from genrep_dist.store.artifacts import Artifact
from genrep_dist.workflow.context import to_numpy
from genrep_dist.workflow.gram_tiles import feature_products, gram_tile, reads
from genrep_dist.workflow.prefetch import Prefetcher
from tests.benchmarks import measured_on, publish, spread, table
from tests.benchmarks.gram_memory import high_water_bytes

ROOT = Path(__file__).parents[2]
WIDTH, BLOCK = 93_825, 288
KEY = "ab" * 32
AGREE = 1e-3
"""Largest allowed difference of two grams in float32, relative to the diagonal."""


def rows(start: int, stop: int) -> Tensor:
    """Features of rows; each row depends only on its number."""
    return torch.cat([torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(row)) for row in range(start, stop)])


def spans(n: int, edge: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + edge, n)) for start in range(0, n, edge))


def fill(store: Store, n: int) -> None:
    artifact = store.artifact("features", KEY)
    artifact.create("features", (n, WIDTH), (BLOCK, WIDTH), "float32", ("train", "parameter"))
    for start, stop in spans(n, BLOCK):
        artifact.write_part(f"rows-{start}", "features", (start, 0), to_numpy(rows(start, stop)))
    artifact.commit({})


def in_core(n: int) -> dict[str, Any]:
    before = high_water_bytes(os.getpid())
    features = torch.empty(n, WIDTH)
    for start, stop in spans(n, BLOCK):
        features[start:stop] = rows(start, stop)
    features[:64] @ features[:64].T
    began = time.perf_counter()
    gram = features @ features.T
    seconds = time.perf_counter() - began
    corner = gram[: 2 * BLOCK, -BLOCK:].tolist()
    return {"seconds": seconds, "rate": n * n * WIDTH / seconds, "bytes": high_water_bytes(os.getpid()) - before, "corner": corner}


def out_of_core(n: int, folder: str, tile: int, *, ahead: bool) -> dict[str, Any]:
    store = Store(folder)
    before = high_water_bytes(os.getpid())
    reader = store.artifact("features", KEY).reader("features")
    gram = store.artifact("gram", ("ac" if ahead else "ad") * 32)
    gram.create("gram", (n, n), (tile, tile), "float32", ("row", "column"))
    torch.ones(64, WIDTH) @ torch.ones(64, WIDTH).T
    done = 0
    began = time.perf_counter()
    for row, across in ((row, across) for row in spans(n, tile) for across in spans(n, tile) if across[0] >= row[0]):
        expected = reads(row, across, BLOCK) if ahead else ()
        with Prefetcher(lambda start, stop: torch.from_numpy(reader.read(slice(start, stop))), expected) as read:
            values = gram_tile(feature_products(read, BLOCK), row, across, BLOCK)
        gram.write_part(f"{row[0]}-{across[0]}", "gram", (row[0], across[0]), values)
        edges = (row[1] - row[0], across[1] - across[0])
        done += edges[0] * (edges[0] + 1) // 2 if row == across else edges[0] * edges[1]
    seconds = time.perf_counter() - began
    peak = high_water_bytes(os.getpid()) - before
    gram.commit({})
    return {"seconds": seconds, "rate": done * WIDTH / seconds, "bytes": peak, "corner": corner(gram, n)}


def corner(gram: Artifact, n: int) -> Any:
    return gram.read("gram", (slice(0, 2 * BLOCK), slice(n - BLOCK, n))).tolist()


def in_a_fresh_process(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.gram_speed", *arguments]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=18 * BLOCK)
    parser.add_argument("--tile", type=int, default=9 * BLOCK, help="rows of a square tile")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--folder", help="folder of the temporary store; default: the system's temporary folder")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/gram_speed.md")
    parser.add_argument("--side", choices=["fill", "core", "ahead", "plain"], help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    n = asked.rows
    if asked.side == "fill":
        fill(Store(asked.folder), n)
        sys.stdout.write("\n{}\n")
        return
    if asked.side:
        found = in_core(n) if asked.side == "core" else out_of_core(n, asked.folder, asked.tile, ahead=asked.side == "ahead")
        sys.stdout.write(f"\n{json.dumps(found)}\n")
        return
    where = measured_on("torch", "numpy", "zarr")
    runs: dict[str, list[dict[str, Any]]] = {"core": [], "ahead": [], "plain": []}
    for _ in range(asked.rounds):
        with tempfile.TemporaryDirectory(prefix="genrep-benchmark-", dir=asked.folder) as folder:
            common = ("--rows", str(n), "--tile", str(asked.tile), "--folder", folder)
            in_a_fresh_process("--side", "fill", *common)
            for side, all_found in runs.items():
                all_found.append(in_a_fresh_process("--side", side, *common))
    truth = torch.tensor(runs["core"][0]["corner"])
    for side in ("ahead", "plain"):
        for found in runs[side]:
            difference = float((torch.tensor(found["corner"]) - truth).abs().max()) / WIDTH
            if not difference < AGREE:
                raise SystemExit(f"{side}: the grams differ by {difference:.2g} of the diagonal")
    names = {"core": "in core", "ahead": "out of core, reading ahead", "plain": "out of core, not reading ahead"}
    lines = [
        (
            names[side],
            spread([2 * found["rate"] / 1e9 for found in all_found], "{:.0f}"),
            spread([found["rate"] / core["rate"] for found, core in zip(all_found, runs["core"], strict=True)], "{:.2f}"),
            spread([found["seconds"] for found in all_found], "{:.1f}"),
            spread([found["bytes"] / 2**20 for found in all_found], "{:,.0f}"),
            spread([found["bytes"] / core["bytes"] for found, core in zip(all_found, runs["core"], strict=True)], "{:.2f}"),
        )
        for side, all_found in runs.items()
    ]
    columns = ("method", "GFLOP/s", "rate / in core", "s", "MiB", "memory / in core")
    sections = [
        " ".join(str(__doc__).split()),
        where,
        f"{n:,} rows, tiles of {asked.tile:,} rows. Medians of {asked.rounds} rounds, smallest and largest in parentheses.",
        table(columns, lines),
    ]
    publish("gram_speed", "Gram tiles compared with one product in memory", sections, write=asked.write)


if __name__ == "__main__":
    main()
