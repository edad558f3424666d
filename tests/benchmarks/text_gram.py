"""The NTK gram of the paper's text network (1,602,257 parameters) from factored features, compared with dense rows: bytes and seconds.

Factored: features of all rows are computed, written, read and multiplied as in the stages. Dense: the same with rows of 1,602,257 numbers
from vmap(grad), in files of 64 MiB (10 rows). Dense rows are measured on fewer rows and scaled up: computing and writing grow with the
number of rows, reading and multiplying with the number of pairs of blocks. Three dense results are given: with blocks of one file, with the
largest blocks within the same memory budget, and a lower bound for all dense methods, in which every row is written and read once and the
gram is one matrix product at full speed. One thread. The texts are real comments (the toxicity data in the cache), or, if there are none,
tokens with Zipf's frequencies.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genrep_dist.core.gradients.functional import torch_func_gradients
from genrep_dist.core.gradients.inspection import feature_sizes, inspect_model
from genrep_dist.core.gradients.model import trainable_parameters
from genrep_dist.core.gradients.per_sample import factored_gradients
from genrep_dist.core.losses import get_loss
from genrep_dist.errors import GenRepError
from genrep_dist.problems.datasets.text_models import TextCNN
from genrep_dist.problems.load import load_problem
from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.store import Store
from genrep_dist.store.artifacts import Artifact
from genrep_dist.store.feature_table import COLUMNS, TABLE
from genrep_dist.store.features import RowsReader, write_block
from genrep_dist.training.loop import train
from genrep_dist.training.randomness import Randomness
from genrep_dist.workflow.blocks import SHARD_BYTES
from genrep_dist.workflow.gram_tiles import feature_products, gram_tile
from tests.benchmarks import measured_on, publish, table

ROWS, DENSE_ROWS, BUDGET_BYTES = 2000, 60, 2 * 2**30
BLOCK = 256


def comments(rows: int) -> tuple[Dataset, str]:
    """Real comments, or tokens with Zipf's frequencies and lengths from 20 to 128."""
    try:
        problem: Any = load_problem("toxicity", {"train_size": rows}, ())
        inputs, targets, ids = problem.train_data()
        return Dataset(inputs, targets, ids), "real comments"
    except GenRepError:
        generator = torch.Generator().manual_seed(0)
        tokens = torch.multinomial(1 / torch.arange(1, 30_522.0), rows * 128, replacement=True, generator=generator).view(rows, 128) + 1
        lengths = torch.randint(20, 129, (rows, 1), generator=generator)
        tokens = tokens.masked_fill(torch.arange(128) >= lengths, 0)
        return Dataset(tokens, (torch.arange(rows) % 2).float(), torch.arange(rows)), "rows of random tokens"


def trained(data: Dataset) -> nn.Module:
    """The network after one epoch, so that its ReLUs give zeros as in a trained network."""
    randomness = Randomness(0)
    recipe = Recipe(epochs=1, batch_size=16, learning_rate=0.1)
    return train(randomness.build(TextCNN), get_loss("logistic"), recipe, data, randomness).eval()


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def factored(model: nn.Module, inputs: Tensor, artifact: Artifact) -> dict[str, Any]:
    """Seconds to compute and write all features, and to compute the gram from the stored features; bytes; the gram."""
    rows = len(inputs)
    starts = range(0, rows, BLOCK)
    artifact.create(TABLE, (rows, len(COLUMNS)), (BLOCK, len(COLUMNS)), "int64", ("train", "column"))

    def write() -> int:
        return sum(write_block(artifact, f"rows-{a:09d}", a, factored_gradients(model, inputs[a : a + BLOCK])) for a in starts)

    feature_seconds, num_bytes = timed(write)
    artifact.commit({}, [f"rows-{a:09d}" for a in starts])
    reader = RowsReader(artifact)
    gram_seconds, gram = timed(lambda: gram_tile(feature_products(reader.read, BLOCK), (0, rows), (0, rows), BLOCK))
    return {"features": feature_seconds, "gram": gram_seconds, "bytes": num_bytes, "result": gram}


def dense_rows(model: nn.Module, inputs: Tensor) -> Tensor:
    names = tuple(trainable_parameters(model))
    found = torch_func_gradients(model, inputs, None, names)
    return torch.cat([found[name].flatten(1) for name in names], dim=1)


