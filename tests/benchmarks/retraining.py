"""Training speed: our loop compared with a usual PyTorch loop on one core; packs with single models; two workers with one.

The plain loop is the usual PyTorch code, as in the retraining utilities of attribution libraries: a DataLoader over a TensorDataset,
contiguous convolutions with a ReLU before each pool, the mean loss of the batch, `zero_grad`, `backward`, `torch.optim.SGD`. Both loops use
the same rows in the same order and the same initial parameters. Their final parameters may differ by a share of the distance from the
initial ones: 1 %; with products of bfloat16 10 %, and for the text network 20 %. The order of the loops alternates; on a CPU their CPU
times are compared. "% of sgemm" is the rate of the multiply-adds of products, forward and backward, relative to the rate of a float32
1024 x 1024 product on the same core in the same minute, also in CPU time. The multiply-adds are those of our loop or, in the last column,
those of the plain loop for the same samples. The plain loop has more, because our loop leaves out what pools drop.
Goals on a CPU: 2 times the plain loop and 55% of sgemm; two workers 1.9 times one. Goals on a GPU, compared with the plain loop there: 30
times for the 93,825-parameter network, 10 times for the text network.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.pool import Pool

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

from genrep_dist.core.losses import get_loss
from genrep_dist.problems.datasets.digits import Digits
from genrep_dist.problems.datasets.text_models import TextCNN
from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.training.loop import TrainingRun, train, train_models
from genrep_dist.training.packs.compatibility import why_not_packed
from genrep_dist.training.packs.stacked import StackedPack
from genrep_dist.training.randomness import Randomness
from genrep_dist.training.trainer import Trainer
from tests.benchmarks import measured_on, publish, spread, table
from tests.benchmarks.tracking_cost import LargeDigits

SIZES = (1, 2, 4, 8, 16, 32, 64)
TORCH: dict[str, Callable[..., torch.optim.Optimizer]] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


@dataclass(frozen=True)
class Case:
    name: str
    factory: Callable[[], nn.Module]
    plain: Callable[[nn.Module], nn.Module]
    data: Dataset
    recipe: Recipe
    multiply_adds: int
    """Of one sample, forward and backward, in our loop."""
    plain_multiply_adds: int
    """In the plain loop."""
    apart: float = 0.01
    """Largest allowed distance between the two results, relative to their distance from the initial parameters."""


class PlainCNN(nn.Module):
    """The same layers in the usual order: ReLU, then pool."""

    def __init__(self, ours: nn.Module) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(m for m in ours.modules() if isinstance(m, nn.Conv2d))
        for convolution in self.convolutions:
            assert isinstance(convolution, nn.Conv2d)
            convolution.padding = (1, 1)
        self.linear = ours.get_submodule("linear")
        self.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def forward(self, inputs: Tensor) -> Tensor:
        for convolution in self.convolutions:
            inputs = nn.functional.max_pool2d(torch.relu(convolution(inputs)), 2)
        result: Tensor = self.linear(inputs.flatten(1))
        return result


class PlainTextCNN(nn.Module):
    """The same layers as a user writes them: ReLU, zeros at the padding, and at the end the maximum over the positions."""

    def __init__(self, ours: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(dict(ours.named_children()))

    def forward(self, inputs: Tensor) -> Tensor:
        padding = (inputs == 0).unsqueeze(1)
        hidden = self.layers["embedding"](inputs).transpose(1, 2)
        for name in ("conv1", "conv2", "conv3"):
            hidden = torch.relu(self.layers[name](hidden)).masked_fill(padding, 0.0)
        result: Tensor = self.layers["linear"](hidden.amax(dim=2))
        return result


class OwnCNN(nn.Module):
    """A user's network with layers that have no stacked version: PReLU, groups, a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1, groups=4)
        self.slope, self.linear, self.scale = nn.PReLU(16), nn.Linear(128, 1), nn.Parameter(torch.ones(1))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = nn.functional.max_pool2d(self.slope(self.conv1(inputs)), 2)
        hidden = nn.functional.max_pool2d(torch.relu(self.conv2(hidden)), 2)
        result: Tensor = self.linear(hidden.flatten(1)) * self.scale
        return result


