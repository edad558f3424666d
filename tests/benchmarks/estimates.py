"""The time that `genrep plan` predicts for a run, and the time that the run takes. Both run in new processes with an empty store.

`genrep plan` measures this machine for a few seconds. It predicts the seconds of each stage and of the work outside the stages: start of
Ray and its workers, evaluation, tables, report, MLflow. The experiment then runs through Ray with two workers. The three experiments are
included ones, reduced so that a run takes a minute or less. Goal: the predicted seconds of the whole run are within 30% of the measured
seconds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks import measured_on, publish, table

ROOT = Path(__file__).parents[2]
EXPERIMENTS: dict[str, tuple[str, ...]] = {
    "demo": ("seeds=6",),
    "grid": ("seeds=3",),
    "mnist-small": ("seeds=2", "problem.options.train_size=400", "recipe.epochs=5", "test_points=1"),
}
COMMON = ("resources.workers=2",)


class Clock:
    """A progress display that records when each stage begins and how many units it has."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, float, int]] = [("before", time.time(), 0)]

    def stage(self, name: str, total: int, done: int) -> None:
        self.begun.append((name, time.time(), total))

    def advance(self, units: int, statistics: Mapping[str, float]) -> None:
        pass

    def message(self, text: str) -> None:
        pass

    def close(self) -> None:
        """No more stages."""


def drive(name: str, store: str, overrides: list[str]) -> dict[str, Any]:
    import genrep_dist as gr

    clock = Clock()
    finished = gr.run(gr.load_experiment(name, overrides=overrides), store=store, progress=clock)
    ledger = finished.store.ledger(finished.plan.keys.training).scan().collect()
    return {"begun": clock.begun, "ended": time.time(), "models": int((ledger["num_removed"] > 0).sum())}


def overrides_of(name: str) -> list[str]:
    return [argument for override in (*EXPERIMENTS[name], *COMMON) for argument in ("--set", override)]


def command(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def measure(name: str, folder: str | None) -> tuple[dict[str, Any], dict[str, float], int, float]:
    """The plan's JSON, seconds of each part of the run, number of retrained models, and seconds of the whole process."""
    with tempfile.TemporaryDirectory(prefix="genrep-benchmark-", dir=folder) as store:
        plan: dict[str, Any] = json.loads(command("genrep_dist", "plan", name, "--store", store, "--json", *overrides_of(name)))
        began = time.time()
        run = json.loads(command("tests.benchmarks.estimates", "--drive", name, "--folder", store).splitlines()[-1])
        took = time.time() - began
    times = [(stage, when) for stage, when, _ in run["begun"]] + [("end", run["ended"])]
    seconds = {stage: following - when for (stage, when), (_, following) in itertools.pairwise(times)}
    return plan, seconds, run["models"], took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=list(EXPERIMENTS), help="run only this experiment")
    parser.add_argument("--folder", help="folder of the temporary stores; default: the system's temporary folder")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/estimates.md")
    parser.add_argument("--drive", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.drive:
        found = drive(asked.drive, asked.folder, [*EXPERIMENTS[asked.drive], *COMMON])
        sys.stdout.write(f"\n{json.dumps(found)}\n")
        return
    where = measured_on("torch", "ray", "mlflow")
    totals, sections = [], []
    for name in [asked.only] if asked.only else list(EXPERIMENTS):
        plan, seconds, models, took = measure(name, asked.folder)
        predicted = {stage["stage"]: float(stage["seconds"]) for stage in plan["stages"]}
        rows = [(stage, f"{predicted[stage]:.1f}", f"{seconds.get(stage, 0.0):.1f}") for stage in predicted]
        outside = float(plan["seconds"]) - sum(predicted.values())
        rows.append(("outside the stages", f"{outside:.1f}", f"{took - sum(seconds.get(stage, 0.0) for stage in predicted):.1f}"))
        ratio = float(plan["seconds"]) / took
        totals.append(
            (
                f"{name}, {', '.join(EXPERIMENTS[name])}",
                f"{plan['seconds']:.0f}",
                f"{took:.0f}",
                f"{ratio:.2f}",
                f"{plan['retrainings']['unique']:,}",
                f"{models:,}",
            )
        )
        sections += [f"{name}, stage by stage:", table(("stage", "predicted, s", "measured, s"), rows)]
        sys.stderr.write(f"{name}: predicted {plan['seconds']:.0f} s, took {took:.0f} s\n")
    columns = ("experiment", "predicted, s", "measured, s", "predicted / measured", "models, at most", "models trained")
    sections = [
        " ".join(str(__doc__).split()),
        where,
        table(columns, totals),
        "In a run, the first stage includes the start of Ray and the imports of the workers; the last includes evaluation, report and "
        "publication. The plan counts both under 'outside the stages'.",
        *sections,
    ]
    publish("estimates", "Predicted and measured time of runs", sections, write=asked.write)


if __name__ == "__main__":
    main()
