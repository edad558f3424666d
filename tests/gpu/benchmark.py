"""Speed on a GPU beside plain PyTorch on the same GPU, in one run: packs of models, per-sample gradients, grams. Prints Markdown.

Ratios compare both sides after the same number of rounds, alternating; the median of the rounds. Results are compared before the timing.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from genrep_dist.core.gradients.functional import torch_func_gradients
from genrep_dist.core.gradients.model import trainable_parameters
from genrep_dist.core.gradients.per_sample import factored_gradients, per_sample_gradients
from genrep_dist.core.losses import get_loss
from genrep_dist.problems.datasets.image_models import SmallCNN, VisionCNN
from genrep_dist.problems.datasets.text_models import TextCNN
from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.training.fast_paths import FastPaths
from genrep_dist.training.graphs.base import StepGraphs
from genrep_dist.training.graphs.cuda import CudaGraph
from genrep_dist.training.graphs.emulated import EmulatedGraph
from genrep_dist.training.loop import TrainingRun, train_models
from genrep_dist.training.packs.base import Pack, Solo
from genrep_dist.training.precision import full_precision_products
from genrep_dist.training.randomness import Randomness
from genrep_dist.training.trainer import PACKS, Trainer
from tests.gpu.examples import parameters_of

ROUNDS = 3
LONG_SECONDS = 4.0
"""Of a round; then one more is measured, not three."""
SLOTS = {"cuda": (1, 8, 64, 256), "cpu": (1, 8)}
"""Models of a pack. A CPU takes just enough to see that the script runs."""
EPOCHS, ROWS = {"cuda": 4, "cpu": 2}, {"cuda": 2048, "cpu": 64}
LOSS = get_loss("logistic")
Line = tuple[str, ...]


def mnist_regression() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 1))


def images(size: int) -> Callable[[int, torch.Generator], Tensor]:
    return lambda rows, generator: torch.rand(rows, 1, size, size, generator=generator)


def tokens(rows: int, generator: torch.Generator) -> Tensor:
    return (30_521 ** torch.rand(rows, 128, generator=generator)).long().clamp(1, 30_521)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int, torch.Generator], Tensor]]] = {
    "logistic regression, 785 parameters": (mnist_regression, images(28)),
    "SmallCNN, 4,929 parameters": (SmallCNN, images(8)),
    "VisionCNN, 93,825 parameters": (VisionCNN, images(28)),
    "TextCNN, 1,602,257 parameters": (TextCNN, tokens),
}


def example(name: str, rows: int, device: torch.device) -> tuple[Callable[[], nn.Module], Dataset]:
    factory, inputs = MODELS[name]
    generator = torch.Generator().manual_seed(0)
    data = inputs(rows, generator)
    targets = (torch.rand(rows, generator=generator) > 0.5).float()
    return factory, Dataset(data.to(device), targets.to(device), torch.arange(rows))


def seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def medians(works: Sequence[Callable[[], object]], device: torch.device) -> list[float]:
    """Seconds of each of ``works``: the median of rounds in which all of them run in turn, after one that does not count."""
    first = sum(seconds(work, device) for work in works)
    rounds = [[seconds(work, device) for work in works] for _ in range(ROUNDS if first < LONG_SECONDS and device.type == "cuda" else 1)]
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def packs(name: str, rows: int, device: torch.device) -> list[Line]:
    """Samples per second of packs, without graphs and with them, and of a loop over index blocks with the same rows and parameters."""
    factory, data = example(name, rows, device)
    recipe = Recipe(epochs=EPOCHS[device.type], batch_size=32, learning_rate=0.05)
    run, graphs = TrainingRun(Randomness(0)), StepGraphs(CudaGraph if device.type == "cuda" else EmulatedGraph)
    # Of a table of 30,522 tokens the sparse gradient cannot be captured, the dense one can.
    dense = FastPaths(sparse_embeddings=False)
    trainer, graphed = Trainer(factory, LOSS, recipe, data), Trainer(factory, LOSS, recipe, data, dense, graphs)

    def plain(epochs: int) -> nn.Module:
        model = trainer.build(run.randomness)
        optimizer = torch.optim.SGD(model.parameters(), lr=recipe.learning_rate)
        for epoch in range(1, epochs + 1):
            for block in run.randomness.order(epoch, rows).to(device).split(recipe.batch_size):  # type: ignore[no-untyped-call]
                optimizer.zero_grad()
                loss = nn.functional.binary_cross_entropy_with_logits(model(data.inputs[block])[:, 0], data.targets[block])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return model

    for own in (None, graphs):
        require_equal(name, recipe, data, PACKS[trainer.pack_kind], own, [trainer.build(run.randomness) for _ in range(2)], plain(1))
    lines: list[Line] = []
    for slots in SLOTS[device.type]:
        runs = [run] * slots
        try:
            works = partial(trainer.train_all, runs), partial(graphed.train_all, runs), partial(plain, recipe.epochs)
            without, replayed, loop = (rows * recipe.epochs / each for each in medians(works, device))
        except torch.OutOfMemoryError:
            lines.append((name, trainer.pack_kind, str(slots), *["-"] * 5, "out of memory"))
            continue
        ours, theirs = slots * without, slots * replayed
        rates = f"{ours:,.0f}", f"{theirs:,.0f}", f"{loop:,.0f}", f"{ours / loop:.1f}", f"{theirs / loop:.1f}"
        lines.append((name, trainer.pack_kind, str(slots), *rates, graphs.summary))
    return lines


def require_equal(
    name: str, recipe: Recipe, data: Dataset, kind: type[Pack], graphs: StepGraphs | None, models: list[nn.Module], expected: nn.Module
) -> None:
    """Ends the program unless new ``models`` have the ``expected`` parameters after one epoch, to rounding, which more steps amplify."""
    models, start = models[: 1 if kind is Solo else len(models)], parameters_of(models[0])
    paths = FastPaths(sparse_embeddings=False)
    runs = [TrainingRun(Randomness(0))] * len(models)
    train_models(models, LOSS, replace(recipe, epochs=1), data, runs, kind=kind, fast_paths=paths, graphs=graphs)
    for model in models:
        off = float((parameters_of(model) - parameters_of(expected)).norm() / (parameters_of(expected) - start).norm())
        if not off < 0.02:
            raise SystemExit(f"{name}: the results differ by {off:.3g} of the way from the initial parameters")


def gradients(name: str, rows: int, device: torch.device) -> Line:
    """Rows per second of per-sample gradients: factors, dense rows, vmap(grad), and the backward pass of the batch alone."""
    factory, data = example(name, rows, device)
    torch.manual_seed(0)
    model = factory().eval().to(device)
    names = tuple(trainable_parameters(model))

    def mapped() -> Tensor:
        found = torch_func_gradients(model, data.inputs, None, names)
        return torch.cat([found[one].flatten(2) for one in names], dim=2)

    def backward() -> None:
        model.zero_grad()
        model(data.inputs).sum().backward()

    dense, expected = per_sample_gradients(model, data.inputs), mapped()
    off = float(((dense - expected).norm(dim=2) / expected.norm(dim=2).clamp_min(1e-12)).max())
    if not off < 1e-3:
        raise SystemExit(f"{name}: the gradients differ by {off:.3g}")
    del dense, expected
    works = [lambda: factored_gradients(model, data.inputs), lambda: per_sample_gradients(model, data.inputs), mapped, backward]
    factors, rows_dense, theirs, floor = medians(works, device)
    return (
        name,
        *(f"{rows / each:,.0f}" for each in (factors, rows_dense, theirs)),
        f"{theirs / factors:.1f}",
        f"{100 * floor / factors:.0f} %",
    )


def grams(name: str, rows: int, device: torch.device) -> Line:
    """Multiply-adds per second of dense gradients' products in a gram, relative to one large float32 product and to copying the rows."""
    factory, data = example(name, rows, device)
    torch.manual_seed(0)
    model = factory().eval().to(device)
    dense = per_sample_gradients(model, data.inputs)[:, 0]
    operand = factored_gradients(model, data.inputs).as_operand()
    size = 8192 if device.type == "cuda" else 1024
    square = torch.randn(size, size, device=device)
    if not torch.allclose(operand.inner(operand), dense @ dense.T, rtol=1e-3, atol=1e-3 * float((dense @ dense.T).abs().max())):
        raise SystemExit(f"{name}: the grams differ")
    factored, plain, product, copied = medians(
        [lambda: operand.inner(operand), lambda: dense @ dense.T, lambda: square @ square, dense.clone], device
    )
    work, peak = rows * rows * dense.shape[1], size**3 / product
    return (
        name,
        f"{rows:,}",
        f"{work / factored / 1e12:.2f}",
        f"{work / plain / 1e12:.2f}",
        f"{peak / 1e12:.2f}",
        f"{100 * work / factored / peak:.0f} %",
        f"{2 * dense.nbytes / copied / 1e9:,.0f}",
    )


