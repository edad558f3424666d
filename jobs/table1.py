"""Write the paper's Table 1 beside ours, for any of its data sets, at one size.

python jobs/table1.py mnist cifar10 toxicity newsgroups --profile cpu --store store --to table1
python jobs/table1.py mnist --profile cpu --optimizer adam
python jobs/table1.py mnist cifar10 --profile desk --tune mnist
python jobs/table1.py mnist cifar10 --profile desk --set cifar10:seeds=10
ray job submit --working-dir . -- python jobs/table1.py mnist --profile paper --store s3://bucket/store --address auto
"""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console

from genrep_dist.cli.progress import ProgressLines
from genrep_dist.cli.script import output_folder, run_script
from genrep_dist.config import load_experiment
from genrep_dist.errors import ConfigError
from genrep_dist.paper.published import PAPER, REPLACES
from genrep_dist.paper.table1 import last_layer_experiment, measured_column, tuned_experiments
from genrep_dist.paper.table1_files import write_table1
from genrep_dist.runner.run import run


def changes_of(name: str, options: argparse.Namespace) -> list[str]:
    """The declared changes of every experiment and of the experiment of ``name``."""
    changes = []
    for change in options.set:
        data, colon, rest = change.partition(":")
        if not colon or "=" in data:
            changes.append(change)
        elif data not in options.data:
            raise ConfigError(
                "a change of a data set that is not measured",
                where=f"--set {change}",
                expected=", ".join(options.data),
                got=data,
                remedy="remove this change, or name the data set before the options",
            )
        elif data == name:
            changes.append(rest)
    return changes


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", choices=[*PAPER, *REPLACES], help="newsgroups replaces agnews")
    parser.add_argument("--profile", default="cpu", help="smoke, cpu, desk, gpu or paper")
    parser.add_argument("--optimizer", help="train with adam, adamw or rmsprop at a rate of 0.001 instead of the problem's plain SGD")
    parser.add_argument(
        "--tune",
        nargs="*",
        metavar="DATA",
        help="add rows of the surrogate and of influence with lambda and damping tuned: for these data sets, or without names for all",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="[DATA:]A.B=VALUE",
        help="change a field of every experiment, or of that of one data set",
    )
    parser.add_argument("--store", default="store")
    parser.add_argument("--to", type=Path, help="folder of table1.md, .html, .png and .parquet; default: table1-PROFILE")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--serial", action="store_true")
    where.add_argument("--address")
    options = parser.parse_args(given)
    options.data = list(dict.fromkeys(options.data))
    tuned = options.data if options.tune == [] else options.tune or []
    unknown = ", ".join(name for name in tuned if name not in options.data)
    if unknown:
        remedy = "name the data set before the options too"
        raise ConfigError("a data set that is not measured", where="--tune", expected=", ".join(options.data), got=unknown, remedy=remedy)
    variant = "" if options.optimizer is None else f"-{options.optimizer}"
    folder = output_folder(options.to or Path(f"table1-{options.profile}{variant}"))
    columns, progress = [], ProgressLines(Console(width=160))
    for name in options.data:
        changes = [f"name={name}-{options.profile}{variant}", f"recipe.optimizer={options.optimizer}", "recipe.learning_rate=0.001"]
        experiment = load_experiment(f"paper/{name}", [*(changes if variant else []), *changes_of(name, options)], options.profile)
        measure = functools.partial(run, store=options.store, serial=options.serial, address=options.address, progress=progress)
        last_layer = last_layer_experiment(experiment)
        columns.append(
            measured_column(
                measure(experiment),
                None if last_layer is None else measure(last_layer),
                [measure(one) for one in tuned_experiments(experiment)] if name in tuned else (),
            )
        )
    for path in write_table1(columns, folder, options.profile):
        print(path)


if __name__ == "__main__":
    run_script(main)
