"""Whether the order of methods on MNIST changes with the set-up of the experiment.

genrep data fetch mnist
python jobs/sensitivity.py size pair class policy optimizer precision --store store --to sensitivity

size: the number of training samples; networks are trained with equally many steps whatever it is. pair: the two digits. class: the class of
the test points, which divides the points of one run and trains nothing. policy: how models are retrained. optimizer: plain SGD and Adam.
precision: training in full precision, and with products of bfloat16.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import polars as pl
from rich.console import Console

from genrep_dist.cli.progress import ProgressLines
from genrep_dist.cli.script import output_folder, run_script
from genrep_dist.config import load_experiment
from genrep_dist.paper.sensitivity import Variant, sensitivity_table, write_sensitivity
from genrep_dist.results import Run
from genrep_dist.runner.run import run

EXPERIMENT = "paper/mnist-sensitivity"


def _size(rows: int) -> tuple[str, ...]:
    """As many steps as 8 epochs of 500 samples."""
    return f"problem.options.train_size={rows}", f"recipe.epochs={4000 // rows}"


SETUPS: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "size": ("number of training samples", {"250": _size(250), "500": (), "1,000": _size(1000), "2,000": _size(2000)}),
    "pair": (
        "pair of digits",
        {"3 and 8": (), "4 and 9": ("problem.options.classes=[4, 9]",), "0 and 1": ("problem.options.classes=[0, 1]",)},
    ),
    "policy": ("deletion.retrain", {"same": (), "rebatch": ("deletion.retrain=rebatch",), "fresh": ("deletion.retrain=fresh",)}),
    "optimizer": ("optimizer", {"sgd": (), "adam": ("recipe.optimizer=adam", "recipe.learning_rate=0.001")}),
    "precision": ("recipe.precision", {"full": (), "bfloat16": ("recipe.precision=bfloat16",)}),
}
"""What is varied: its name -> its label, and the changes of each set-up; no changes: the experiment as it is."""


def measured(options: argparse.Namespace, title: str = "", changes: tuple[str, ...] = ()) -> Run:
    """The run of the experiment with these changes, named after ``title``; without changes, the run that all set-ups share."""
    name = f"name=mnist-sensitivity-{title.replace(' ', '-').replace(',', '')}"
    experiment = load_experiment(EXPERIMENT, [*((name, *changes) if changes else ()), *options.set])
    return run(experiment, options.store, serial=options.serial, progress=ProgressLines(Console(width=160)))


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
    parser.add_argument("vary", nargs="+", choices=["class", *SETUPS])
    parser.add_argument("--store", default="store")
    parser.add_argument("--to", type=Path, default=Path("sensitivity"))
    parser.add_argument("--serial", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="change a field of every experiment")
    options = parser.parse_args(given)
    folder = output_folder(options.to)
    for vary in options.vary:
        if vary == "class":
            label, variants = "class of the test points", by_class(measured(options))
        else:
            label, setups = SETUPS[vary]
            variants = [Variant(title, measured(options, title, changes).points().collect()) for title, changes in setups.items()]
        methods = load_experiment(EXPERIMENT).methods
        for path in write_sensitivity(folder, vary, f"Order of methods by {label}", label, sensitivity_table(variants, methods)):
            print(path)


if __name__ == "__main__":
    run_script(main)