def as_it_is(model: nn.Module) -> nn.Module:
    """The same network: the plain loop needs no other form."""
    return model


class InOrder(Sampler[int]):
    """The rows in the order of each epoch of our loop."""

    def __init__(self, randomness: Randomness, num_rows: int) -> None:
        self._randomness, self._num_rows, self._epoch = randomness, num_rows, 0

    def __iter__(self) -> Iterator[int]:
        self._epoch += 1
        yield from self._randomness.order(self._epoch, self._num_rows).tolist()

    def __len__(self) -> int:
        return self._num_rows


def plain_loop(case: Case, model: nn.Module, randomness: Randomness) -> None:
    """The usual PyTorch loop."""
    device = next(model.parameters()).device
    dataset = TensorDataset(case.data.inputs.cpu(), case.data.targets.cpu())
    loader = DataLoader(dataset, batch_size=case.recipe.batch_size, sampler=InOrder(randomness, len(dataset)))
    optimizer = TORCH[case.recipe.optimizer](model.parameters(), lr=case.recipe.learning_rate)
    criterion = nn.BCEWithLogitsLoss()
    model.train()
    for _ in range(case.recipe.epochs):
        for inputs, targets in loader:
            optimizer.zero_grad()
            criterion(model(inputs.to(device)).squeeze(1), targets.to(device)).backward()
            optimizer.step()


def text_data(num_rows: int, length: int) -> Dataset:
    """Sentences of 8 to ``length`` words with natural frequencies: the r-th most frequent has a share of about 1/r."""
    generator = torch.Generator().manual_seed(0)
    tokens = (30_521 ** torch.rand(num_rows, length, generator=generator)).long().clamp(1, 30_521)
    tokens[torch.arange(length) >= torch.randint(8, length + 1, (num_rows, 1), generator=generator)] = 0
    return Dataset(tokens, (torch.rand(num_rows, generator=generator) > 0.5).float(), torch.arange(num_rows))


def cases() -> list[Case]:
    large, small = LargeDigits(train_size=256, test_size=20), Digits()
    vision, plain_vision = (784 * 9 * 32 * 2 + 3 * (196 * 288 * 64 + places * 576 * 128 + 1152) for places in (36, 49))
    digits = 64 * 9 * 16 * 2 + 3 * (16 * 144 * 32 + 128)
    own = 64 * 9 * 16 * 2 + 3 * (16 * 36 * 32 + 128)
    found = [
        Case("digits as 28x28, VisionCNN", large.model, PlainCNN, large.train_data(), Recipe(1, 64, 0.05), vision, plain_vision),
        Case("digits 8x8, SmallCNN", small.model, PlainCNN, small.train_data(), replace(small.recipe, epochs=8), digits, digits),
        Case(
            "digits 8x8, layers without a stacked version",
            OwnCNN,
            as_it_is,
            small.train_data(),
            replace(small.recipe, epochs=8),
            own,
            own,
        ),
    ]
    for length, batch_size, num_rows in ((128, 16, 256), (40, 32, 512)):
        # The last convolution's two products in the backward pass use only the 200 windows that the pool keeps.
        others = length * (3 * (12_000 + 25_000) + 100_000) + 3 * 200
        text, plain_text = others + 2 * 200 * 500, others + 2 * length * 100_000
        name = f"text of {length} tokens, batches of {batch_size}, TextCNN"
        found.append(Case(name, TextCNN, PlainTextCNN, text_data(num_rows, length), Recipe(1, batch_size, 0.05), text, plain_text))
    return found


