"""Run the experiments after published comparisons, and write docs/reproductions.md: each published number beside ours, with a verdict.

genrep data fetch mnist; genrep data fetch concrete --from concrete.data
python jobs/reproduce.py dattri-mnist-lr kronfluence-concrete --store store --to docs/reproductions.md
python jobs/reproduce.py dattri-mnist-lr --scores scores     # with the scores that jobs/peer_scores.py has made

Experiments that are not named, and methods without scores, are shown as not run.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import numpy.typing as npt
import polars as pl
from rich.console import Console

from genrep_dist.cli.progress import ProgressLines
from genrep_dist.cli.script import output_file, run_script
from genrep_dist.config import load_experiment
from genrep_dist.evaluation.reproduction import Measurement, PublishedNumber, measurement
from genrep_dist.external import open_truth
from genrep_dist.results import Run
from genrep_dist.runner.run import run
from genrep_dist.runner.truth import export_truth

Array = npt.NDArray[np.float64]
LDS_TOLERANCE = 0.05
"""Of correlations that are read off a chart."""
LOSS_TOLERANCE = 0.02
"""Of losses that are read off a chart, each after the removals of one explained model."""


@dataclass(frozen=True)
class Row:
    """A published number, the method of ours that it belongs to, and how ours is measured: one mean a seed."""

    published: PublishedNumber
    method: str
    measure: Callable[[Run, str], Array]


@dataclass(frozen=True)
class Reproduction:
    """A shipped experiment ``reproduce/NAME``. ``peers``: methods whose scores another library makes."""

    name: str
    title: str
    source: str
    rows: tuple[Row, ...]
    peers: tuple[str, ...]
    differences: tuple[str, ...]


def lds(run: Run, method: str) -> Array:
    found = run.points().filter(metric="lds", method=method).group_by("seed").agg(pl.col("value").mean()).sort("seed").collect()
    return found["value"].to_numpy()


def loo(run: Run, method: str) -> Array:
    """Pearson correlation of scores with the changes of leave-one-out, where our own metric takes Spearman's; empty without these."""
    if run.plan.experiment.loo is None:
        return np.empty(0)
    with tempfile.TemporaryDirectory() as folder:
        list(export_truth(run, Path(folder)))
        truth = open_truth(folder)
        models, uses = truth.table("models").to_pylist(), truth.table("requests").to_pylist()
    means = []
    for seed in run.plan.experiment.seeds:
        used = [models[use["model"]] for use in uses if use["metric"] == "loo" and use["seed"] == seed]
        place = {sample: row for row, sample in enumerate(run.train_ids(seed).tolist())}
        predicted = -run.attributions(method, seed)[[place[model["removed"][0]] for model in used]]
        real = np.array([model["numbers"] for model in used])
        centred = [side - side.mean(axis=0) for side in (predicted, real)]
        sizes = np.sqrt((centred[0] ** 2).sum(axis=0) * (centred[1] ** 2).sum(axis=0))
        means.append(float(np.divide((centred[0] * centred[1]).sum(axis=0), sizes, out=np.zeros_like(sizes), where=sizes > 0).mean()))
    return np.array(means)


def squared_error(removed: int) -> Callable[[Run, str], Array]:
    """The mean squared error of the test rows after the removal of ``removed`` samples: twice our loss."""

    def measure(run: Run, method: str) -> Array:
        rows = run.deletion().filter(method=method, num_removed=removed).sort("seed").collect()
        return 2 * rows["score_retrained"].to_numpy()

    return measure


def _correlations(metric: str, measure: Callable[[Run, str], Array], values: dict[tuple[str, str], float]) -> list[Row]:
    return [Row(PublishedNumber(f"{metric}, {name}", value, LDS_TOLERANCE), method, measure) for (name, method), value in values.items()]


def _losses(name: str, method: str, values: dict[int, float]) -> list[Row]:
    return [
        Row(PublishedNumber(f"loss without {count} samples, {name}", value, LOSS_TOLERANCE), method, squared_error(count))
        for count, value in values.items()
    ]


