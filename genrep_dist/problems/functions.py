"""What a problem may bring of its own beside data, model and loss: a training function, and predictions of a model that is no module."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from genrep_dist.errors import ProblemError
from genrep_dist.problems.protocol import Problem, Recipe

TrainingFunction = Callable[[Any, Any, Any], Any]
"""``train(model, data, run)``: trains ``model`` in place, or returns the trained one."""
PredictFunction = Callable[[Any, Any], Any]
"""``predict(model, inputs)``: outputs (B,) or (B, C) of a trained model."""

NO_RECIPE = Recipe(epochs=1, batch_size=1, learning_rate=1.0)
"""Stands for the recipe of a problem that has a training function and no recipe: its one epoch is the whole training."""


def training_function(problem: object) -> TrainingFunction | None:
    """``problem.train`` if it is a training function, else None. ProblemError if it does not take (model, data, run).

    An attribute that cannot be called, such as a data set, is none; nor is ``nn.Module.train`` of a problem that is a module itself.
    """
    return _own_function(problem, "train", ("model", "data", "run"))


def predict_function(problem: object) -> PredictFunction | None:
    """``problem.predict`` of a problem with a training function, else None. ProblemError if it does not take (model, inputs)."""
    return None if training_function(problem) is None else _own_function(problem, "predict", ("model", "inputs"))


def problem_recipe(problem: Problem) -> Recipe:
    """The recipe of a problem; :data:`NO_RECIPE` where its training function needs none."""
    return problem.recipe if has_recipe(problem) else NO_RECIPE


def has_recipe(problem: object) -> bool:
    """Whether a problem has a recipe of its own."""
    return getattr(problem, "recipe", None) is not None


def _own_function(problem: object, name: str, parameters: tuple[str, ...]) -> Callable[..., Any] | None:
    found: Callable[..., Any] | None = getattr(problem, name, None)
    if not callable(found) or getattr(found, "__func__", None) is nn.Module.train:
        return None
    try:
        inspect.signature(found).bind(*parameters)
    except TypeError as error:
        raise ProblemError(
            f"the problem's {name} does not take the arguments that it is called with",
            where=f"{type(problem).__name__}.{name}",
            expected=f"{name}({', '.join(parameters)})",
            got=f"{name}{inspect.signature(found)}: {error}",
            remedy=f"define it as `def {name}(self, {', '.join(parameters)})`, or rename it if it is something else",
        ) from error
    except ValueError:  # a callable without a signature
        pass
    return found