def rounded(cases: Sequence[Case]) -> list[Case]:
    """The paper's networks with products of bfloat16."""
    chosen = [case for case in cases if "8x8" not in case.name]
    return [
        replace(
            case,
            name=f"{case.name}, bfloat16",
            recipe=replace(case.recipe, precision="bfloat16"),
            # bfloat16 has 8 bits: many positions of a text share the largest value, and the first gets the gradient.
            apart=0.2 if "TextCNN" in case.name else 0.1,
        )
        for case in chosen
    ]


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """CPU time on a CPU, which depends least on other work on the machine; elapsed time on a GPU."""
    if device.type == "cpu":
        began = time.process_time()
        work()
        return time.process_time() - began
    began = time.perf_counter()
    work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - began


def parameters(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def sgemm(device: torch.device) -> float:
    """Multiply-adds per second of a float32 product."""
    matrix = torch.rand(1024, 1024, device=device)
    matrix @ matrix
    return 1024**3 / min(seconds(lambda: matrix @ matrix, device) for _ in range(5))


def ours(case: Case, trainer: Trainer, size: int, device: torch.device) -> tuple[Callable[[], object], list[nn.Module]]:
    """Training of ``size`` models as in a worker, and the models."""
    models = [Randomness(seed).build(case.factory).to(device) for seed in range(size)]
    return lambda: trainer.train_in_place(models, [TrainingRun(Randomness(seed)) for seed in range(size)]), models


def against_plain(case: Case, rounds: int, device: torch.device) -> tuple[str, ...]:
    """A row of the first table."""
    data = Dataset(case.data.inputs.to(device), case.data.targets.to(device), case.data.ids)
    trainer = Trainer(case.factory, get_loss("logistic"), case.recipe, data)
    size = trainer.pack_size()
    ratios, shares, plain_shares, rates = [], [], [], []
    for number in range(rounds + 1):
        packed, models = ours(case, trainer, size, device)
        plain_model = case.plain(Randomness(0).build(case.factory)).to(device)
        sides: dict[str, Callable[[], object]] = {"ours": packed, "plain": partial(plain_loop, case, plain_model, Randomness(0))}
        took = {name: seconds(sides[name], device) for name in (sides if number % 2 else reversed(sides))}
        check_alike(parameters(models[0]), parameters(plain_model), parameters(Randomness(0).build(case.factory).to(device)), case)
        samples = len(case.data.ids) * case.recipe.epochs * size
        if number:  # the first round is a warm-up
            rates.append(samples / took["ours"])
            ratios.append(took["plain"] * size / took["ours"])
            share = 100 * rates[-1] / sgemm(device)
            shares.append(share * case.multiply_adds)
            plain_shares.append(share * case.plain_multiply_adds)
    parameters_of_one = sum(p.numel() for p in case.factory().parameters())
    way = f"{trainer.pack_kind}, {size}"
    return (
        f"{case.name}; {parameters_of_one:,} parameters",
        way,
        spread(rates, "{:.0f}"),
        spread(ratios, "{:.2f}"),
        spread(shares, "{:.0f}"),
        spread(plain_shares, "{:.0f}"),
    )


def check_alike(mine: Tensor, plain: Tensor, initial: Tensor, case: Case) -> None:
    """Raise SystemExit if the two results differ by more than ``case.apart``."""
    share = float((mine - plain).norm() / (plain - initial).norm())
    if not share < case.apart:
        raise SystemExit(f"{case.name}: the results of the loops differ by {share:.2g} of their distance from the initial parameters")


def packs(case: Case, rounds: int, device: torch.device) -> tuple[list[tuple[str, ...]], str]:
    """Rows of the table of pack sizes, and a sentence on the comparison of the results."""
    data = Dataset(case.data.inputs.to(device), case.data.targets.to(device), case.data.ids)
    loss = get_loss("logistic")
    reason = why_not_packed(case.factory, loss, case.recipe, data)
    assert reason is None, reason
    took: dict[int, list[float]] = {size: [] for size in (0, *SIZES)}
    found: dict[int, Tensor] = {}
    for _ in range(rounds):
        for size, times in took.items():
            count = max(size, 1)
            models = [Randomness(seed).build(case.factory).to(device) for seed in range(count)]
            runs = [TrainingRun(Randomness(seed)) for seed in range(count)]
            if size:
                times.append(seconds(partial(train_models, models, loss, case.recipe, data, runs, kind=StackedPack), device) / count)
            else:
                times.append(seconds(partial(train, models[0], loss, case.recipe, data, Randomness(0)), device))
            found[size] = parameters(models[0])
    assert all(torch.equal(found[1], found[size]) for size in SIZES)
    difference = float((found[0] - found[1]).abs().max())
    rows: list[tuple[str, ...]] = [
        (
            "one by one" if size == 0 else f"pack of {size}",
            spread([1e3 * t for t in took[size]], "{:.1f}"),
            spread([a / b for a, b in zip(took[0], took[size], strict=True)], "{:.2f}"),
        )
        for size in took
    ]
    text = f"The first model has the same bits in all packs; its largest difference from the model trained alone is {difference:.1e}."
    return rows, text


def train_some(count: int) -> float:
    """Runs in a worker process: seconds for ``count`` trainings of the vision network, with one thread."""
    torch.set_num_threads(1)
    case, device = cases()[0], torch.device("cpu")
    trainer = Trainer(case.factory, get_loss("logistic"), case.recipe, case.data)
    began = time.perf_counter()
    for _ in range(count):
        ours(case, trainer, 1, device)[0]()
    return time.perf_counter() - began


def two_workers(rounds: int) -> str:
    """The rate of two workers together, relative to one."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(train_some, [1, 1], chunksize=1)
        ratios = [2 * rate_of(pool, 1) / rate_of(pool, 2) for _ in range(rounds)]
    return f"Two single-threaded workers train {spread(ratios, '{:.2f}')} times as many models as one in the same time (VisionCNN)."


def rate_of(pool: Pool, workers: int) -> float:
    """Mean seconds per worker for the same work."""
    return statistics.mean(pool.map(train_some, [6] * workers, chunksize=1))


def on_a_gpu(rounds: int) -> str:
    if not torch.cuda.is_available():
        return "On a GPU: not measured, because this machine has no CUDA device."
    device = torch.device("cuda")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    rows = [against_plain(case, rounds, device) for case in cases()]
    return f"On {torch.cuda.get_device_name(device)}, compared with the plain loop on it, in float32:\n\n{table(COLUMNS, rows)}"


COLUMNS = ("case", "kind of pack, models", "samples/s", "rate / plain loop", "% of sgemm", "% of sgemm, multiply-adds of the plain loop")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each comparison")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/retraining.md")
    options = parser.parse_args()
    where = measured_on("torch")
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    every = cases()
    rows = [against_plain(case, options.rounds, cpu) for case in every]
    pack_rows, checked = packs(every[1], max(3, options.rounds // 2), cpu)
    sections: Sequence[str] = [
        " ".join(str(__doc__).split()),
        where,
        f"One core, medians of {options.rounds} rounds, quartiles in parentheses:",
        table(COLUMNS, rows),
        "With `recipe.precision: bfloat16`, which rounds the factors of products to bfloat16, on the same core. The plain loop and sgemm "
        "are in float32:",
        table(COLUMNS, [against_plain(case, options.rounds, cpu) for case in rounded(every)]),
        f"Milliseconds per model of SmallCNN on 8x8 digits ({every[1].recipe.epochs} epochs of 250 rows) by the size of the pack, and the "
        f"rate relative to models trained one by one. {checked}",
        table(("models", "ms per model", "rate / one by one"), pack_rows),
        two_workers(max(3, options.rounds // 2)),
        on_a_gpu(options.rounds),
    ]
    publish("retraining", "The speed of training", sections, write=options.write)


if __name__ == "__main__":
    main()
