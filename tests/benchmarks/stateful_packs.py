"""Packs of models with dropout or batch normalisation: retrainings of one seed, compared with plain PyTorch loops on the same core.

The loops and the comparison are those of `shared_batches`: one model at a time on the kept rows of the same batches, by index or through
a DataLoader, with `torch.optim.SGD`; the ratio is to the better of the two. A plain loop seeds torch's generator as ours does, so masks
of dropout are equal, and the final parameters may differ by 1 % of the distance from the initial ones. A pack computes all rows of a
batch for each model, also those that the model does not keep: rows of weight zero are half of the work on halves, and a tenth where a
tenth of the rows is removed. CPU times are compared, in an order that alternates. "% of sgemm" is the rate of multiply-adds for the kept
rows, forward and backward, relative to a float32 1024 x 1024 product in the same minute. Images are random numbers around ten means.
ResNet-9 trains alone on a CPU, because its step is too large to gain from a pack. Goal: 1.3 times the better plain loop for ResNet-9.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from genrep_dist.core.losses import get_loss
from genrep_dist.problems.datasets.digits import Digits
from genrep_dist.problems.datasets.mnist_benchmark import Perceptron
from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.training.flop_count import forward_flop
from genrep_dist.training.randomness import Randomness
from genrep_dist.training.trainer import Trainer
from tests.benchmarks import measured_on, publish, spread, table
from tests.benchmarks.shared_batches import Case, cpu_seconds, images, index_loop, loader_loop, packed, parameters, sgemm

MODELS = 16
KEPT = {"halves": 0.5, "a tenth removed": 0.9}


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = inputs + self.layers(inputs)
        return result


def _block(inputs: int, outputs: int, pool: int = 1) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, *([nn.MaxPool2d(pool)] if pool > 1 else []))


def resnet9() -> nn.Module:
    """3x32x32 -> 10 logits; 6.6 million parameters."""
    return nn.Sequential(
        _block(3, 64),
        _block(64, 128, 2),
        Residual(_block(128, 128), _block(128, 128)),
        _block(128, 256, 2),
        _block(256, 512, 2),
        Residual(_block(512, 512), _block(512, 512)),
        nn.MaxPool2d(4),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def small_cnn() -> nn.Module:
    """The network on 8x8 digits with batch normalisation and dropout."""
    body = nn.Sequential(_block(1, 16, 2), _block(16, 32, 2))
    return nn.Sequential(body, nn.Flatten(), nn.Dropout(0.1), nn.Linear(128, 1))


def normalized_perceptron() -> nn.Module:
    hidden = (layer for a, b in ((784, 128), (128, 64)) for layer in (nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()))
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(64, 10))


@dataclass(frozen=True)
class Sized:
    case: Case
    models: int = MODELS


def cases() -> list[Sized]:
    mnist, digits = images(2000), Digits()
    colours = Dataset(torch.randn(128, 3, 32, 32, generator=torch.Generator().manual_seed(2)), images(128).targets, torch.arange(128))
    small = replace(digits.recipe, epochs=6)
    return [
        Sized(Case("perceptron 784-128-64-10 with dropout, batches of 64", Perceptron, "softmax", mnist, Recipe(1, 64, 0.01), 0)),
        Sized(Case("the same with batch normalisation", normalized_perceptron, "softmax", mnist, Recipe(1, 64, 0.01), 0)),
        Sized(Case("network on 8x8 digits with both, batches of 32", small_cnn, "logistic", digits.train_data(), small, 0)),
        Sized(Case("ResNet-9 with batch normalisation, batches of 32", resnet9, "softmax", colours, Recipe(1, 32, 0.01), 0), 2),
    ]


def subsets(num_rows: int, count: int, share: float) -> list[Tensor]:
    generator, found = torch.Generator().manual_seed(7), torch.zeros(count, num_rows, dtype=torch.bool)
    for own in found:
        own[torch.randperm(num_rows, generator=generator)[: int(share * num_rows)]] = True
    return list(found)


def compared(sized: Sized, share: float, rounds: int) -> tuple[str, ...]:
    """A row of the table."""
    case, found = sized.case, dict[str, list[float]]()
    trainer = Trainer(case.factory, get_loss(case.loss), case.recipe, case.data)
    # Backward takes twice the forward pass, forward_flop counts multiplications and additions.
    multiply_adds = 3 * forward_flop(case.factory(), case.data.inputs[:2]) // 2 * int(share * len(case.data.ids)) * case.recipe.epochs
    some = subsets(len(case.data.ids), sized.models, share)
    for number in range(rounds + 1):
        done: dict[str, nn.Module] = {}

        def ours(done: dict[str, nn.Module] = done) -> None:
            done["ours"] = packed(case, trainer, some, 0)[0]

        def plain(way: Callable[[Case, Tensor, int], nn.Module], name: str, done: dict[str, nn.Module] = done) -> None:
            torch.manual_seed(Randomness(0).number("train"))
            done[name] = way(case, some[0], 0)

        sides: list[tuple[str, Callable[[], object], int]] = [
            ("ours", ours, sized.models),
            ("index", lambda: plain(index_loop, "index"), 1),
            ("loader", lambda: plain(loader_loop, "loader"), 1),
        ]
        took = {name: cpu_seconds(work) / count for name, work, count in (sides if number % 2 else reversed(sides))}
        initial, expected = parameters(Randomness(0).build(case.factory)), parameters(done["index"])
        apart = float((parameters(done["ours"]) - expected).norm() / (expected - initial).norm())
        if not apart < 0.01:
            raise SystemExit(f"{case.name}: ours differs by {apart:.2g} of the distance from the initial parameters")
        if number:  # the first round is a warm-up
            values = {name: took[name] / took["ours"] for name in ("index", "loader")}
            rate = 100 * multiply_adds / took["ours"] / sgemm()
            values |= {"ms": 1e3 * took["ours"], "better": min(values.values()), "rate": rate}
            for name, value in values.items():
                found.setdefault(name, []).append(value)
    count = sum(p.numel() for p in case.factory().parameters())
    way = f"{trainer.pack_kind}{', shared' if trainer.shares_batches else ''}, {sized.models if trainer.pack_kind != 'solo' else 1}"
    forms = {"ms": "{:.0f}", "rate": "{:.0f}"}
    columns = (spread(found[name], forms.get(name, "{:.2f}")) for name in ("ms", "better", "index", "loader", "rate"))
    return (f"{case.name}; {count:,} parameters", way, *columns)


COLUMNS = (
    "case",
    "kind of pack, models",
    "ms per model",
    "better plain loop / ours",
    "index loop / ours",
    "DataLoader / ours",
    "% of sgemm, kept rows",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each comparison")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/stateful_packs.md")
    options = parser.parse_args()
    where = measured_on("torch")
    torch.set_num_threads(1)
    sections: list[str] = [" ".join(str(__doc__).split()), where]
    every: Sequence[Sized] = cases()
    for name, share in KEPT.items():
        sections += [
            f"One core, {name}, medians of {options.rounds} rounds, quartiles in parentheses:",
            table(COLUMNS, [compared(sized, share, options.rounds) for sized in every]),
        ]
    publish("stateful_packs", "The speed of packs with dropout and batch normalisation", sections, write=options.write)


if __name__ == "__main__":
    main()
