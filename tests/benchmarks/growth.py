"""How costs grow with size: exponents fitted to measured times, compared with those expected from the number of operations.

Each part is timed at several sizes of one variable, with all else fixed. The time is the shortest of three runs, in CPU seconds, which
depend least on other work on the machine. The exponent is the slope of log seconds against log size by least squares. A fixed cost lowers
it. An exponent more than 0.25 above the expected one is marked. The driver's parts (plan, request table, keys of the ledger, evaluation)
use a store made for this benchmark. It has trained originals of a toy problem, random scores, and a ledger with made-up outputs of every
requested model. "workers" is the time of the same retrainings through Ray with one worker and with two, in elapsed seconds.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import genrep_dist as gr
from genrep_dist.core.attribution import ranking
from genrep_dist.core.gradients.per_sample import per_sample_gradients
from genrep_dist.core.kernels.blocks import ntk_block
from genrep_dist.core.losses import get_loss
from genrep_dist.core.solvers.gauss_newton import influence_kernel
from genrep_dist.core.solvers.surrogate import solve_surrogate
from genrep_dist.problems.datasets.image_models import VisionCNN
from genrep_dist.store import Store
from genrep_dist.store.ledger import LedgerRow
from genrep_dist.workflow.evaluate import evaluate
from genrep_dist.workflow.execute import execute, worker_context
from genrep_dist.workflow.gram_tiles import feature_products, gram_tile
from genrep_dist.workflow.prepare import prepare, publish_inputs
from genrep_dist.workflow.record import write_record
from genrep_dist.workflow.requests import retrain_requests
from genrep_dist.workflow.retrain import original_row
from genrep_dist.workflow.stages import artifacts_of
from genrep_dist.workflow.status import stage_status
from tests.benchmarks import measured_on, publish, table
from tests.experiments import ROOT, experiment

RUNS = 3
TOLERANCE = 0.25
Work = Callable[[], object]


@dataclass(frozen=True)
class Growth:
    """``make(size)`` prepares one size and returns the function to time."""

    what: str
    variable: str
    expected: float
    sizes: tuple[int, ...]
    make: Callable[[int], Work]


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def cnn_gradients(rows: int, width: int = 1) -> Work:
    """Per-sample gradients of a stack of convolutions; ``width`` scales its channels, so parameters grow with its square."""
    channels = (8 * width, 16 * width)
    layers = [
        torch.nn.Conv2d(1, channels[0], 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(*channels, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(channels[1] * 49, 1),
    ]
    model = torch.nn.Sequential(*layers).eval()
    inputs = normal(rows, 1, 14, 14)
    return lambda: [per_sample_gradients(model, inputs[start : start + 64]) for start in range(0, rows, 64)]


def kernel(rows: int, points: int, parameters: int) -> Work:
    train, test = normal(rows, 1, parameters), normal(points, parameters)
    return lambda: ntk_block(train, test)


def tile(rows: int) -> Work:
    features = normal(rows, 512)
    return lambda: gram_tile(feature_products(lambda start, stop: features[start:stop], 256), (0, rows), (0, rows), 256)


def psd(rows: int) -> torch.Tensor:
    features = normal(rows, 200).double() * torch.arange(1, 201) ** -0.7
    return features @ features.T


def surrogate(rows: int) -> Work:
    gram, outputs = psd(rows), 3 * normal(rows, 1)
    return lambda: solve_surrogate(
        lambda vector: gram @ vector, get_loss("logistic"), outputs, lam=1e-3, columns=lambda chosen: gram[chosen].T.contiguous()
    )


def influence(rows: int) -> Work:
    gram, cross = psd(rows), normal(rows, 1, 8)
    curvature = torch.full((rows, 1, 1), 0.2)
    return lambda: influence_kernel(gram, cross, curvature, damping=0.1, relative=False, num_parameters=200)


def ranked(rows: int) -> Work:
    phi = normal(rows, 16).double()
    return lambda: [ranking(phi, torch.arange(rows), rows, "negative"), ranking(phi, torch.arange(rows), rows, "positive")]


def training(rows: int) -> Work:
    from genrep_dist.problems.protocol import Dataset, Recipe
    from genrep_dist.training.loop import train
    from genrep_dist.training.randomness import Randomness

    data = Dataset(normal(rows, 1, 28, 28), (normal(rows) > 0).float(), torch.arange(rows))
    recipe = Recipe(epochs=1, batch_size=64, learning_rate=0.1)
    return lambda: train(Randomness(0).build(lambda: VisionCNN(1, 28, 1)), get_loss("logistic"), recipe, data, Randomness(0))


class Driver:
    """A store that the driver reads: originals, random scores, and a ledger with a made-up row for every requested model."""

    def __init__(self, folder: Path, *, seeds: int = 4, points: int = 4, rows: int = 200) -> None:
        fields: dict[str, Any] = {
            "methods": ["random"],
            "seeds": seeds,
            "test_points": points,
            "deletion": {"fractions": [0.0, 0.02, 0.04, 0.06, 0.08, 0.1], "signs": ["negative"]},
        }
        asked = experiment(options={"train_size": rows, "test_size": 200, "epochs": 1}, **fields)
        self.store = Store(str(folder))
        self.prepared = prepare(asked, self.store, [str(ROOT)])
        write_record(self.prepared)
        publish_inputs(self.prepared)
        plan, keys = self.prepared.plan, self.prepared.plan.keys
        for stage in ("train", "attributions"):
            for artifact in artifacts_of(plan, stage):
                for unit in artifact.units:
                    execute(self.prepared.job, unit)
        self.table = self.ask()
        draw = np.random.default_rng(0)
        made = [original_row(seed, keys, self.store) for seed in asked.seeds]
        made += [
            LedgerRow(one.key, one.seed, one.policy, one.replicate, one.removed, draw.normal(size=(200, 1)), 0.1)
            for one in self.asked.retrainings.values()
        ]
        for start in range(0, len(made), 250):
            self.store.ledger(keys.training).write(made[start : start + 250])

    def plan(self) -> object:
        return stage_status(prepare(self.prepared.plan.experiment, self.store, [str(ROOT)]).plan, self.store)

    def ask(self) -> Any:
        prepared = self.prepared
        self.asked = retrain_requests(prepared.plan, self.store, prepared.train.ids.numpy(), prepared.test.ids.numpy())
        return self.asked.table

    def judge(self) -> object:
        return evaluate(self.prepared.plan, self.store, self.table, lambda: worker_context(self.prepared.job))

    def keys(self) -> object:
        return self.store.ledger(self.prepared.plan.keys.training).keys()


def driver(part: str, variable: str, folder: Path, made: dict[Any, Driver]) -> Callable[[int], Work]:
    def make(size: int) -> Work:
        if (variable, size) not in made:
            place = folder / f"{variable}-{size}"
            made[variable, size] = Driver(place, **{variable: size})
        work: Work = getattr(made[variable, size], part)
        return work

    return make


def all_growths(folder: Path) -> Iterator[Growth]:
    rows = (1024, 2048, 4096)
    yield Growth("training, one epoch", "n", 1, (512, 1024, 2048), training)
    yield Growth("per-sample gradients", "n", 1, (256, 512, 1024), cnn_gradients)
    # Twice the channels: four times the parameters and the multiply-adds.
    yield Growth("per-sample gradients", "width (parameters grow with its square)", 2, (2, 4, 8), lambda width: cnn_gradients(128, width))
    yield Growth("K(train, test) from features", "n", 1, (4096, 8192, 16384), lambda size: kernel(size, 16, 4096))
    yield Growth("K(train, test) from features", "test points", 1, (16, 64, 256), lambda size: kernel(2048, size, 4096))
    yield Growth("K(train, test) from features", "parameters", 1, (16384, 32768, 65536), lambda size: kernel(2048, 16, size))
    yield Growth("gram", "n", 2, rows, tile)
    yield Growth("surrogate on a gram in memory", "n", 2, rows, surrogate)
    yield Growth("influence kernel, dual system", "n", 3, (1024, 2048, 3072), influence)
    yield Growth("ranking of scores", "n", 1.1, (10_000, 20_000, 40_000), ranked)
    made: dict[Any, Driver] = {}
    names = {"plan": "plan and status", "ask": "request table", "keys": "keys of the ledger", "judge": "evaluation"}
    for variable, sizes in (("seeds", (8, 32, 128)), ("points", (8, 32, 128)), ("rows", (200, 800, 3200))):
        for part, what in names.items():
            expected = 1.0 if variable != "rows" or part == "ask" else 0.0
            spoken = {"points": "test points", "rows": "n"}.get(variable, variable)
            yield Growth(what, spoken, expected, sizes, driver(part, variable, folder, made))


def seconds(work: Work) -> float:
    work()
    found = []
    for _ in range(RUNS):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


def exponent(sizes: Sequence[int], took: Sequence[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(took), 1)[0])


def retraining_seconds(folder: Path, workers: int) -> float:
    """Seconds of the stage `retrain` alone: the earlier stages are finished, and the workers have started."""
    begun: dict[str, float] = {}

    class Clock:
        def stage(self, name: str, total: int, done: int) -> None:
            begun[name] = time.perf_counter()

        def advance(self, units: int, statistics: object) -> None:
            begun["last"] = time.perf_counter()

        def message(self, text: str) -> None:
            pass

    changes = ["seeds=16", "test_points=2", "methods=[ntk-final/tracking, random]", f"resources.workers={workers}"]
    gr.run(gr.load_experiment("demo", overrides=changes), store=str(folder), progress=Clock())
    return begun["last"] - begun["retrain"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-workers", action="store_true", help="leave out the runs through Ray")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/growth.md")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    where = measured_on("torch", "polars", "ray")
    lines: list[tuple[str, ...]] = []
    above = []
    with tempfile.TemporaryDirectory(prefix="genrep-benchmark-") as folder:
        for growth in all_growths(Path(folder)):
            took = [seconds(growth.make(size)) for size in growth.sizes]
            slope = exponent(growth.sizes, took)
            mark = slope > growth.expected + TOLERANCE
            if mark:
                above.append(f"{growth.what} by {growth.variable}")
            sizes = ", ".join(f"{size:,}" for size in growth.sizes)
            milliseconds = ", ".join(f"{1e3 * one:.3g}" for one in took)
            found = f"**{slope:.2f}**" if mark else f"{slope:.2f}"
            lines.append((growth.what, growth.variable, sizes, milliseconds, found, f"{growth.expected:g}"))
            sys.stderr.write(f"{growth.what} by {growth.variable}: {slope:.2f}, expected {growth.expected:g}\n")
        if not asked.no_workers and (os.cpu_count() or 1) >= 2:
            took = [retraining_seconds(Path(folder) / f"workers-{workers}", workers) for workers in (1, 2)]
            slope = math.log(took[1] / took[0]) / math.log(2)
            text = ", ".join(f"{1e3 * one:,.0f}" for one in took)
            mark = slope > TOLERANCE - 1
            if mark:
                above.append("retraining by workers")
            lines.append(("retraining", "workers", "1, 2", text, f"**{slope:.2f}**" if mark else f"{slope:.2f}", "-1"))
    verdict = f"No exponent is more than {TOLERANCE} above the expected one." if not above else f"Faster than expected: {'; '.join(above)}."
    columns = ("part", "variable", "sizes", "milliseconds", "exponent", "expected")
    publish("growth", "How costs grow", [" ".join(str(__doc__).split()), where, verdict, table(columns, lines)], write=asked.write)


if __name__ == "__main__":
    main()
