"""The differences between the paper's set-up and a run of one of its data sets, with the reasons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from genrep_dist.paper.published import FRACTIONS, PAPER, REPLACES, ROWS_A_CLASS, TEST_POINTS
from genrep_dist.problems.protocol import recorded_recipe
from genrep_dist.training.optimizers import make_optimizer

if TYPE_CHECKING:
    from genrep_dist.results import Run


def differences(run: Run) -> list[tuple[str, str, str, str]]:
    """(What, in the paper, here, why) for each difference, including choices that the paper leaves open."""
    experiment, shape = run.plan.experiment, run.plan.shape
    paper = PAPER[REPLACES.get(experiment.problem.name, experiment.problem.name)]
    recipe = recorded_recipe(run.plan.keys.recipe)
    optimizer = make_optimizer(recipe).description.removeprefix("plain ")
    seeds, points = len(experiment.seeds), experiment.num_test_points
    size = f"profile {experiment.profile}: less computation" if experiment.profile else "less computation"
    rows = [
        (
            "training samples",
            f"about {2 * ROWS_A_CLASS:,}",
            f"{shape.num_train:,}",
            size if experiment.problem.options.get("train_size") else f"all samples, at most {ROWS_A_CLASS:,} a class",
        ),
        (
            "networks x test points",
            f"{paper.num_seeds} x {TEST_POINTS}",
            f"{seeds} x {points}",
            "" if (seeds, points) == (paper.num_seeds, TEST_POINTS) else size,
        ),
        (
            "removed",
            _percent(FRACTIONS),
            _percent(experiment.deletion.fractions),
            "" if experiment.deletion.fractions == FRACTIONS else size,
        ),
        ("parameters", f"{paper.num_parameters:,}", f"{shape.num_parameters:,}", "images: a usual network of that size; texts: exact"),
        ("classes", "two, not named", str(experiment.problem.options.get("classes", "two")), "our choice"),
        (
            "training",
            "not in the text",
            f"{recipe.epochs} epochs of {optimizer}, batches of {recipe.batch_size}, rate {recipe.learning_rate:g} ({recipe.schedule})",
            "our choice: Eq. 10 assumes plain SGD"
            if shape.identity_gap_reasons
            else "plain SGD, which Eq. 10 assumes; tuned on seeds from 1000 on, which are not reported",
        ),
        ("lambda, damping", "not in the text", f"{experiment.surrogate.lam:g}, {experiment.influence.damping_text}", "our choice"),
        ("retraining", "not in the text", "same initialisation and order", "common random numbers: less noise"),
    ]
    if "length" in experiment.problem.options:
        rows.append(("length of a text", "not in the text", f"{experiment.problem.options['length']} tokens", "longer ones are cut"))
    accuracy = run.training()["test_accuracy"].drop_nulls()
    if len(accuracy):
        rows.append(
            ("test accuracy", "not in the text", f"{100 * sum(accuracy) / len(accuracy):.1f} % on average", "of the networks explained")
        )
    if experiment.problem.name in _DATA:
        rows.insert(0, ("data", *_DATA[experiment.problem.name]))
    return rows


_DATA = {
    "toxicity": (
        "Jigsaw's comments",
        "the data in the cache: Jigsaw's comments; in the package's file, one percent of the texts of 160 characters or more are tweets",
        "the original needs an account; an eighth of the rows, chosen by digest, is the test set, since the file has no split",
    ),
    "newsgroups": (
        "AG's news",
        "twenty newsgroups, split by date, lower case, letters only",
        "AG's news are in no package; these replace them, and are another task",
    ),
}


def _percent(fractions: Sequence[float]) -> str:
    return ", ".join(f"{100 * fraction:g} %" for fraction in fractions)
