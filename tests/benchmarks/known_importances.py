"""Scores with known importances: one vector-Jacobian product a training sample, against importances times K of all outputs.

Both sides multiply training rows with the same test points, by the kernel's own features and products. The results are compared before the
timing. One thread; both in turn in every round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from genrep_dist.core.attribution import attribute
from genrep_dist.core.kernels.ntk import NeuralTangentKernel
from genrep_dist.problems.datasets.image_models import SmallCNN
from tests.benchmarks import measured_on, publish, spread, table

ROWS, BATCH, POINTS, ROUNDS = 256, 64, 8, 7


def wide(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, outputs))


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "small CNN, 3 outputs": (lambda: SmallCNN(3), 3),
    "small CNN, 10 outputs": (lambda: SmallCNN(10), 10),
    "small CNN, 100 outputs": (lambda: SmallCNN(100), 100),
    "linear layers, 10 outputs": (lambda: wide(10), 10),
    "linear layers, 100 outputs": (lambda: wide(100), 100),
}


def measure(make: Callable[[], nn.Module], outputs: int) -> dict[str, list[float]]:
    """Rows per second of both ways in each round."""
    torch.manual_seed(0)
    model, inputs, points = make().eval(), torch.randn(ROWS, 1, 8, 8), torch.randn(POINTS, 1, 8, 8)
    kernel, alpha, explained = NeuralTangentKernel(), torch.randn(ROWS, outputs), torch.arange(POINTS) % outputs
    prepared = kernel.features(model, points, explained).as_operand()
    parts = [slice(at, at + BATCH) for at in range(0, ROWS, BATCH)]

    def by_kernel() -> Tensor:
        blocks = [kernel.block(kernel.features(model, inputs[at]), prepared, explained, outputs) for at in parts]
        return attribute(alpha, torch.cat(blocks))

    def direct() -> Tensor:
        return torch.cat([kernel.block(kernel.features(model, inputs[at], alpha[at]), prepared, explained, 1)[:, 0] for at in parts])

    expected, found = by_kernel(), direct()
    difference = float((found - expected).norm() / expected.norm())
    if difference > 1e-4:
        raise SystemExit(f"the results differ by {difference:g}")
    rates: dict[str, list[float]] = {"by_kernel": [], "direct": []}
    for _ in range(ROUNDS):
        for name, way in (("by_kernel", by_kernel), ("direct", direct)):
            began = time.perf_counter()
            way()
            rates[name].append(ROWS / (time.perf_counter() - began))
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/known_importances.md")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    where, lines = measured_on("torch"), []
    for name, (make, outputs) in MODELS.items():
        rates = measure(make, outputs)
        ratios = [ours / theirs for ours, theirs in zip(rates["direct"], rates["by_kernel"], strict=True)]
        lines.append([name, *(f"{statistics.median(found):,.0f}" for found in rates.values()), spread(ratios, "{:.2f}")])
    sections = [
        " ".join(str(__doc__).split()),
        where,
        f"Training rows per second with {POINTS} test points, medians of {ROUNDS} rounds over {ROWS} inputs 1x8x8 in batches of {BATCH}. "
        "Quartiles of the ratio in parentheses:",
        table(["model", "importances times K", "one product a sample", "ratio"], lines),
    ]
    publish("known_importances", "Scores with known importances", sections, write=asked.write)


if __name__ == "__main__":
    main()
