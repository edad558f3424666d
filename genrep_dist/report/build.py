"""From a finished run to the files of its report."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

import polars as pl

from genrep_dist.config import Experiment
from genrep_dist.config.sections import BrittlenessSection, DeletionSection, LdsSection, LooSection
from genrep_dist.evaluation.deletion import IDENTITY
from genrep_dist.evaluation.results import Judged
from genrep_dist.evaluation.statistics import curves
from genrep_dist.problems.protocol import Recipe
from genrep_dist.report.examples import examples
from genrep_dist.report.figures import deletion_figure, inspection_figure
from genrep_dist.report.latex import latex
from genrep_dist.report.markdown import markdown
from genrep_dist.report.page import ReportData, html_page
from genrep_dist.report.sections import Clock
from genrep_dist.report.tables import RANDOM, Table, signs_of, tables
from genrep_dist.report.verdict import MINUS, verdict
from genrep_dist.training.optimizers import make_optimizer

if TYPE_CHECKING:
    from genrep_dist.results import Run

LIBRARIES = ("genrep-dist", "torch", "numpy", "ray", "zarr", "polars")


def report_data(
    run: Run,
    summary: pl.DataFrame,
    deletion: pl.DataFrame,
    judged: Judged | None = None,
    *,
    more_facts: Mapping[str, str] | None = None,
) -> ReportData:
    """Everything that the report of ``run`` shows: its results, and from the store how they were measured.

    ``more_facts``: what the walk decided on its way (stopping, tuning), label to plain text.
    """
    experiment, judged = run.plan.experiment, judged or Judged()
    found = verdict(summary, deletion, judged, declared=experiment.baseline)
    contrast = [name for name in (found.best, RANDOM) if name in experiment.methods]
    return ReportData(
        title=f"{run.name}: which attributions survive retraining",
        summary=summary,
        deletion=deletion,
        facts=facts(run, judged, more_facts),
        warnings=run.plan.warnings,
        config_yaml=experiment.to_yaml(),
        judged=judged,
        examples=examples(run, list(dict.fromkeys(contrast)), seed=experiment.seeds[0], texts=getattr(run.bench.problem, "texts", None)),
        blocks=experiment.blocks,
        declared=experiment.baseline,
        clock=run_clock(run),
    )


def run_clock(run: Run) -> Clock:
    """Whose seconds the run's costs are, as far as its original models tell."""
    devices = {run.store.artifact("train", run.plan.keys.train(seed)).manifest()["device"] for seed in run.plan.experiment.seeds}
    return Clock.of(devices, run.plan.experiment.resources.num_gpus or 0.0)


def report_files(
    run: Run,
    summary: pl.DataFrame,
    deletion: pl.DataFrame,
    judged: Judged | None = None,
    *,
    more_facts: Mapping[str, str] | None = None,
) -> dict[str, bytes]:
    """File name -> content of all that a reader gets: table.md, table.tex, report.html and the curves as PNG.

    ``judged``: all that was measured beside the deletion curves; None: nothing. ``more_facts`` as in :func:`report_data`.
    """
    return data_files(report_data(run, summary, deletion, judged, more_facts=more_facts))


def data_files(data: ReportData) -> dict[str, bytes]:
    """The files of :func:`report_files`, from the data that they show."""

    def made(minus: str) -> list[Table]:
        return tables(data.summary, data.judged, blocks=data.blocks, baseline=data.declared, random=data.baseline, minus=minus)

    methods = data.summary["method"].to_list()
    files = {"table.md": markdown(made("-")).encode(), "table.tex": latex(made(MINUS)).encode(), "report.html": html_page(data).encode()}
    means = curves(data.deletion, seed=data.bootstrap_seed)
    for sign in signs_of(data.summary):
        files[f"curves_{sign}.png"] = deletion_figure(means, methods=methods, sign=sign, baseline=data.baseline, image="png")
    if data.judged.inspection.height:
        files["inspection.png"] = inspection_figure(data.judged.inspection, methods=methods, baseline=data.baseline, image="png")
    return files


def block_of(summary: pl.DataFrame, methods: Sequence[str]) -> pl.DataFrame:
    """The rows of ``methods``, in that order."""
    return pl.DataFrame({"method": methods}).join(summary, on="method", how="left", maintain_order="left").select(summary.columns)


