"""Per-sample gradients of the vision networks by one batched backward pass, as dense rows and as factors.

They are compared with `torch.func.vmap(grad)` on the same rows and with a loop of backward passes. One thread; all methods in turn in every
round. The results are compared before the timing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from genrep_dist.core.gradients.functional import torch_func_gradients
from genrep_dist.core.gradients.model import trainable_parameters
from genrep_dist.core.gradients.per_sample import factored_gradients, per_sample_gradients
from genrep_dist.problems.datasets.image_models import SmallCNN, VisionCNN
from tests.benchmarks import measured_on, publish, spread, table

ROWS, LOOP_ROWS, ROUNDS = 256, 32, 7

MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "4,929 parameters, 1x8x8": (SmallCNN, (1, 8, 8)),
    "6,090 parameters, ten outputs, 1x8x8": (lambda: SmallCNN(10), (1, 8, 8)),
    "93,825 parameters, 1x28x28": (VisionCNN, (1, 28, 28)),
    "95,297 parameters, 3x32x32": (lambda: VisionCNN(3, 32), (3, 32, 32)),
}


def vmapped(model: nn.Module, inputs: Tensor) -> Tensor:
    """Dense rows (B, C, P) by vmap(grad), or by vmap(jacrev) for several outputs."""
    names = tuple(trainable_parameters(model))
    found = torch_func_gradients(model, inputs, None, names)
    return torch.cat([found[name].flatten(2) for name in names], dim=2)


def looped(model: nn.Module, inputs: Tensor) -> Tensor:
    parameters = list(trainable_parameters(model).values())
    rows = []
    for sample in inputs:
        outputs = model(sample.unsqueeze(0))[0]
        each = [torch.autograd.grad(value, parameters, retain_graph=True) for value in outputs]
        rows.append(torch.stack([torch.cat([gradient.flatten() for gradient in gradients]) for gradients in each]))
    return torch.stack(rows)


def measure(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> dict[str, list[float]]:
    """Rows per second of each method in each round."""
    torch.manual_seed(0)
    model, inputs = make().eval(), torch.randn(ROWS, *shape)
    expected = looped(model, inputs[:LOOP_ROWS])
    some = inputs[:LOOP_ROWS]
    for found in (vmapped(model, some), per_sample_gradients(model, some), factored_gradients(model, some).to_dense()):
        # If two inputs of a pool differ by rounding, either may be the maximum. So whole rows are compared.
        difference = float(((found - expected).norm(dim=2) / expected.norm(dim=2)).max())
        if difference > 1e-3:
            raise SystemExit(f"the results differ by {difference:g}")
    ways: dict[str, tuple[Callable[[], object], int]] = {
        "loop": (lambda: looped(model, inputs[:LOOP_ROWS]), LOOP_ROWS),
        "vmap": (lambda: [vmapped(model, part) for part in torch.split(inputs, 64)], ROWS),
        "dense": (lambda: [per_sample_gradients(model, part) for part in torch.split(inputs, 64)], ROWS),
        "factors": (lambda: [factored_gradients(model, part) for part in torch.split(inputs, 64)], ROWS),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(ROUNDS + 1):
        for name, (work, rows) in ways.items():
            began = time.perf_counter()
            work()
            if round_number:
                rates[name].append(rows / (time.perf_counter() - began))
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/sample_gradients.md")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    where = measured_on("torch")
    lines = []
    for name, (make, shape) in MODELS.items():
        rates = measure(make, shape)
        ratios = [ours / theirs for ours, theirs in zip(rates["dense"], rates["vmap"], strict=True)]
        lines.append([name, *(f"{statistics.median(rates[way]):,.0f}" for way in rates), spread(ratios, "{:.2f}")])
    columns = ["model", "loop", "vmap(grad)", "dense rows", "factors", "dense rows / vmap(grad)"]
    sections = [
        " ".join(str(__doc__).split()),
        where,
        f"Rows per second, medians of {ROUNDS} rounds over {ROWS} rows in batches of 64 (the loop: {LOOP_ROWS} rows). Quartiles of the "
        "ratio in parentheses:",
        table(columns, lines),
    ]
    publish("sample_gradients", "Per-sample gradients of the vision networks", sections, write=asked.write)


if __name__ == "__main__":
    main()
