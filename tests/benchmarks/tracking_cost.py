"""The cost of tracking: training with the observer that accumulates the importances of Eq. 10, compared with training without it.

The same model is trained from the same seed on the same data, with and without the observer in turn, on one thread as in a worker. The
table shows the ratio of CPU times of each pair, and the ratio of two trainings without the observer, which is the noise of this machine. A
further training of each round measures the time inside the observer; that time divided by the time outside it is more precise.
Goal: under 5%.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from genrep_dist.core.losses import get_loss
from genrep_dist.problems.datasets.digits import Digits
from genrep_dist.problems.datasets.image_models import VisionCNN
from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.training.loop import Observer, train
from genrep_dist.training.observers import TrackingImportance
from genrep_dist.training.randomness import Randomness
from tests.benchmarks import measured_on, publish, spread, table


class Timed(TrackingImportance):
    """The observer, which also measures the seconds of its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def step(self, rows: Tensor, output_gradient: Tensor, rate: float) -> None:
        began = time.perf_counter()
        super().step(rows, output_gradient, rate)
        self.seconds += time.perf_counter() - began


class LargeDigits(Digits):
    """The digits enlarged to 28x28 pixels, for the vision network of 93,825 parameters."""

    def model(self) -> nn.Module:
        return VisionCNN(num_outputs=1)

    def _dataset(self, *rows: object) -> Dataset:
        small = super()._dataset(*rows)  # type: ignore[arg-type]
        return small._replace(inputs=nn.functional.interpolate(small.inputs, size=28, mode="bilinear"))


@dataclass(frozen=True)
class Case:
    """A problem to train on, for ``epochs`` epochs a training."""

    name: str
    problem: Digits
    epochs: int

    @property
    def recipe(self) -> Recipe:
        return replace(self.problem.recipe, epochs=self.epochs)


CASES = (
    Case("digits 8x8, SmallCNN, C = 1", Digits(), 20),
    Case("digits 8x8, SmallCNN, C = 10", Digits(classes=None), 20),
    Case("digits as 28x28, VisionCNN, C = 1", LargeDigits(), 4),
)


def cpu_seconds(case: Case, data: Dataset, observers: Sequence[Observer]) -> float:
    """CPU time of one training."""
    randomness = Randomness(0)
    model = randomness.build(case.problem.model)
    began = time.process_time()
    train(model, get_loss(case.problem.loss), case.recipe, data, randomness, observers=observers)
    return time.process_time() - began


def share_inside(case: Case, data: Dataset) -> tuple[float, float]:
    """Time inside the observer divided by the time outside it, and seconds inside."""
    observer = Timed()
    began = time.perf_counter()
    cpu_seconds(case, data, [observer])
    total = time.perf_counter() - began
    return observer.seconds / (total - observer.seconds), observer.seconds


def measure(case: Case, pairs: int) -> tuple[str, ...]:
    """A row of the table."""
    data = case.problem.train_data()
    assert isinstance(data, Dataset)
    share_inside(case, data)  # warm-up
    steps = case.epochs * -(-len(data.ids) // case.recipe.batch_size)
    plain: list[float] = []
    tracked_ratios: list[float] = []
    equal_ratios: list[float] = []
    shares: list[float] = []
    microseconds: list[float] = []
    for pair in range(pairs):
        # The state of the machine may depend on the position in a round: the order alternates.
        order = ("plain", "tracked", "again") if pair % 2 else ("again", "tracked", "plain")
        took = {name: cpu_seconds(case, data, [TrackingImportance()] if name == "tracked" else []) for name in order}
        plain.append(1e3 * took["plain"])
        tracked_ratios.append(took["tracked"] / took["plain"])
        equal_ratios.append(took["again"] / took["plain"])
        share, inside = share_inside(case, data)
        shares.append(100 * share)
        microseconds.append(1e6 * inside / steps)
    parameters = sum(parameter.numel() for parameter in case.problem.model().parameters())
    return (
        f"{case.name}; {parameters:,} parameters, {steps} steps",
        spread(plain, "{:.0f}"),
        spread(tracked_ratios),
        spread(equal_ratios),
        spread(shares, "{:.1f}"),
        spread(microseconds, "{:.0f}"),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=40, help="rounds of four trainings for each case")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/tracking_cost.md")
    options = parser.parse_args()
    where = measured_on("torch")
    torch.set_num_threads(1)
    columns = ("case", "plain, ms", "tracked / plain", "plain / plain", "inside / outside, %", "inside, µs per step")
    rows = [measure(case, options.pairs) for case in CASES]
    sections = [
        " ".join(str(__doc__).split()),
        where,
        f"Medians of {options.pairs} rounds, quartiles in parentheses:",
        table(columns, rows),
    ]
    publish("tracking_cost", "The cost of tracking", sections, write=options.write)


if __name__ == "__main__":
    main()
