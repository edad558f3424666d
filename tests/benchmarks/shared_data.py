"""Memory of workers that hold one data set, while it grows and while there are more of them. Linux only.

Each worker opens the data as a worker of a run does and reads all rows in batches. Shown are, beside a worker that reads two rows: its own
memory, which is in no file; and the memory of all workers together, in which a page that several of them map counts once (the sum of
their PSS). Both are in multiples of the bytes of the samples. "copied": with a copy in each worker, as for small data sets.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from genrep_dist.problems.protocol import Dataset
from genrep_dist.store import Store
from genrep_dist.workflow import data

WORKER = """
import sys, torch
from genrep_dist.store import Store
from genrep_dist.workflow import data
torch.set_num_threads(1)
store, digest, which, copied = sys.argv[1:]
if copied == "True":
    data.SHARED_BYTES = 2**60
samples = data.read_data(Store(store), digest, which)
total = 0.0
for rows in torch.split(torch.randperm(len(samples.ids)), 64):
    total += float(samples.inputs[rows].sum())
print("ready", flush=True)
sys.stdin.readline()
"""


def memory(workers: list[subprocess.Popen[str]]) -> tuple[float, float]:
    """Bytes of the largest worker alone, and of all together."""
    own, together = [], 0
    for worker in workers:
        lines = (line.split() for line in Path(f"/proc/{worker.pid}/smaps_rollup").read_text().splitlines()[1:])
        sizes = {line[0].rstrip(":"): 1024 * int(line[1]) for line in lines}
        own.append(sizes["Anonymous"])
        together += sizes["Pss"]
    return max(own), together


def measured(store: Path, digest: str, which: str, count: int, *, copied: bool = False) -> tuple[float, float]:
    command = [sys.executable, "-c", WORKER, str(store), digest, which, str(copied)]
    workers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    try:
        for worker in workers:
            assert worker.stdout is not None
            if worker.stdout.readline() != "ready\n":
                raise RuntimeError(f"a worker ended with {worker.wait()}")
        return memory(workers)
    finally:
        for worker in workers:
            worker.communicate("\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=32, help="of the smaller data set")
    parser.add_argument("--workers", type=int, default=8)
    chosen = parser.parse_args()
    print(f"{'samples':>10} {'workers':>8} {'':>8} {'own memory of a worker':>24} {'all workers':>12}   (in sizes of the data)")
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        for size in (chosen.megabytes, 10 * chosen.megabytes):
            rows = size * 2**20 // 4096
            inputs = torch.randn(rows, 1024, generator=torch.Generator().manual_seed(0))
            samples = Dataset(inputs, torch.zeros(rows), torch.arange(rows))
            data.publish_data(Store(str(store)), str(size), samples, Dataset(*(part[:2] for part in samples)))
            del inputs, samples
            for count, copied in ((1, False), (chosen.workers, False), (1, True)):
                empty, found = measured(store, str(size), "test", count), measured(store, str(size), "train", count, copied=copied)
                own, together = ((new - old) / (size * 2**20) for new, old in zip(found, empty, strict=True))
                print(f"{size:>7} MB {count:>8} {'copied' if copied else 'shared':>8} {own:>24.2f} {together:>12.2f}", flush=True)
            data.forget_data(str(size))


if __name__ == "__main__":
    main()
