"""Memory of the driver that publishes a data set and of workers that hold it, while it grows and while there are more of them. Linux only.

Each worker opens the data as a worker of a run does and reads all rows in batches. Shown are, beside a worker that reads two rows: its own
memory, which is in no file; and the memory of all workers together, in which a page that several of them map counts once (the sum of
their PSS). Both are in multiples of the bytes of the samples. "copied": with a copy in each worker, as for small data sets. The driver
gets rows that are mapped from a file, checks them, takes their digest and publishes them; its memory is beside that for two rows.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.benchmarks import measured_on, publish, table

WIDTH = 1024
DRIVER = """
import sys, threading, time
import numpy as np
import torch
from genrep_dist.problems.protocol import Dataset
from genrep_dist.problems.tables import data_digest, validate
from genrep_dist.store import Store
from genrep_dist.workflow import data
torch.set_num_threads(1)
store, digest, file, width = sys.argv[1:]
rows = torch.from_numpy(np.memmap(file, dtype="float32", mode="r+").reshape(-1, int(width)))
train = Dataset(rows, torch.zeros(len(rows)), torch.arange(len(rows)))
test = Dataset(*(part[:2] for part in train))
peak = 0
def watch():
    global peak
    while True:
        lines = open("/proc/self/smaps_rollup").read().splitlines()[1:]
        peak = max(peak, next(1024 * int(line.split()[1]) for line in lines if line.startswith("Anonymous")))
        time.sleep(0.01)
threading.Thread(target=watch, daemon=True).start()
validate(train, "train")
data_digest(train, test)
data.publish_data(Store(store), digest, train, test)
print(peak)
"""

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


def driver_bytes(folder: Path, megabytes: float) -> int:
    """Peak of the memory, which is in no file, of a process that checks and publishes so many random rows."""
    rows, file = max(2, int(megabytes * 2**20) // (4 * WIDTH)), folder / "rows.bin"
    with file.open("wb") as written:
        for start in range(0, rows, 4096):
            shape = (min(4096, rows - start), WIDTH)
            written.write(np.random.default_rng(start).standard_normal(shape, dtype="float32").tobytes())
    name = "nothing" if megabytes == 0 else str(megabytes)
    command = [sys.executable, "-c", DRIVER, str(folder / "store"), name, str(file), str(WIDTH)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    file.unlink()
    return int(found.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=32, help="of the smaller data set")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/shared_data.md")
    chosen = parser.parse_args()
    drivers, workers = [], []
    with tempfile.TemporaryDirectory() as place:
        folder, store = Path(place), Path(place) / "store"
        before = driver_bytes(folder, 0)
        for size in (chosen.megabytes, 10 * chosen.megabytes):
            own = driver_bytes(folder, size) - before
            drivers.append((f"{size} MB", f"{own / 2**20:.0f} MiB", f"{own / (size * 2**20):.2f}"))
            for count, copied in ((1, False), (chosen.workers, False), (1, True)):
                empty = measured(store, str(size), "test", count)
                found = measured(store, str(size), "train", count, copied=copied)
                each, together = ((new - old) / (size * 2**20) for new, old in zip(found, empty, strict=True))
                workers.append((f"{size} MB", str(count), "copied" if copied else "shared", f"{each:.2f}", f"{together:.2f}"))
    parts = [
        " ".join(str(__doc__).split()),
        measured_on("torch", "numpy", "pyarrow"),
        table(("samples", "own memory of the driver", "in sizes of the data"), drivers),
        table(("samples", "workers", "", "own memory of a worker", "all workers"), workers),
    ]
    publish("shared_data", "Memory of data that processes share", parts, write=chosen.write)


if __name__ == "__main__":
    main()