def dense(model: nn.Module, inputs: Tensor, artifact: Artifact, rows: int) -> dict[str, Any]:
    """Seconds of dense rows for ``rows`` rows, scaled up from those of ``inputs``."""
    count, width = len(inputs), sum(p.numel() for p in model.parameters())
    block = SHARD_BYTES // (4 * width)
    artifact.create("features", (count, width), (block, width), "float32", ("train", "parameter"))

    def write() -> None:
        for start in range(0, count, block):
            artifact.write_part(f"rows-{start:09d}", "features", (start, 0), dense_rows(model, inputs[start : start + block]).numpy())

    feature_seconds, _ = timed(write)
    artifact.commit({})
    reader = artifact.reader("features")
    read: Callable[[int, int], Tensor] = lambda start, stop: torch.from_numpy(reader.read(slice(start, stop)))  # noqa: E731
    gram_seconds, gram = timed(lambda: gram_tile(feature_products(read, block), (0, count), (0, count), block))
    read_seconds, whole = timed(lambda: read(0, count))
    product_seconds = min(timed(lambda: whole @ whole.T)[0] for _ in range(3))
    pairs = _pairs(-(-count // block))
    small = gram_seconds / pairs * _pairs(-(-rows // block))
    # The largest block: two blocks and the memory for reading one fit half the budget.
    large_block = BUDGET_BYTES // 2 // (3 * 4 * width)
    blocks = -(-rows // large_block)
    per_row = read_seconds / count
    products = product_seconds / count**2 * rows**2 / 2
    large = _pairs(blocks) * large_block * per_row + products
    return {
        "features": feature_seconds * rows / count,
        "small": small,
        "large": large,
        "least": rows * per_row + products,
        "result": gram,
        "block": block,
        "large_block": large_block,
    }


def _pairs(blocks: int) -> int:
    return blocks * (blocks + 1) // 2


def report(data: Dataset, kind: str, folder: Path, rows: int, subset: int) -> list[str]:
    model = trained(data)
    inputs = data.inputs
    few = dense(model, inputs[:subset], Store(str(folder)).artifact("features", "de" * 32), rows)
    mine = factored(model, inputs, Store(str(folder)).artifact("features", "fa" * 32))
    difference = float(np.abs(mine["result"][:subset, :subset] - few["result"]).max() / np.abs(few["result"]).max())
    if difference > 1e-4:
        raise SystemExit(f"the two grams differ: {difference:g}")
    width = sum(p.numel() for p in model.parameters())
    bytes_each = mine["bytes"] / rows
    total = mine["features"] + mine["gram"]
    lengths = (inputs != 0).sum(dim=1)
    ways = {
        f"dense, blocks of {few['block']} rows (one file each)": few["small"],
        f"dense, blocks of {few['large_block']} rows (as many as fit the budget)": few["large"],
        "dense, lower bound": few["least"],
    }
    lines = [["factored", f"{bytes_each / 1e3:,.0f}", f"{mine['features']:,.1f}", f"{mine['gram']:,.1f}", "1.0", "1.0"]]
    for name, seconds in ways.items():
        both = few["features"] + seconds
        lines.append(
            [
                name,
                f"{4 * width / 1e3:,.0f}",
                f"{few['features']:,.0f}",
                f"{seconds:,.0f}",
                f"{seconds / mine['gram']:,.1f}",
                f"{both / total:,.1f}",
            ]
        )
    sizes = feature_sizes(inspect_model(model, inputs[:2]))
    return [
        f"{rows:,} {kind} with a median of {statistics.median(lengths.tolist()):.0f} tokens (at most {inputs.shape[1]}); memory budget "
        f"{BUDGET_BYTES / 2**30:.0f} GiB; dense rows measured on {subset}. As factors, a sample takes {4 * width / bytes_each:,.0f} times "
        f"fewer bytes, and a pair of samples at most {sizes.multiply_adds:,} multiply-adds instead of {width:,}. The two grams of {subset} "
        f"rows differ by {difference:.0e} of the largest entry. In memory a sample has {_numbers(model, inputs):,.0f} numbers.",
        table(["method", "kB per sample", "seconds, features", "seconds, gram", "gram / factored", "sum / factored"], lines),
    ]


def _numbers(model: nn.Module, inputs: Tensor) -> float:
    found = factored_gradients(model, inputs[:64])
    return found.numel / len(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--dense-rows", type=int, default=DENSE_ROWS, help="rows on which dense rows are measured")
    parser.add_argument("--folder", help="folder of the temporary store; default: the system's temporary folder")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/text_gram.md")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    where = measured_on("torch", "zarr")
    data, kind = comments(asked.rows)
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        parts = report(data, kind, Path(folder), asked.rows, asked.dense_rows)
    publish("text_gram", "The NTK gram of the text network", [" ".join(str(__doc__).split()), where, *parts], write=asked.write)


if __name__ == "__main__":
    main()
