"""The training recipe in force, and what is refused of it once the number of rows is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from genrep_dist.config import Experiment
from genrep_dist.config.metrics import measured_metrics, retrain_policy
from genrep_dist.core.policies import is_rebatched
from genrep_dist.core.schedules.base import warmup_steps
from genrep_dist.errors import PlanError, ProblemError
from genrep_dist.plan import Plan
from genrep_dist.problems.functions import problem_recipe
from genrep_dist.problems.load import load_function
from genrep_dist.problems.protocol import Dataset, Problem, Recipe
from genrep_dist.training.augmentation import Augmentation


def recipe_in_force(problem: Problem, experiment: Experiment, search_path: Sequence[str] = ()) -> Recipe:
    """The problem's recipe with the experiment's changes; its augmentation is loaded."""
    recipe = replace(problem_recipe(problem), **experiment.recipe.model_dump(exclude_none=True))
    if isinstance(recipe.augment, str):
        recipe = replace(recipe, augment=load_function(recipe.augment, search_path, "augmentation"))
    return recipe


def check_recipe(recipe: Recipe, train: Dataset) -> None:
    """Raise ProblemError for a recipe that trains nothing on these rows, a warm-up that never ends, and a random augmentation."""
    num_rows = len(train.ids)
    if not recipe.steps_per_epoch(num_rows):
        raise ProblemError(
            "with drop_last no batch is left to train on",
            where="recipe.drop_last, recipe.batch_size",
            expected=f"a batch_size of at most {num_rows}, the number of training rows",
            got=str(recipe.batch_size),
            remedy="lower recipe.batch_size, or set recipe.drop_last: false",
        )
    num_steps = recipe.epochs * recipe.steps_per_epoch(num_rows)
    warmup = warmup_steps(recipe.warmup, num_steps)
    if warmup > num_steps:
        raise ProblemError(
            "the warm-up is longer than the training",
            where="recipe.warmup",
            expected=f"at most {num_steps} steps, which {recipe.epochs} epochs of {num_rows} rows are; or a share of them below 1",
            got=f"{warmup} steps",
            remedy="lower recipe.warmup, or raise recipe.epochs",
        )
    if recipe.augment is not None:
        Augmentation(recipe.augment, train).check()


def check_rebatching(plan: Plan, recipe: Recipe) -> None:
    """Raise PlanError for a removal that leaves less than a batch of rows, if the rest is batched again with drop_last."""
    for metric in measured_metrics(plan.experiment):
        remaining = plan.shape.num_train - metric.largest_removal(plan.experiment, plan.shape.num_train)
        if is_rebatched(retrain_policy(metric, plan.experiment)) and not recipe.steps_per_epoch(remaining):
            raise PlanError(
                "with drop_last no batch is left to train on after a removal, as the remaining rows are divided into new batches",
                where=f"{metric.name}.retrain, recipe.drop_last, recipe.batch_size",
                expected=f"a batch_size of at most {remaining}, the number of rows that remain",
                got=str(recipe.batch_size),
                remedy="lower recipe.batch_size, remove fewer rows, or set recipe.drop_last: false",
            )
