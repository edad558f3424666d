"""The faults that are tried on a run, how often, how often the promise held, and what had to be done again.

Each fault is tried by the tests of docs/reliability.md, on a small experiment whose undisturbed results are known: 27 trained models in
some 130 units. "Tried" counts single faults: kills, flipped bits, damaged files, answers of a bucket. "Held" counts those after which the
results were those of the undisturbed run, byte for byte, or the fault was refused by name, as promised. "Trained again" and "repeated
attempts" count models and units of work that a fault cost, where trials count them: "-" means that the trial asserts none, or has no run.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from tests.benchmarks import measured_on, publish, table
from tests.experiments import ROOT

F, S = "tests/faults", "tests/store"
FAULTS: dict[str, tuple[str, ...]] = {
    "SIGKILL to drivers and workers, at random moments, serial and through Ray": ("tests/test_kill.py",),
    "SIGKILL to busy workers of a cluster of two nodes": (f"{F}/test_kills.py::test_workers_that_are_killed",),
    "a node is lost with all of its processes": (f"{F}/test_kills.py::test_a_node_that_is_lost",),
    "SIGKILL to a driver on a cluster": (f"{F}/test_kills.py::test_a_driver_that_is_killed",),
    "the head's GCS is killed, and restarted or not": (f"{F}/test_kills.py::test_a_head_that_is_killed",),
    "two drivers at once on one store, in a folder and in a bucket": (
        f"{F}/test_kills.py::test_two_drivers_on_one_cluster",
        f"{F}/test_two_drivers.py::test_in_a_bucket_one_works_and_the_other_finds_everything_done",
        f"{F}/test_two_drivers.py::test_without_a_lease_both_work_and_come_to_the_same",
    ),
    "SIGKILL to the working one of two drivers": (f"{F}/test_two_drivers.py::test_when_the_one_that_works_is_killed_the_other_goes_on",),
    "a driver is stopped (SIGSTOP) beyond its lease, another one works, the first wakes up": (
        f"{F}/test_two_drivers.py::test_a_driver_that_is_stopped_beyond_its_lease_changes_nothing",
        f"{F}/test_two_drivers.py::test_a_driver_that_lost_its_lease_stops_after_the_unit_in_hand",
        f"{S}/test_publications.py::test_who_falls_asleep_while_its_files_are_moved_is_never_mixed_with_another",
    ),
    "one bit flips, in a file of each kind that a run leaves": (f"{F}/test_flipped_bits.py",),
    "a file is truncated, changed or missing": (f"{F}/test_damage.py",),
    "a bucket answers 503, 500 or 429, or cuts an answer": (
        f"{S}/test_bucket_retries.py::test_an_operation_ends_well_when_the_bucket_does",
    ),
    "the disk is full, of bytes or of files": (f"{F}/test_full_disk.py",),
    "clocks jump by days at each look": (f"{F}/test_clocks.py::test_a_clock_that_jumps_by_days_changes_nothing",),
    "units raise MemoryError, or kill their process each time": (f"{F}/test_memory.py", f"{F}/test_poison.py"),
    "a node has another copy of the package": ("tests/executors/test_package_copies.py",),
}
"""What is tried, by which tests."""


@dataclass
class Count:
    tried: int = 0
    held: int = 0
    numbers: dict[str, int] = field(default_factory=dict)

    def number(self, name: str) -> str:
        return f"{self.numbers[name]:,}" if name in self.numbers else "-"


def run_tests(tests: Sequence[str]) -> Iterator[ElementTree.Element]:
    """The test cases of one run of pytest, as JUnit's XML describes them."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-o",
            "junit_family=xunit1",
            f"--junitxml={report}",
            *tests,
        ]
        subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False)
        yield from ElementTree.parse(report).iter("testcase")


def counted(cases: Iterator[ElementTree.Element], count: Count) -> None:
    for case in cases:
        values = {one.attrib["name"]: one.attrib["value"] for one in case.iter("property")}
        properties = {name: int(value) for name, value in values.items() if value.isdigit()}
        if case.find("skipped") is not None:
            continue
        tried = properties.pop("tried", 1)
        count.tried += tried
        count.held += 0 if case.find("failure") is not None or case.find("error") is not None else tried
        for name, value in properties.items():
            count.numbers[name] = count.numbers.get(name, 0) + value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1, help="how often all of it is tried")
    parser.add_argument("--only", default="", help="only faults whose name has this text")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/faults.md")
    asked = parser.parse_args()
    where, rows = measured_on("torch", "ray", "zarr", "obstore"), []
    for what, tests in FAULTS.items():
        if asked.only not in what:
            continue
        count = Count()
        for _ in range(asked.rounds):
            counted(run_tests(tests), count)
        rows.append((what, f"{count.tried:,}", f"{count.held:,}", count.number("trainings_repeated"), count.number("attempts_repeated")))
    columns = ("fault", "tried", "held", "trained again", "repeated attempts")
    publish("faults", "Faults that were tried", [" ".join(str(__doc__).split()), where, table(columns, rows)], write=asked.write)


if __name__ == "__main__":
    main()
