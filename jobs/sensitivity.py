"""Whether the order of methods on MNIST changes with the set-up of the experiment.

genrep data fetch mnist
python jobs/sensitivity.py size pair class policy optimizer --store store --to sensitivity

size: the number of training samples; networks are trained with equally many steps whatever it is. pair: the two digits. class: the class of
the test points, which divides the points of one run and trains nothing. policy: how models are retrained. optimizer: plain SGD and Adam.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import polars as pl
from rich.console import Console

from genrep_dist.cli.progress import ProgressLines
from genrep_dist.cli.terminal import accept_any_text
from genrep_dist.config import load_experiment
from genrep_dist.errors import GenRepError
from genrep_dist.paper.sensitivity import Variant, sensitivity_table, write_sensitivity
from genrep_dist.results import Run
from genrep_dist.runner.run import run

SAMPLES, STEPS = 500, 4000
SIZES = (250, 500, 1000, 2000)
PAIRS = ((3, 8), (4, 9), (0, 1))


POLICIES = ("same", "rebatch", "fresh")
OPTIMIZERS: dict[str, tuple[str, ...]] = {"sgd": (), "adam": ("recipe.optimizer=adam", "recipe.learning_rate=0.001")}


def measured(
    options: argparse.Namespace, size: int = SAMPLES, pair: tuple[int, int] = PAIRS[0], policy: str = POLICIES[0], optimizer: str = "sgd"
) -> Run:
    """The run of the experiment `paper/mnist-sensitivity` with ``size`` training samples of two classes."""
    parts = [str(size), *map(str, pair), *([policy] if policy != POLICIES[0] else []), *([optimizer] if optimizer != "sgd" else [])]
    overrides = [
        f"name=mnist-sensitivity-{'-'.join(parts)}",
        f"deletion.retrain={policy}",
        *OPTIMIZERS[optimizer],
        f"problem.options.train_size={size}",
        f"problem.options.classes=[{pair[0]}, {pair[1]}]",
        f"recipe.epochs={STEPS // size}",
        *options.set,
    ]
    progress = ProgressLines(Console(width=160))
    return run(load_experiment("paper/mnist-sensitivity", overrides), options.store, serial=options.serial, progress=progress)


def by_class(found: Run) -> list[Variant]:
    """All points, and those of each class: their mean in each network that has one."""
    labels = dict(zip(found.test.ids.tolist(), found.test.targets.tolist(), strict=True))
    rows = found.points().collect().with_columns(label=pl.col("test_id").replace_strict(labels, return_dtype=pl.Float64))
    pair = found.plan.experiment.problem.options["classes"]  # the label 1 is the second of them
    parts = []
    for title, chosen in (("both", rows), *((f"digit {digit}", rows.filter(label=place)) for place, digit in enumerate(pair))):
        means = chosen.group_by("metric", "method", "seed", maintain_order=True).agg(pl.col("value").mean(), test_id=pl.lit(0))
        parts.append(Variant(title, means))
    return parts


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vary", nargs="+", choices=["size", "pair", "class", "policy", "optimizer"])
    parser.add_argument("--store", default="store")
    parser.add_argument("--to", type=Path, default=Path("sensitivity"))
    parser.add_argument("--serial", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="change a field of every experiment")
    options = parser.parse_args(given)
    for vary in options.vary:
        if vary == "size":
            variants = [Variant(f"{size:,}", measured(options, size).points().collect()) for size in SIZES]
            heading, label = "Order of methods by number of training samples", "training samples"
        elif vary == "pair":
            variants = [Variant(f"{a} and {b}", measured(options, pair=(a, b)).points().collect()) for a, b in PAIRS]
            heading, label = "Order of methods by pair of digits", "pair of digits"
        elif vary == "policy":
            variants = [Variant(policy, measured(options, policy=policy).points().collect()) for policy in POLICIES]
            heading, label = "Order of methods by the way of retraining", "deletion.retrain"
        elif vary == "optimizer":
            variants = [Variant(name, measured(options, optimizer=name).points().collect()) for name in OPTIMIZERS]
            heading, label = "Order of methods by optimizer", "optimizer"
        else:
            variants = by_class(measured(options))
            heading, label = "Order of methods by class of the test points", "test points"
        methods = load_experiment("paper/mnist-sensitivity").methods
        for path in write_sensitivity(options.to, vary, heading, label, sensitivity_table(variants, methods)):
            print(path)


if __name__ == "__main__":
    accept_any_text()
    try:
        main()
    except GenRepError as error:
        sys.exit(f"error: {error}")