def facts(run: Run, judged: Judged, more_facts: Mapping[str, str] | None = None) -> dict[str, str]:
    """How the numbers were measured, label to value, in the order shown."""
    plan, experiment = run.plan, run.plan.experiment
    recipe, shape, deletion = Recipe(**plan.keys.recipe), plan.shape, experiment.deletion
    costs = run.costs()
    training = run.training()
    found = {
        "Problem": f"{experiment.problem.name} {experiment.problem.options or ''}".strip(),
        "Data": f"{shape.num_train:,} training samples, {shape.num_test:,} test samples",
        "Model": f"{shape.num_parameters:,} parameters, {shape.num_outputs} output{'s' if shape.num_outputs > 1 else ''}",
        "Recipe": _recipe_text(recipe),
        "Explained number": _target_text(run),
        "Networks × test points": f"{len(experiment.seeds)} × {experiment.num_test_points}",
        "Removed": _removals_text(deletion) + "; the AUC is their mean",
        "Retrain policy": _policy_text(deletion),
        **_other_metrics(experiment, len(run.flipped_ids())),
        "Models trained": f"{costs['originals']:,} originals, {costs['unique']:,} retrainings for {costs['asked']:,} removals asked for",
        "Training time": f"{costs['seconds']:,.0f} {run_clock(run).unit} in all, {costs['seconds_per_model']:.2g} a model",
    }
    spread = replicate_spread(judged.replicates)
    if spread is not None:
        found["Replicates"] = f"the change of one retrained prediction has a standard deviation of {spread:.3g} around its set's mean"
    found |= more_facts or {}
    accuracy = training["test_accuracy"].drop_nulls()
    if len(accuracy):
        found["Test accuracy of the originals"] = f"mean {100 * float(accuracy.mean()):.1f} %, lowest {100 * float(accuracy.min()):.1f} %"  # type: ignore[arg-type]
    certificates = [certificate for certificate in run.certificates() if certificate["importance"] == "surrogate"]
    if certificates:
        residual = max(certificate["residual"] for certificate in certificates)
        gap = max(certificate["efficiency_gap"] for certificate in certificates)
        found["Surrogate"] = (
            f"lambda {experiment.surrogate.lam:g}; largest stationarity residual {residual:.1e}; "
            f"largest efficiency gap max |f - K alpha| on the training set {gap:.3g}"
        )
    found["Versions"] = ", ".join(f"{name} {version(name)}" for name in LIBRARIES) + f", Python {platform.python_version()}"
    found["Experiment digest"] = plan.keys.question
    found["Data digest"] = plan.keys.data
    return found


def replicate_spread(replicates: pl.DataFrame) -> float | None:
    """Pooled standard deviation of ``delta`` over the replicates of one removal, in logits; None without two replicates of any."""
    groups = replicates.sort(*IDENTITY, "replicate").group_by(IDENTITY, maintain_order=True)
    variances = groups.agg(degrees=pl.len().cast(pl.Int64) - 1, variance=pl.col("delta").var()).filter(pl.col("degrees") > 0)
    if not variances.height:
        return None
    squares = math.fsum((variances["variance"] * variances["degrees"]).to_list())
    return math.sqrt(squares / int(variances["degrees"].sum()))


def _recipe_text(recipe: Recipe) -> str:
    rounded = "" if recipe.precision == "full" else f", products in {recipe.precision}"
    rate = f"learning rate {recipe.learning_rate:g} ({recipe.schedule})"
    return f"{recipe.epochs} epochs of {make_optimizer(recipe).description}, batches of {recipe.batch_size}, {rate}{rounded}"


def _target_text(run: Run) -> str:
    if run.plan.shape.num_outputs == 1:
        return "the model's raw logit"
    output = run.plan.experiment.target.output
    return "the raw logit of the class that the original model predicts" if output == "predicted" else f"the raw logit of class {output}"


def _other_metrics(experiment: Experiment, num_flipped: int) -> dict[str, str]:
    """How each metric beside the deletion curves was measured."""
    found = {}
    lds, loo, brittleness, flips = experiment.lds, experiment.loo, experiment.brittleness, experiment.problem.flip_labels
    if lds is not None:
        found["LDS"] = f"{lds.subsets} subsets a network, each {100 * lds.fraction:g} % of the training set; {_policy_text(lds)}"
    if loo is not None:
        found["LOO correlation"] = f"{loo.samples} samples a network, each left out once; {_policy_text(loo)}"
    if brittleness is not None:
        found["Brittleness"] = f"removed: {_removals_text(brittleness)}; {_policy_text(brittleness)}"
    if flips is not None:
        found["Flipped labels"] = f"{num_flipped:,} training samples ({100 * flips.share:g} %), the same for all networks"
    return found


def _removals_text(section: DeletionSection | BrittlenessSection) -> str:
    if section.counts is not None:
        return ", ".join(f"{count:,}" for count in section.counts) + " samples"
    return ", ".join(f"{100 * fraction:g} %" for fraction in section.fractions) + " of the training set"


def _policy_text(section: DeletionSection | BrittlenessSection | LdsSection | LooSection) -> str:
    if section.retrain == "same":
        return "same initialisation and order (common random numbers)"
    times = f", {section.replicates} times; their mean counts" if section.replicates > 1 else ""
    return f"fresh initialisation and order{times}"
