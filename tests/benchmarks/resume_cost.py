"""The time to run a finished experiment again, compared with its first run and with the start of the Python interpreter.

Each command is timed from the start of its process to the end. In addition, one process runs the command twice; the second run is the work
without interpreter and imports. Goal: no unit of work, under 5 seconds plus imports.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.benchmarks import measured_on, publish, spread, table

ROOT = Path(__file__).parents[2]
NOTHING_DONE = "everything is done already"
INSIDE = """
import sys, time
from genrep_dist.cli import app
for _ in range(2):
    began = time.perf_counter()
    app(sys.argv[1:], standalone_mode=False)
    took = time.perf_counter() - began
print(f"\\n{took}")
"""


def run(*command: str) -> str:
    """The output of a Python process; CalledProcessError if it fails."""
    done = subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def wait(*command: str) -> float:
    """Seconds that a process takes."""
    began = time.perf_counter()
    run(*command)
    return time.perf_counter() - began


def files(store: str) -> dict[str, int]:
    """Every file of a store, with the time of its last change in nanoseconds."""
    return {str(path): path.stat().st_mtime_ns for path in Path(store).rglob("*") if path.is_file()}


def changed(before: dict[str, int], after: dict[str, int], store: str) -> str:
    """Names of the files that are new or were written again."""
    names = sorted(os.path.relpath(name, store) for name, when in after.items() if before.get(name) != when)
    return ", ".join(f"`{name}`" for name in names) or "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="runs of each command")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/resume_cost.md")
    asked = parser.parse_args()
    where = measured_on("torch", "ray", "mlflow", "polars", "zarr")
    with tempfile.TemporaryDirectory(prefix="genrep-benchmark-") as folder:
        again = ["run", "smoke", "--store", f"{folder}/store"]
        firsts = [wait("-m", "genrep_dist", *again[:2], "--serial", "--store", f"{folder}/{name}") for name in ("store", "other", "third")]
        before = files(again[-1])
        assert NOTHING_DONE in run("-m", "genrep_dist", *again, "--serial")
        rewritten = changed(before, files(again[-1]), again[-1])
        commands: dict[str, Callable[[], float]] = {
            "the same again, `--serial`": lambda: wait("-m", "genrep_dist", *again, "--serial"),
            "the same again, through Ray": lambda: wait("-m", "genrep_dist", *again),
            "the same again, without interpreter and imports": lambda: float(run("-c", INSIDE, *again).splitlines()[-1]),
            "`genrep status smoke`": lambda: wait("-m", "genrep_dist", "status", "smoke", *again[2:]),
            "`genrep --help`": lambda: wait("-m", "genrep_dist", "--help"),
            "the interpreter alone": lambda: wait("-c", "pass"),
        }
        took: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(asked.rounds):
            for name, measure in commands.items():
                took[name].append(measure())
    rows = [row("`genrep run smoke --serial`, new store", firsts, firsts), *(row(name, times, firsts) for name, times in took.items())]
    sections = [
        " ".join(str(__doc__).split()),
        where,
        f"Seconds: medians of {asked.rounds} runs in turn, quartiles in parentheses. The first run: 3 times, smallest and largest.",
        table(("command", "seconds", "share of the first run"), rows),
        f"Files of the store that the second run wrote: {rewritten}.",
    ]
    publish("resume_cost", "The cost of running a finished experiment again", sections, write=asked.write)


def row(name: str, times: Sequence[float], firsts: Sequence[float]) -> tuple[str, ...]:
    first = sorted(firsts)[len(firsts) // 2]
    return name, spread(times, "{:.2f}"), spread([one / first for one in times])


if __name__ == "__main__":
    main()
