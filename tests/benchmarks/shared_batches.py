"""Packs that share a batch: retrainings on halves of a training set, compared with plain PyTorch loops on the same core.

All retrainings of a seed visit the same batches, each without the rows that it does not keep. Both plain loops train one model at a time
on the kept rows of the same batches, with `torch.optim.SGD`: one indexes the tensors by each batch, the other has a DataLoader over a
TensorDataset. The ratio is to the better of the two. All start from the same parameters, and the final ones may differ by 1 % of the
distance from the initial ones. CPU times are compared, in an order that alternates. "% of sgemm" is the rate of multiply-adds, forward and
backward without the gradient of the inputs, relative to a float32 1024 x 1024 product in the same minute: of those that our loop computes,
and of those that the kept rows alone need, as in a plain loop. Images of MNIST's size are random numbers around ten means. Goals: 10 times
the better plain loop and 25 % of sgemm for both networks on 28x28, 5 times for the network on 8x8.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from genrep_dist.core.losses import get_loss
from genrep_dist.problems.datasets.digits import Digits
from genrep_dist.problems.datasets.mnist_benchmark import linear_model
from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.training.fast_paths import FastPaths
from genrep_dist.training.loop import TrainingRun, predict
from genrep_dist.training.randomness import Randomness
from genrep_dist.training.trainer import Trainer
from tests.benchmarks import measured_on, publish, spread, table

HALVES = 50
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "softmax": nn.functional.cross_entropy,
    "logistic": lambda outputs, targets: nn.functional.binary_cross_entropy_with_logits(outputs.squeeze(1), targets),
}


@dataclass(frozen=True)
class Case:
    name: str
    factory: Callable[[], nn.Module]
    loss: str
    data: Dataset
    recipe: Recipe
    multiply_adds: int
    """Of one row, forward and backward."""
    pack: int = HALVES
    """Models of a pack at most: fixed, because a size that is measured beside other work varies."""


def perceptron() -> nn.Module:
    """784-128-64-10 without dropout: 109,386 parameters."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def images(num_rows: int, seed: int = 0) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    means = torch.rand(10, 1, 28, 28, generator=generator)
    generator.manual_seed(seed)
    labels = torch.randint(0, 10, (num_rows,), generator=generator)
    return Dataset(means[labels] + torch.randn(num_rows, 1, 28, 28, generator=generator), labels, torch.arange(num_rows))


def cases() -> list[Case]:
    mnist, digits = images(5000), Digits()
    return [
        Case("logistic regression 784-10, batches of 32", linear_model, "softmax", mnist, Recipe(1, 32, 0.01), 2 * 7840),
        Case(
            "perceptron 784-128-64-10, batches of 64",
            perceptron,
            "softmax",
            mnist,
            Recipe(1, 64, 0.01),
            2 * 784 * 128 + 3 * (128 * 64 + 64 * 10),
            17,
        ),
        Case(
            "SmallCNN on 8x8 digits, batches of 32",
            digits.model,
            "logistic",
            digits.train_data(),
            replace(digits.recipe, epochs=8),
            2 * 64 * 9 * 16 + 3 * (16 * 144 * 32 + 128),
            17,
        ),
    ]


