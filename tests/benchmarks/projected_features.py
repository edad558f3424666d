"""Features of two larger networks by projected factors, beside a projection of whole gradients and beside plain backward passes.

The networks are a ResNet-18 with group normalisation on 32x32 images and a transformer encoder on 64 tokens, with random parameters.
Seconds are for each sample, one output, one thread; all ways in turn in every round, but for the projections of whole gradients, which take
minutes: two samples once. "Plain" is one forward and backward pass of a batch, which has no gradients of single
samples. Errors are those of products between samples, relative to the product of their norms; "rank correlation" is Spearman's between
projected and exact products of each sample with the others, averaged.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from genrep_dist.core.gradients.factored import FactoredGradients, inner_products
from genrep_dist.core.gradients.factored_projection import FactoredProjection
from genrep_dist.core.gradients.model import num_parameters
from genrep_dist.core.gradients.per_sample import factored_gradients
from genrep_dist.core.gradients.projection import Projection
from tests.benchmarks import measured_on, publish, spread, table

ROWS, TIMED_ROWS, ROUNDS = 48, 8, 3
WIDTHS = (256, 1024, 4096)


class Block(nn.Module):
    """A residual block of two 3x3 convolutions."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.GroupNorm(8, width), nn.GroupNorm(8, width)])
        self.short = nn.Identity() if stride == 1 and channels == width else nn.Conv2d(channels, width, 1, stride, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.relu(self.norms[0](self.first(inputs)))
        return torch.relu(self.norms[1](self.second(hidden)) + self.short(inputs))


def resnet18() -> nn.Module:
    blocks, channels = [], 64
    for stage, width in enumerate((64, 128, 256, 512)):
        for place in range(2):
            blocks.append(Block(channels, width, 2 if stage and not place else 1))
            channels = width
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1))
    return nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.GroupNorm(8, 64), nn.ReLU(), *blocks, *head)


class Encoder(nn.Module):
    """Eight layers of width 512 over tokens, the mean of the positions, one output."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(8000, 512)
        layer = nn.TransformerEncoderLayer(512, 8, 2048, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 7, enable_nested_tensor=False)
        self.head = nn.Linear(512, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.head(self.layers(self.tokens(tokens)).mean(dim=1))
        return found


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "ResNet-18, 3x32x32": (resnet18, lambda rows: torch.randn(rows, 3, 32, 32)),
    "transformer encoder, 64 tokens": (Encoder, lambda rows: torch.randint(0, 8000, (rows, 64))),
}


def plain(model: nn.Module, inputs: Tensor) -> None:
    parameters = list(model.parameters())
    torch.autograd.grad(model(inputs).sum(), parameters)


def timed(model: nn.Module, inputs: Tensor, projections: Mapping[str, Projection | FactoredProjection | None]) -> dict[str, list[float]]:
    """Seconds a sample of each way in each round, in turn; None: the plain backward pass."""
    seconds: dict[str, list[float]] = {name: [] for name in projections}
    for round_number in range(ROUNDS + 1):
        for name, projection in projections.items():
            began = time.perf_counter()
            if projection is None:
                plain(model, inputs)
            else:
                projection.project(factored_gradients(model, inputs))
            if round_number:
                seconds[name].append((time.perf_counter() - began) / len(inputs))
    return seconds


def quality(exact: Tensor, found: FactoredGradients) -> tuple[float, float]:
    """Root mean square error relative to norms, and the mean rank correlation, of products between different samples."""
    scale = (exact.diagonal()[:, None] * exact.diagonal()[None, :]).sqrt()
    projected, count = inner_products(found, found), len(exact)
    others = ~torch.eye(count, dtype=torch.bool)
    error = float(((projected - exact) / scale)[others].square().mean().sqrt())
    pairs = zip(exact, projected, others, strict=True)
    return error, float(np.mean([spearmanr(one[mine], other[mine]).statistic for one, other, mine in pairs]))


def rows_of(name: str, make: Callable[[], nn.Module], draw: Callable[[int], Tensor]) -> list[tuple[str, ...]]:
    torch.manual_seed(0)
    model, inputs = make().eval(), draw(ROWS)
    gradients = FactoredGradients.cat([factored_gradients(model, part) for part in torch.split(inputs, 8)])
    exact = inner_products(gradients, gradients)
    ways: dict[str, Projection | FactoredProjection | None] = {"plain backward pass": None}
    ways |= {f"factored, {dim} of each layer": FactoredProjection(dim, 0) for dim in WIDTHS}
    ways |= {"sparse, 4096 in all": Projection(4096, "sparse", 0), "rademacher, 4096 in all": Projection(4096, "rademacher", 0)}
    # The dense projections take minutes: fewer samples, and the two timed by themselves.
    quick = {label: way for label, way in ways.items() if not isinstance(way, Projection)}
    seconds = timed(model, inputs[:TIMED_ROWS], quick)
    rows: list[tuple[str, ...]] = []
    base = np.median(seconds["plain backward pass"])
    for label, way in ways.items():
        if way is None:
            rows.append(
                (name, f"{num_parameters(model):,}", label, "-", spread([1e3 * s for s in seconds[label]], "{:.1f}"), "1.00", "-", "-")
            )
            continue
        if label not in seconds:
            began = time.perf_counter()
            way.project(factored_gradients(model, inputs[:2]))
            seconds[label] = [(time.perf_counter() - began) / 2]
        found = way.project(gradients) if label in quick else None
        error, correlation = quality(exact, found) if found is not None else (float("nan"), float("nan"))
        width = 4096 if found is None else found.rest.shape[2]
        rows.append(
            (
                name,
                f"{num_parameters(model):,}",
                label,
                f"{4 * width:,}",
                spread([1e3 * s for s in seconds[label]], "{:.1f}"),
                f"{np.median(seconds[label]) / base:.2f}",
                "-" if found is None else f"{error:.3f}",
                "-" if found is None else f"{correlation:.3f}",
            )
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/projected_features.md")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    where = measured_on("torch")
    rows = [row for name, (make, draw) in NETWORKS.items() for row in rows_of(name, make, draw)]
    columns = ("network", "parameters", "features", "bytes a row", "ms a row", "time / plain", "error", "rank correlation")
    publish("projected_features", "Projected features", [" ".join(str(__doc__).split()), where, table(columns, rows)], write=asked.write)


if __name__ == "__main__":
    main()