DATTRI = "chart `assets/images/benchmark-result-mnist.png` of TRAIS-Lab/dattri; read by eye"
OTHER_TRUTH = (
    "Each subset is trained once, from initial parameters and an order of its own, as dattri's command for it does; its code can average "
    "several runs of a subset, and whether the published truth does is not said."
)
HOW_OFTEN = (
    "So much hangs on the truth: for one network and all 500 test points, in a plain loop apart from this package, the LDS of the "
    "influence function (damping 0.1) is 0.78 with one run of each of 50 subsets, 0.83 with the mean of two, and 0.87 with that of five. "
    "With `lds.retrain: fresh`, where a removed row leaves its batch and half models take twice the steps, a damping of 0.01 gives 0.77 "
    "instead of 0.69 (two networks)."
)
OTHER_TRACIN = (
    "dattri's TracIn sums the gradient products of ten networks that are trained independently. Ours is TracInCP: ten checkpoints of one "
    "network."
)
REPRODUCTIONS = (
    Reproduction(
        "dattri-mnist-lr",
        "dattri, logistic regression on MNIST",
        DATTRI,
        (
            *_correlations(
                "LDS",
                lds,
                {
                    ("influence function, explicit", "influence-function"): 0.80,
                    ("influence function, LiSSA", "lissa"): 0.79,
                    ("TracIn", "tracincp"): 0.33,
                    ("Grad-Dot", "ntk-final/target"): 0.33,
                    ("Grad-Cos", "grad-cos"): 0.19,
                    ("TRAK-1", "trak-1"): 0.42,
                    ("TRAK-10", "trak-10"): 0.65,
                    ("TRAK-50", "trak-50"): 0.68,
                },
            ),
            *_correlations(
                "leave-one-out",
                loo,
                {
                    ("influence function, explicit", "influence-function"): 0.88,
                    ("TracIn", "tracincp"): 0.28,
                    ("TRAK-50", "trak-50"): 0.78,
                },
            ),
        ),
        ("lissa", "grad-cos", "trak-1", "trak-10", "trak-50"),
        (
            "5 networks x 50 test points x 50 half subsets, and 30 samples left out; dattri has one ground truth, 500 test points, and "
            "leaves out every sample.",
            "Each network is explained and judged on subsets of its own, so that the interval is over networks. dattri has no interval.",
            f"{OTHER_TRUTH} {HOW_OFTEN}",
            "Damping: dattri reports the best of the grid on the reported numbers, for LDS and for leave-one-out by itself. Ours is the "
            "best of that grid in LDS on a network that is not reported, for both. The best one is large because training is short: to "
            "stop after T steps of rate eta regularises about as a damping of 1/(eta T) does, 0.06 for half of the rows.",
            OTHER_TRACIN,
            "Leave-one-out: Pearson's correlation, as theirs. dattri visits the rows in the order of the file, ours in a new order each "
            "epoch.",
            "LiSSA, Grad-Cos and TRAK are dattri's own code (`jobs/peer_scores.py`): 100 steps of LiSSA in batches of 100 with its default "
            "scale of 50, which solve the system about as a damping of 50/100 does (dattri reports the best of batches of 100, 50 and "
            "10); TRAK with 512 random dimensions of the margin. One set of half models serves all our networks.",
        ),
    ),
    Reproduction(
        "dattri-mnist-mlp",
        "dattri, perceptron on MNIST",
        DATTRI,
        (
            *_correlations(
                "LDS",
                lds,
                {
                    ("influence function, CG", "influence-function"): 0.26,
                    ("TracIn", "tracincp"): 0.15,
                    ("Grad-Dot", "ntk-final/target"): 0.10,
                    ("TRAK-50", "trak-50"): 0.45,
                },
            ),
            *_correlations("leave-one-out", loo, {("influence function, CG", "influence-function"): 0.02, ("TracIn", "tracincp"): 0.004}),
        ),
        ("trak-50",),
        (
            "5 networks x 10 test points x 20 half subsets, and 10 samples left out; dattri has one ground truth, 500 test points, and "
            "leaves out every sample.",
            OTHER_TRUTH,
            "Damping: dattri reports the best of a grid of dampings (1 to 1e-5) on the reported numbers. Ours is 0.01, chosen before, and "
            "not tuned.",
            OTHER_TRACIN,
            "Explanations are taken without dropout.",
            "TRAK is dattri's own code, with 512 random dimensions of the margin. One set of half models serves all our networks.",
        ),
    ),
    Reproduction(
        "kronfluence-concrete",
        "kronfluence, UCI concrete",
        "notebook `examples/uci/tutorial.ipynb` of pomonam/kronfluence: its printed loss of 0.0880, and its last chart, read by eye",
        (
            *_losses("any method", "random", {0: 0.0880}),
            *_losses("EK-FAC", "ekfac", {5: 0.121, 10: 0.175, 15: 0.212, 20: 0.200, 25: 0.203, 30: 0.230}),
            *_losses("identity (gradient product)", "ntk-final/target", {5: 0.082, 10: 0.089, 15: 0.084, 20: 0.098, 25: 0.096, 30: 0.099}),
            *_losses("random", "random", {5: 0.084, 10: 0.082, 15: 0.085, 20: 0.087, 25: 0.084, 30: 0.085}),
        ),
        ("ekfac",),
        (
            "kronfluence explains one network, and trains 50 others without the samples that it names. Ours explains each network, and "
            "trains each again without the samples that its own explanation names: the published curve is one draw of what ours averages.",
            "Random: kronfluence has one order of samples, ours another one for each network.",
            "EK-FAC is kronfluence's own code with its default damping (`jobs/peer_scores.py`).",
            "Each removal is retrained once, from other initial parameters than those of the explained network, as theirs. Rows are "
            "divided into new batches, as theirs.",
        ),
    ),
)


