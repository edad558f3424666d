"""The number of products with the gram that the surrogate needs, and how its cost grows with the number of training samples.

The gram is real: all gradients (93,825 parameters) of the vision network after a few epochs on MNIST's threes and eights (about 12,000
images), in memory as float64. For each lambda, Eq. 5 is solved to a residual of 1e-6 twice in the same run: with columns of the gram for
the Nyström preconditioner, and without them, where the preconditioner uses only earlier products. Both solutions must agree. "Products"
counts every product with K, and all columns together as one more. The same is done with a quarter and a half of the images, evenly spaced,
to measure the growth. Seconds are CPU seconds of all threads. Goal: under 60 products at 12,000 samples, and a cost that grows as the
square of the number of samples.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from genrep_dist.core.gradients.per_sample import per_sample_gradients
from genrep_dist.core.losses import get_loss
from genrep_dist.core.solvers.dual_system import GramColumns
from genrep_dist.core.solvers.nystrom import num_nystrom_columns, nystrom_bytes
from genrep_dist.core.solvers.surrogate import SurrogateCertificate, solve_surrogate
from genrep_dist.errors import ProblemError
from genrep_dist.problems.datasets.mnist import Mnist
from genrep_dist.training.loop import predict, train
from genrep_dist.training.randomness import Randomness
from tests.benchmarks import measured_on, publish, table

LAMBDAS = (1e-1, 1e-2, 1e-3, 1e-4)
SHARES = (4, 2, 1)
"""A quarter of the images, half of them, all."""
BLOCK = 256
AGREE = 1e-5
"""Largest allowed difference of the two fitted functions, relative to the largest output."""


@dataclass(frozen=True)
class Solved:
    alpha: Tensor
    certificate: SurrogateCertificate
    seconds: float


def network_gram(epochs: int) -> tuple[Tensor, Tensor]:
    """Gram (N, N) float32 of the trained network's gradients, and its outputs (N, 1) float64."""
    problem = Mnist()
    data = problem.train_data()
    randomness = Randomness(1000)
    model = randomness.build(problem.model)
    train(model, get_loss(problem.loss), replace(problem.recipe, epochs=epochs), data, randomness)
    n = len(data.ids)
    features = torch.empty(n, sum(parameter.numel() for parameter in model.parameters()))
    model.eval()
    for start in range(0, n, BLOCK):
        features[start : start + BLOCK] = per_sample_gradients(model, data.inputs[start : start + BLOCK])[:, 0]
    gram = torch.empty(n, n)
    for start in range(0, n, 1024):
        rows = slice(start, start + 1024)
        gram[rows, start:] = features[rows] @ features[start:].T
        gram[start:, rows] = gram[rows, start:].T
    return gram, predict(model, data.inputs).double()


def solve(gram: Tensor, outputs: Tensor, lam: float, *, columns: bool) -> Solved:
    chosen: GramColumns | None = (lambda rows: gram[rows].T.contiguous()) if columns else None
    began = time.process_time()
    alpha, certificate = solve_surrogate(
        lambda vector: gram @ vector, get_loss("logistic"), outputs, lam=lam, columns=chosen, allow_unconverged=True
    )
    return Solved(alpha, certificate, time.process_time() - began)


def products_text(solved: Solved) -> str:
    return f"{solved.certificate.matvecs}" + ("" if solved.certificate.converged else " (not converged)")


def lambda_rows(gram: Tensor, outputs: Tensor) -> tuple[list[tuple[str, ...]], list[Solved]]:
    rows: list[tuple[str, ...]] = []
    found: list[Solved] = []
    for lam in LAMBDAS:
        with_columns, without = (solve(gram, outputs, lam, columns=columns) for columns in (True, False))
        difference = float((gram @ (with_columns.alpha - without.alpha)).abs().max() / outputs.abs().max())
        if difference > AGREE:
            raise SystemExit(f"lambda {lam:g}: the two solutions differ by {difference:.2g} of the largest output")
        rows.append(
            (
                f"{lam:g}",
                products_text(with_columns),
                products_text(without),
                f"{without.certificate.matvecs / with_columns.certificate.matvecs:.1f}",
                f"{with_columns.seconds:.1f}",
                f"{without.seconds:.1f}",
                f"{with_columns.certificate.residual:.1g}",
                f"{difference:.1g}",
            )
        )
        found.append(with_columns)
    return rows, found


def growth_rows(gram: Tensor, outputs: Tensor, whole: Sequence[Solved]) -> tuple[list[tuple[str, ...]], float]:
    """Products, and seconds for all lambdas, by size; and the exponent of the seconds."""
    rows: list[tuple[str, ...]] = []
    points: list[tuple[float, float]] = []
    n = len(outputs)
    for share in SHARES:
        chosen = torch.arange(0, n, share)
        smaller = gram[chosen][:, chosen].contiguous() if share > 1 else gram
        solved = [solve(smaller, outputs[chosen], lam, columns=True) for lam in LAMBDAS] if share > 1 else whole
        seconds, size = sum(one.seconds for one in solved), len(chosen)
        products = [one.certificate.matvecs for one in solved]
        rows.append(
            (
                f"{size:,}",
                f"{num_nystrom_columns(size):,}",
                f"{nystrom_bytes(size) / 2**20:.0f}",
                f"{min(products)} to {max(products)}",
                f"{seconds:.1f}",
            )
        )
        points.append((math.log(size), math.log(seconds)))
    return rows, (points[-1][1] - points[0][1]) / (points[-1][0] - points[0][0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=3, help="epochs of training")
    parser.add_argument("--cache", type=Path, help="file to save the gram in, or to load it from if it exists (576 MB)")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/surrogate_products.md")
    asked = parser.parse_args()
    where = measured_on("torch")
    try:
        if asked.cache is not None and asked.cache.exists():
            single, outputs = torch.load(asked.cache)
        else:
            single, outputs = network_gram(asked.epochs)
    except ProblemError as error:
        sys.stdout.write(f"not measured: {error}\n")
        return
    if asked.cache is not None and not asked.cache.exists():
        torch.save((single, outputs), asked.cache)
    gram = single.double()
    del single
    rows, whole = lambda_rows(gram, outputs)
    growth, exponent = growth_rows(gram, outputs, whole)
    most = max(one.certificate.matvecs for one in whole)
    columns = ("lambda", "products", "products without columns", "ratio", "s", "s without columns", "residual", "difference")
    sections = [
        " ".join(str(__doc__).split()),
        where,
        f"{len(outputs):,} images, {asked.epochs} epochs; the median absolute logit is {float(outputs.abs().median()):.0f}. The largest "
        f"number of products for a lambda is {most}, {'under' if most < 60 else '**not under**'} 60.",
        table(columns, rows),
        "By the number of samples, with the seconds for all lambdas together. Nyström columns are the gram's columns in the "
        "preconditioner:",
        table(("samples", "Nyström columns", "MiB for them", "products", "s"), growth),
        f"Seconds grow with the power {exponent:.2f} of the number of samples (expected: 2).",
    ]
    publish("surrogate_products", "Products with the gram that a surrogate needs", sections, write=asked.write)


if __name__ == "__main__":
    main()