def halves(num_rows: int, count: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1000 + seed)
    found = torch.zeros(count, num_rows, dtype=torch.bool)
    for own in found:
        own[torch.randperm(num_rows, generator=generator)[: num_rows // 2]] = True
    return list(found)


def kept_batches(case: Case, kept: Tensor, seed: int, epoch: int) -> list[Tensor]:
    batches = torch.split(Randomness(seed).order(epoch, len(kept)), case.recipe.batch_size)
    return [some for batch in batches if len(some := batch[kept[batch]])]


def index_loop(case: Case, kept: Tensor, seed: int) -> nn.Module:
    model, loss = Randomness(seed).build(case.factory), LOSSES[case.loss]
    optimizer = torch.optim.SGD(model.parameters(), lr=case.recipe.learning_rate)
    for epoch in range(1, case.recipe.epochs + 1):
        for rows in kept_batches(case, kept, seed, epoch):
            optimizer.zero_grad()
            loss(model(case.data.inputs[rows]), case.data.targets[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model


def loader_loop(case: Case, kept: Tensor, seed: int) -> nn.Module:
    model, loss = Randomness(seed).build(case.factory), LOSSES[case.loss]
    optimizer = torch.optim.SGD(model.parameters(), lr=case.recipe.learning_rate)
    dataset = TensorDataset(case.data.inputs, case.data.targets)
    for epoch in range(1, case.recipe.epochs + 1):
        batches = [rows.tolist() for rows in kept_batches(case, kept, seed, epoch)]
        for inputs, targets in DataLoader(dataset, batch_sampler=batches):
            optimizer.zero_grad()
            loss(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model


def packed(case: Case, trainer: Trainer, some: Sequence[Tensor], seed: int) -> list[nn.Module]:
    """Retrainings in packs, as a worker trains them."""
    count = -(-len(some) // case.pack)
    models: dict[int, nn.Module] = {}
    for first in range(count):
        members = range(first, len(some), count)
        found = trainer.train_all([TrainingRun(Randomness(seed), some[index]) for index in members])
        models |= {index: model for index, model in zip(members, found, strict=True) if isinstance(model, nn.Module)}
    return [models[index] for index in range(len(some))]


def cpu_seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def sgemm() -> float:
    matrix = torch.rand(1024, 1024)
    matrix @ matrix
    return 1024**3 / min(cpu_seconds(lambda: matrix @ matrix) for _ in range(5))


def parameters(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def compared(case: Case, rounds: int) -> tuple[str, ...]:
    """A row of the table."""
    loss = get_loss(case.loss)
    trainer = Trainer(case.factory, loss, case.recipe, case.data)
    stacked = Trainer(case.factory, loss, case.recipe, case.data, FastPaths(shared_batches=False))
    assert trainer.shares_batches
    some = halves(len(case.data.ids), HALVES, 0)
    rows = len(case.data.ids) * case.recipe.epochs
    found: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        done: dict[str, nn.Module] = {}

        def ours(way: Trainer, name: str, done: dict[str, nn.Module] = done) -> None:
            done[name] = packed(case, way, some, 0)[0]

        def plain(way: Callable[[Case, Tensor, int], nn.Module], name: str, done: dict[str, nn.Module] = done) -> None:
            done[name] = way(case, some[0], 0)

        sides: list[tuple[str, Callable[[], object], int]] = [
            ("ours", lambda: ours(trainer, "ours"), HALVES),
            ("stacked", lambda: ours(stacked, "stacked"), HALVES),
            ("index", lambda: plain(index_loop, "index"), 1),
            ("loader", lambda: plain(loader_loop, "loader"), 1),
        ]
        took = {name: cpu_seconds(work) / count for name, work, count in (sides if number % 2 else reversed(sides))}
        initial, expected = parameters(Randomness(0).build(case.factory)), parameters(done["index"])
        for name, model in done.items():
            share = float((parameters(model) - expected).norm() / (expected - initial).norm())
            if not share < 0.01:
                raise SystemExit(f"{case.name}: {name} differs by {share:.2g} of the distance from the initial parameters")
        if number:  # the first round is a warm-up
            rate = 100 * rows * case.multiply_adds / took["ours"] / sgemm()
            better = min(took["index"], took["loader"])
            values = {
                "ms": 1e3 * took["ours"],
                "index": took["index"] / took["ours"],
                "loader": took["loader"] / took["ours"],
                "better": better / took["ours"],
                "stacked": took["stacked"] / took["ours"],
                "computed": rate,
                "kept": rate / 2,
            }
            for name, value in values.items():
                found.setdefault(name, []).append(value)
    count = sum(p.numel() for p in case.factory().parameters())
    forms = {"ms": "{:.1f}", "computed": "{:.0f}", "kept": "{:.0f}"}
    return (
        f"{case.name}; {count:,} parameters",
        str(case.pack),
        *(spread(found[name], forms.get(name, "{:.1f}")) for name in ("ms", "better", "index", "loader", "stacked", "computed", "kept")),
    )


def ground_truth(case: Case) -> str:
    """The predictions that an LDS needs: of models on 50 halves, for two seeds, trained by our loop and by the plain one."""
    test, seeds = images(500, seed=1).inputs, (0, 1)
    case = replace(case, recipe=replace(case.recipe, epochs=20))
    results: dict[str, list[Tensor]] = {"ours": [], "plain": []}

    def ours() -> None:
        trainer = Trainer(case.factory, get_loss(case.loss), case.recipe, case.data)
        for seed in seeds:
            results["ours"] += [predict(model, test) for model in packed(case, trainer, halves(5000, HALVES, seed), seed)]

    def plain() -> None:
        for seed in seeds:
            results["plain"] += [predict(index_loop(case, kept, seed), test) for kept in halves(5000, HALVES, seed)]

    took = {"ours": cpu_seconds(ours), "plain": cpu_seconds(plain)}
    ways = {name: torch.stack(outputs).double() for name, outputs in results.items()}
    difference = float((ways["ours"] - ways["plain"]).abs().max() / ways["plain"].std())
    if not difference < 0.01:
        raise SystemExit(f"the predictions differ by {difference:.2g} standard deviations")
    return (
        f"The ground truth of an LDS, end to end: {HALVES} halves of 5,000 rows x {len(seeds)} seeds, 20 epochs each of the logistic "
        f"regression, predictions on 500 rows. Ours, with the choice of the kind of pack: {took['ours']:.1f} s. The index loop: "
        f"{took['plain']:.1f} s, {took['plain'] / took['ours']:.1f} times as long. The largest difference of two predictions is "
        f"{difference:.1e} of their standard deviation."
    )


COLUMNS = (
    "case",
    "models per pack",
    "ms per model",
    "better plain loop / ours",
    "index loop / ours",
    "DataLoader / ours",
    "packs that do not share / ours",
    "% of sgemm, computed",
    "% of sgemm, kept rows",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each comparison")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/shared_batches.md")
    options = parser.parse_args()
    where = measured_on("torch")
    torch.set_num_threads(1)
    every = cases()
    sections = [
        " ".join(str(__doc__).split()),
        where,
        f"One core, {HALVES} halves of one seed, medians of {options.rounds} rounds, quartiles in parentheses:",
        table(COLUMNS, [compared(case, options.rounds) for case in every]),
        ground_truth(every[0]),
    ]
    publish("shared_batches", "The speed of packs that share a batch", sections, write=options.write)


if __name__ == "__main__":
    main()