def run_reproduction(one: Reproduction, options: argparse.Namespace) -> Run:
    """The run of a shipped experiment, with the scores of other libraries that are there."""
    experiment = load_experiment(f"reproduce/{one.name}", options.set)
    found = [name for name in one.peers if options.scores is not None and (options.scores / name).is_dir()]
    # A score of all of these is positive where the sample lowers the test point's loss; TRAK's margin rises as the loss falls.
    external = {
        name: {"path": str((options.scores / name).resolve()), "positive_raises": False, "target": experiment.target.model_dump()}
        for name in found
    }
    tune = None if experiment.tune is None else experiment.tune.model_dump(mode="json")
    wanted = experiment.with_fixed_seeds(methods=[*experiment.methods, *found], external=external, tune=tune)
    return run(wanted, options.store, serial=options.serial, progress=ProgressLines(Console(width=160)))


def document(runs: dict[str, Run], note: str = "") -> str:
    """docs/reproductions.md: a section for each reproduction; those without a run are shown as not run."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy"))
    parts = [
        "# Published numbers, measured again",
        "`python jobs/reproduce.py` writes this page from the experiments `reproduce/...`. The verdict is computed: *reproduced* if our "
        "whole 95 % interval lies within the tolerance of the published number, *refuted* if it has no common point with it, *undecided* "
        f"otherwise and with fewer than 5 networks. The tolerance is {LDS_TOLERANCE:g} for correlations and {LOSS_TOLERANCE:g} for losses, "
        "because the numbers were read off charts. Intervals are clustered by network ([how](judge.md#statistics)). A verdict is about the "
        "number in our set-up; each section says what differs.",
        f"Measured {datetime.now(UTC):%Y-%m-%d} with {packages}, Python {platform.python_version()}, on {os.cpu_count()} processor cores."
        + (f" {note}" if note else ""),
        *(_section(one, runs.get(one.name)) for one in REPRODUCTIONS),
    ]
    return "\n\n".join(parts) + "\n"


def _section(one: Reproduction, found: Run | None) -> str:
    rows = [(row.published, _measured(row, found)) for row in one.rows]
    lines = ["| number | published | ours | 95 % interval | networks | verdict |", "|:--|--:|--:|:-:|--:|:--|"]
    lines += [_line(published, ours) for published, ours in rows]
    cost = "Not run."
    if found is not None:
        spent = found.costs()
        explained = float(found.costs_by_method()["explanation_seconds"].sum())
        cost = (
            f"Cost: {spent['unique']:,.0f} retrainings and {spent['originals']:,.0f} originals, {spent['seconds'] / 60:.1f} minutes of one "
            f"core; explanations {explained / 60:.1f} minutes."
        )
    differences = "\n".join(f"- {text}" for text in one.differences)
    if found is not None and "tune" in found.choices:
        cost = f"{_tuned(found.choices['tune'])}\n\n{cost}"
    title = f"## {one.title}\n\nExperiment `reproduce/{one.name}`. Published: {one.source}."
    return "\n\n".join([title, "\n".join(lines), cost, f"What differs:\n\n{differences}"])


def _tuned(tune: Mapping[str, Any]) -> str:
    """What was tried on the networks that are not reported."""
    tried = ", ".join(f"{one['value']:g}: {one['mean']:.3f}" for one in tune["tried"])
    networks = f"{len(tune['seeds'])} network" + ("s that are" if len(tune["seeds"]) > 1 else " that is")
    return f"Tuned: `{tune['parameter']}` = {tune['chosen']:g}, the best in {tune['metric']} on {networks} not reported ({tried})."


def _measured(row: Row, found: Run | None) -> Measurement | None:
    if found is None or row.method not in found.plan.experiment.methods:
        return None
    values = row.measure(found, row.method)
    return measurement(values) if len(values) else None  # the run may have other removals


def _line(published: PublishedNumber, ours: Measurement | None) -> str:
    digits = 2 if published.tolerance >= LDS_TOLERANCE else 3
    cells = ["-", "-", "-"]
    if ours is not None:
        interval = "-" if ours.low is None else f"{ours.low:.{digits + 1}f} to {ours.high:.{digits + 1}f}"
        cells = [f"{ours.mean:.{digits + 1}f}", interval, str(ours.num_seeds)]
    return f"| {published.what} | {published.value:.{digits}f} | {' | '.join(cells)} | {published.verdict(ours)} |"


def main(given: Sequence[str] | None = None) -> None:
    names = [one.name for one in REPRODUCTIONS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(names)}; default: all")
    parser.add_argument("--store", default="store")
    parser.add_argument("--scores", type=Path, help="folder of scores that jobs/peer_scores.py has made")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="change a field of every experiment")
    parser.add_argument("--serial", action="store_true")
    parser.add_argument("--note", default="", help="a sentence about this measurement, such as what else the machine did")
    parser.add_argument("--to", type=Path, default=Path("reproductions.md"))
    options = parser.parse_args(given)
    unknown = sorted(set(options.names) - set(names))
    if unknown:
        parser.error(f"no such reproduction: {', '.join(unknown)}; there are {', '.join(names)}")
    file = output_file(options.to)
    runs = {one.name: run_reproduction(one, options) for one in REPRODUCTIONS if one.name in (options.names or names)}
    file.write_text(document(runs, options.note), encoding="utf-8")
    print(file)


if __name__ == "__main__":
    run_script(main)
