"""From a finished run to the files of its report."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version

import polars as pl

from genrep_dist.evaluation.statistics import curves
from genrep_dist.problems.protocol import Recipe
from genrep_dist.report.figures import deletion_figure
from genrep_dist.report.page import ReportData, html_page
from genrep_dist.report.tables import markdown_table, signs_of
from genrep_dist.results import Run

LIBRARIES = ("genrep-dist", "torch", "numpy", "ray", "zarr", "polars")


def report_data(run: Run, summary: pl.DataFrame, deletion: pl.DataFrame) -> ReportData:
    """Everything that the report of ``run`` shows: its results, and from the store how they were measured."""
    return ReportData(
        title=f"{run.name}: which attributions survive retraining",
        summary=summary,
        deletion=deletion,
        facts=facts(run),
        warnings=run.plan.warnings,
        config_yaml=run.plan.experiment.to_yaml(),
    )


def report_files(run: Run, summary: pl.DataFrame, deletion: pl.DataFrame) -> dict[str, bytes]:
    """File name -> content of all that a reader gets: table.md, report.html and the curves as PNG."""
    data = report_data(run, summary, deletion)
    files = {"table.md": _tables(run, summary).encode(), "report.html": html_page(data).encode()}
    means = curves(data.deletion)
    for sign in signs_of(data.summary):
        files[f"curves_{sign}.png"] = deletion_figure(means, methods=data.summary["method"].to_list(), sign=sign, image="png")
    return files


def _tables(run: Run, summary: pl.DataFrame) -> str:
    """One Markdown table, or one for each block that the experiment declares."""
    blocks = run.plan.experiment.blocks
    if not blocks:
        return markdown_table(summary)
    return "\n".join(f"### {title}\n\n{markdown_table(block_of(summary, methods))}" for title, methods in blocks.items())


def block_of(summary: pl.DataFrame, methods: Sequence[str]) -> pl.DataFrame:
    """The rows of ``methods``, in that order."""
    return pl.DataFrame({"method": methods}).join(summary, on="method", how="left", maintain_order="left").select(summary.columns)


def facts(run: Run) -> dict[str, str]:
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
        "Networks x test points": f"{len(experiment.seeds)} x {experiment.num_test_points}",
        "Removed shares": ", ".join(f"{100 * fraction:g} %" for fraction in deletion.fractions) + "; the AUC is their mean",
        "Retrain policy": _policy_text(deletion.retrain),
        "Models trained": f"{costs['originals']:,} originals, {costs['unique']:,} retrainings for {costs['asked']:,} removals asked for",
        "Training time": f"{costs['seconds']:,.0f} s of one worker in all, {costs['seconds_per_model']:.2f} s a model",
    }
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


def _recipe_text(recipe: Recipe) -> str:
    extras = [f"{name.replace('_', ' ')} {value:g}" for name in ("momentum", "weight_decay") if (value := getattr(recipe, name))]
    kind = "SGD with " + " and ".join(extras) if extras else "plain SGD"
    return f"{recipe.epochs} epochs of {kind}, batches of {recipe.batch_size}, learning rate {recipe.learning_rate:g} ({recipe.schedule})"


def _target_text(run: Run) -> str:
    if run.plan.shape.num_outputs == 1:
        return "the model's raw logit"
    output = run.plan.experiment.target.output
    return "the raw logit of the class that the original model predicts" if output == "predicted" else f"the raw logit of class {output}"


def _policy_text(policy: str) -> str:
    return "same initialisation and order (common random numbers)" if policy == "same" else "fresh initialisation and order"
