"""Speed on a GPU beside plain PyTorch on the same GPU, in one run: packs of models, per-sample gradients, grams. Prints Markdown.

Ratios compare both sides after the same number of rounds, alternating; the median of the rounds. Results are compared before the timing.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Sequence
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
from genrep_dist.training.loop import TrainingRun
from genrep_dist.training.precision import full_precision_products
from genrep_dist.training.randomness import Randomness
from genrep_dist.training.trainer import Trainer
from tests.gpu.examples import parameters_of

ROUNDS = 3
LONG_SECONDS = 4.0
"""Of a round; then one more is measured, not three."""
EPOCHS = {"cuda": {1: 8, 8: 8, 64: 4, 256: 2}, "cpu": {1: 2, 8: 2}}
"""Of a training, by the number of models in a pack. A CPU takes just enough to see that the script runs."""
ROWS = {"cuda": 2048, "cpu": 64}
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
    recipe = Recipe(epochs=1, batch_size=32, learning_rate=0.05)
    trainer = Trainer(factory, LOSS, recipe, data)
    run = TrainingRun(Randomness(0))
    # Of a table of 30,522 tokens the sparse gradient cannot be captured, the dense one can.
    dense, graph = FastPaths(sparse_embeddings=False), CudaGraph if device.type == "cuda" else EmulatedGraph

    def plain() -> nn.Module:
        model = trainer.build(run.randomness)
        optimizer = torch.optim.SGD(model.parameters(), lr=recipe.learning_rate)
        for block in run.randomness.order(1, rows).to(device).split(recipe.batch_size):  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
            loss = nn.functional.binary_cross_entropy_with_logits(model(data.inputs[block])[:, 0], data.targets[block])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return model

    expected, found = plain(), trainer.train(run)
    start, theirs, ours_once = (parameters_of(model) for model in (trainer.build(run.randomness), expected, found))
    off = float((ours_once - theirs).norm() / (theirs - start).norm())
    if not off < 0.02:
        raise SystemExit(f"{name}: the results differ by {off:.3g} of the way from the initial parameters")
    lines: list[Line] = []
    for slots, epochs in EPOCHS[device.type].items():
        longer, runs, graphs = replace(recipe, epochs=epochs), [run] * slots, StepGraphs(graph)
        trainers = Trainer(factory, LOSS, longer, data), Trainer(factory, LOSS, longer, data, dense, graphs)
        kind = trainer.pack_kind
        try:
            plainly, replayed = (one.train_all(runs) for one in trainers)
            require_equal(name, plainly, replayed, start)
            ours, graphed, loop = medians([*(partial(one.train_all, runs) for one in trainers), plain], device)
        except torch.OutOfMemoryError:
            lines.append((name, kind, str(slots), *["-"] * 5, "out of memory"))
            continue
        done, once = slots * rows * epochs, rows / loop
        rates = (f"{done / ours:,.0f}", f"{done / graphed:,.0f}", f"{once:,.0f}")
        ratios = (f"{done / ours / once:.1f}", f"{done / graphed / once:.1f}")
        lines.append((name, kind, str(slots), *rates, *ratios, graphs.summary))
    return lines


def require_equal(name: str, plainly: Sequence[object], replayed: Sequence[object], start: Tensor) -> None:
    """Ends the program unless the first and the last model are the same with graphs and without, to rounding."""
    for place in (0, -1):
        one, other = plainly[place], replayed[place]
        assert isinstance(one, nn.Module)
        assert isinstance(other, nn.Module)
        theirs, ours = parameters_of(one), parameters_of(other)
        off = float((ours - theirs).norm() / (theirs - start).norm())
        if not off < 0.02:
            raise SystemExit(f"{name}: with graphs the results differ by {off:.3g} of the way from the initial parameters")


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
    steps = ", ".join(str(epochs * rows // 32) for epochs in EPOCHS[device.type].values())
    named = "CUDA graphs" if device.type == "cuda" else "emulated graphs"
    parts = [
        "# Speed on a GPU\n",
        f"Measured on {on}, torch {torch.__version__}, CUDA {torch.version.cuda}, Python {platform.python_version()}, in float32 without "
        f"TF32. Medians of {ROUNDS} rounds, both sides in turn.\n",
        "## Packs of models\n",
        f"Training samples per second of all models of a pack, with {named} (capture and comparisons included, embeddings with dense "
        f"gradients) and without, and of a loop over index blocks for one model; ratios to the loop. Batches of 32, trainings of {steps} "
        "steps.\n",
        table(
            ("model", "pack", "models", "ours", "with graphs", "loop", "ratio", "with graphs", "note"),
            [line for name in MODELS for line in packs(name, rows, device)],
        ),
        "## Per-sample gradients\n",
        "Rows per second. Floor: one forward and backward pass of the batch, as a share of the time of the factors.\n",
        table(
            ("model", "factors", "dense rows", "vmap(grad)", "factors / vmap", "floor"),
            [gradients(name, min(rows, 512), device) for name in MODELS if "Text" not in name],
        ),
        "## Grams\n",
        "Multiply-adds per second in 10^12, counted for dense rows; share of one float32 product of 8,192 x 8,192; GB/s of copying rows.\n",
        table(
            ("model", "rows", "factored", "dense", "product", "factored / product", "copy"),
            [grams(name, rows, device) for name in MODELS if "Text" not in name],
        ),
    ]
    page = "\n".join(parts)
    print(page)
    if options.to is not None:
        options.to.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