def table(headings: Line, rows: Sequence[Line]) -> str:
    lines = [headings, (":--", *("--:" for _ in headings[1:])), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


class Page:
    """The report. It is written to its file after each model, so that a run that is stopped leaves what it has measured."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._parts: list[str] = []

    @property
    def text(self) -> str:
        return "\n".join(self._parts)

    def add(self, *parts: str) -> None:
        self._parts += parts
        if self._file is not None:
            self._file.write_text(self.text, encoding="utf-8")

    def add_table(self, headings: Line, rows: Iterable[Sequence[Line]]) -> None:
        lines: list[Line] = []
        for some in rows:
            if lines:
                self._parts.pop()
            lines += some
            self.add(table(headings, lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rows", type=int, help="rows of the training set")
    parser.add_argument("--to", type=Path, help="also write the page to this file")
    options = parser.parse_args()
    device = torch.device(options.device)
    full_precision_products()
    rows: int = options.rows or ROWS[device.type]
    on = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    named = "CUDA graphs" if device.type == "cuda" else "emulated graphs"
    page = Page(options.to)
    page.add(
        "# Speed on a GPU\n",
        f"Measured on {on}, torch {torch.__version__}, CUDA {torch.version.cuda}, Python {platform.python_version()}, in float32 without "
        f"TF32. Medians of {ROUNDS} rounds, both sides in turn; of one where a round takes long.\n",
        "## Packs of models\n",
        f"Training samples per second of all models of a pack, without graphs and with {named} (capture and comparisons included, dense "
        "gradients of embeddings), and of a loop over index blocks for one model; ratios to the loop. Batches of 32, trainings of "
        f"{EPOCHS[device.type] * rows // 32} steps.\n",
    )
    page.add_table(
        ("model", "pack", "models", "ours", "with graphs", "loop", "ratio", "with graphs", "note"),
        (packs(name, rows, device) for name in MODELS),
    )
    page.add(
        "## Per-sample gradients\n",
        "Rows per second. Floor: one forward and backward pass of the batch, as a share of the time of the factors.\n",
    )
    page.add_table(
        ("model", "factors", "dense rows", "vmap(grad)", "factors / vmap", "floor"),
        ([gradients(name, min(rows, 512), device)] for name in MODELS if "Text" not in name),
    )
    page.add(
        "## Grams\n",
        "Multiply-adds per second in 10^12, counted for dense rows; share of one float32 product of 8,192 x 8,192; GB/s of copying rows.\n",
    )
    page.add_table(
        ("model", "rows", "factored", "dense", "product", "factored / product", "copy"),
        ([grams(name, rows, device)] for name in MODELS if "Text" not in name),
    )
    print(page.text)


if __name__ == "__main__":
    main()
