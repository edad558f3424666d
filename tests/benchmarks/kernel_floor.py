"""K(train, 10 test points), compared with one forward and backward pass over the training rows: the least that gradients cost.

The floor is the pass of a plain PyTorch loop in batches of 64, whose gradients are summed over the batch. K needs each row's own gradient
and its products with those of the test points. CPU times, one thread, both sides in turn in every round. Goal: 80 %.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from genrep_dist.core.gradients.per_sample import factored_gradients, iter_factored_gradients
from genrep_dist.problems.datasets.image_models import SmallCNN, VisionCNN
from genrep_dist.problems.datasets.mnist_benchmark import Perceptron, linear_model
from genrep_dist.problems.datasets.text_models import TextCNN
from tests.benchmarks import measured_on, publish, spread, table

ROWS, POINTS, BATCH, ROUNDS = 512, 10, 64, 7


def images(*shape: int) -> Callable[[int], Tensor]:
    return lambda rows: torch.randn(rows, *shape)


def texts(rows: int) -> Tensor:
    """Random tokens: half of each text is padding, as in short comments."""
    tokens = torch.randint(1000, 30_522, (rows, 128))
    tokens[:, 64:] = 0
    return tokens


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "logistic regression of MNIST, 7,850 parameters, ten outputs": (linear_model, images(1, 28, 28)),
    "perceptron of MNIST, 109,386 parameters, ten outputs": (Perceptron, images(1, 28, 28)),
    "digits, 4,929 parameters": (SmallCNN, images(1, 8, 8)),
    "MNIST, 93,825 parameters": (VisionCNN, images(1, 28, 28)),
    "CIFAR-10, 95,297 parameters": (lambda: VisionCNN(3, 32), images(3, 32, 32)),
    "texts, 1,602,257 parameters": (TextCNN, texts),
}


def floor(model: nn.Module, inputs: Tensor) -> None:
    """One vector-Jacobian product a row, summed over each batch."""
    for part in torch.split(inputs, BATCH):
        model.zero_grad()
        outputs = model(part)
        (outputs if outputs.dim() == 1 else outputs[:, 0]).sum().backward()


def kernel(model: nn.Module, inputs: Tensor, points: Tensor) -> Tensor:
    """K of one output (N, M)."""
    chosen = torch.zeros(len(points), dtype=torch.int64)
    operand = factored_gradients(model, points, chosen).as_operand()
    rows = iter_factored_gradients(model, inputs, torch.zeros(len(inputs), dtype=torch.int64))
    return torch.cat([operand.inner(block) for block in rows], dim=1).T


def seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def measure(make: Callable[[], nn.Module], draw: Callable[[int], Tensor]) -> list[tuple[float, float]]:
    """Seconds of the pass and of K in each round, after one round that is not counted."""
    torch.manual_seed(0)
    model, inputs, points = make().eval(), draw(ROWS), draw(POINTS)
    rounds = [(seconds(lambda: floor(model, inputs)), seconds(lambda: kernel(model, inputs, points))) for _ in range(ROUNDS + 1)]
    return rounds[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/kernel_floor.md")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    where = measured_on("torch")
    lines = []
    for name, (make, draw) in MODELS.items():
        rounds = measure(make, draw)
        least, ours = (statistics.median(side) for side in zip(*rounds, strict=True))
        share = [100 * one / other for one, other in rounds]
        lines.append([name, f"{1e6 * least / ROWS:,.0f}", f"{1e6 * ours / ROWS:,.0f}", spread(share, "{:.0f}")])
    sections = [
        " ".join(str(__doc__).split()),
        where,
        f"Microseconds a row, medians of {ROUNDS} rounds over {ROWS} random rows. Quartiles of the share in parentheses:",
        table(["model", "forward and backward pass", "K", "pass / K, %"], lines),
    ]
    publish("kernel_floor", "K(train, few test points), compared with one pass", sections, write=asked.write)


if __name__ == "__main__":
    main()
