"""A problem's own training function, tried on a few rows before anything is trained: it works, and provides what the methods need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from genrep_dist.config.keys import Keys
from genrep_dist.config.metrics import changes_weights, measured_metrics
from genrep_dist.core.losses import Loss
from genrep_dist.errors import GenRepError, NonFiniteError, ProblemError, TimeLimitError
from genrep_dist.problems.checks import build_start, check_loss_fits
from genrep_dist.problems.functions import predict_function, training_function
from genrep_dist.problems.protocol import Dataset, Problem, Recipe
from genrep_dist.training.function_trainer import FunctionTrainer, predict_with, unread_weights
from genrep_dist.training.loop import TrainingRun, predict
from genrep_dist.training.observers import TrackingImportance
from genrep_dist.training.randomness import Randomness
from genrep_dist.training.user_run import Record
from genrep_dist.workflow.rehearsal import check_restored
from genrep_dist.workflow.time_limit import time_limit

REHEARSED_ROWS = 32
ROWS_OF_A_CLASS = 2
REHEARSAL_SECONDS = 60.0
"""A rehearsal on a module is given up after this time: what it would have shown shows at the end of the first training."""


@dataclass(frozen=True)
class Provided:
    """What a training provides: ``epochs`` of its checkpoints, whether it reports ``steps``; ``complete``: the training came to its end."""

    epochs: frozenset[int] = frozenset()
    steps: bool = False
    complete: bool = True
    num_outputs: int = 0
    weights: bool = False


def check_provided(keys: Keys, provided: Provided, *, has_epochs: bool, has_module: bool) -> None:
    """Raise ProblemError, with the line of code that helps, for methods that need more than a training function provides."""
    weighted = [metric.name for metric in measured_metrics(keys.experiment) if changes_weights(metric, keys.experiment)]
    if weighted and not provided.weights:
        raise unread_weights(f"train(); metrics: {', '.join(weighted)}")
    kernels = [method for method in keys.experiment.parsed_methods if method.has_kernel]
    of_modules = kernels + [method for method in keys.experiment.parsed_methods if method.scorer_class is not None]
    if of_modules and not has_module:
        raise ProblemError(
            "methods need a model that is a torch.nn.Module",
            where=f"methods: {', '.join(method.name for method in of_modules)}",
            expected="scores of other tools (external), or random, for a model that is no module",
            got="model() builds something else, whose predictions come from predict(model, inputs)",
            remedy="leave these methods out, or return a torch.nn.Module from model()",
        )
    inner = {method: set(keys.method_epochs(method)) - {0, keys.epochs} for method in kernels}
    checkpoint = "`run.checkpoint(epoch, model)` at the end of each epoch, counted from 1"
    if not has_epochs:
        # Without a recipe nobody knows which epoch is the middle one.
        declared = [method for method in kernels if method.sums_checkpoints or method.checkpoint not in ("initial", "final")]
        if declared:
            raise ProblemError(
                "methods need the number of epochs, which nobody declares",
                where=f"methods: {', '.join(method.name for method in declared)}",
                expected="a recipe",
                got="a problem with train() and without a recipe",
                remedy="add `recipe = genrep_dist.Recipe(epochs=..., batch_size=..., learning_rate=...)` to the problem, train for "
                f"run.epochs epochs, and call {checkpoint}",
            )
    solved = [m for m in kernels if m.follows_training and m.needs_gram]
    if solved and not has_epochs:
        raise ProblemError(
            "methods need the recipe's learning rate, batches and epochs",
            where=f"methods: {', '.join(method.name for method in solved)}",
            expected="a recipe",
            got="a problem with train() and without a recipe",
            remedy="add `recipe = genrep_dist.Recipe(epochs=..., batch_size=..., learning_rate=...)` to the problem",
        )
    lacking = {method: sorted(epochs - provided.epochs) for method, epochs in inner.items() if epochs - provided.epochs}
    untracked = [m for m in kernels if not m.needs_gram and m.importance_class.kind == "tracked" and not provided.steps]
    if not lacking and not untracked:
        return
    wanted = sorted({epoch for epochs in lacking.values() for epoch in epochs})
    expected, got, lines = [], [], []
    if lacking:
        expected.append(f"checkpoints after epochs {', '.join(map(str, wanted))}")
        got.append(f"checkpoints after epochs {', '.join(map(str, sorted(provided.epochs - {0}))) or 'none'}")
        lines.append(checkpoint)
    if untracked:
        expected.append("the steps of training")
        got.append("no steps")
        lines.append("`run.step(ids, outputs, rate)` at each step of the optimizer")
    raise ProblemError(
        "the training function does not provide what methods need",
        where=f"train(); methods: {', '.join(method.name for method in (*lacking, *untracked))}",
        expected=" and ".join(expected),
        got=" and ".join(got),
        remedy=f"call {' and '.join(lines)}; or leave these methods out",
    )


def rehearse_function(
    problem: Problem,
    loss: Loss,
    recipe: Recipe,
    data: Dataset,
    check: Callable[[Provided], None],
    *,
    epochs: int | None,
    on_gpu: bool,
    unit_timeout: float | None,
) -> Provided:
    """Train on a few rows of ``data``, on the CPU, and see that the model can be restored, and that ``check`` raises nothing.

    Where this fails, all rows are tried, since a function may need more of them. Raises what the second try, or ``check`` about it, raises.
    A try that takes too long, or that fails where models train on GPUs, shows nothing, and nothing is raised.
    """
    has_module = isinstance(build_start(problem), nn.Module)
    for rows in (_few_rows(data), torch.arange(len(data.ids))):
        some = Dataset(*(tensor[rows] for tensor in data))
        is_last = len(rows) == len(data.ids)
        try:
            provided = _rehearse(problem, loss, recipe, some, epochs, unit_timeout, has_module=has_module)
        except GenRepError as error:
            if on_gpu and has_module and not isinstance(error, TimeLimitError):
                return Provided(complete=False)
            if is_last and isinstance(error, NonFiniteError) and has_module:
                return Provided(complete=False)  # one seed diverges; the others may not
            if is_last:
                raise
            continue
        if not provided.complete:
            return provided
        try:
            check(provided)
            return provided
        except ProblemError:
            if is_last:
                raise
    raise AssertionError("the last try returns or raises")


def _rehearse(
    problem: Problem, loss: Loss, recipe: Recipe, data: Dataset, epochs: int | None, unit_timeout: float | None, *, has_module: bool
) -> Provided:
    function = training_function(problem)
    assert function is not None
    seconds = REHEARSAL_SECONDS if has_module and (unit_timeout is None or unit_timeout > REHEARSAL_SECONDS) else unit_timeout
    trainer = FunctionTrainer(
        problem, function, loss, recipe, data, epochs=epochs, limit=lambda where: time_limit(seconds, f"rehearsal of train(), {where}")
    )
    record = Record(frozenset(), TrackingImportance())
    try:
        model = trainer.train(TrainingRun(Randomness(0), description="rehearsal on a few rows"), record)
    except TimeLimitError:
        if seconds is not None and seconds == unit_timeout:
            raise  # the real trainings would take longer still
        return Provided(frozenset(record.seen), record.has_steps, complete=False)
    if has_module:
        num_outputs = predict(model, data.inputs[:2]).shape[1]
        # Another seed: what the constructor draws, and is not in the state, differs.
        check_restored(model, Randomness(1).build(problem.model), model.state_dict(), data.inputs)
    else:
        num_outputs = _predicted_twice(problem, model, data)
    return Provided(frozenset(record.seen), record.has_steps, num_outputs=num_outputs, weights=record.reads_weights)


def _predicted_twice(problem: Problem, model: object, data: Dataset) -> int:
    """The number of outputs of a model that is no module. ProblemError if its predictions are random or depend on the batch."""
    function = predict_function(problem)
    if function is None:
        raise ProblemError(
            "the model has a wrong type",
            where="problem.model()",
            expected="torch.nn.Module, or predict(model, inputs) of the problem beside its train(model, data, run)",
            got=type(model).__name__,
            remedy="add `def predict(self, model, inputs)` to the problem, which returns outputs (B,) or (B, C)",
        )
    whole = predict_with(function, model, data.inputs, batch_size=len(data.ids))
    parts = predict_with(function, model, data.inputs, batch_size=-(-len(data.ids) // 2))
    if not torch.allclose(whole, parts, rtol=1e-5, atol=1e-6, equal_nan=True):
        raise ProblemError(
            "two predictions of the same rows differ",
            where="predict(model, inputs)",
            expected="a fixed function of each row",
            got=f"differences up to {float((whole - parts).abs().max()):.3g}, in batches of other sizes",
            remedy="draw nothing in predict, and use no statistics of the batch",
        )
    check_loss_fits(problem, whole, data, "predict(model, inputs)")
    return int(whole.shape[1])


def _few_rows(data: Dataset) -> torch.Tensor:
    """Positions of the first rows, and of the first of each class, ascending."""
    rows = set(range(min(REHEARSED_ROWS, len(data.ids))))
    if data.targets.dim() == 1:
        classes, numbers = torch.unique(data.targets, return_inverse=True)
        if len(classes) <= REHEARSED_ROWS:
            for number in range(len(classes)):
                rows.update(torch.nonzero(numbers == number).reshape(-1)[:ROWS_OF_A_CLASS].tolist())
    return torch.tensor(sorted(rows))
