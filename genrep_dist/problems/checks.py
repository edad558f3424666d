"""Checks that an object is a problem, and that its data, model and loss match."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import cast

import torch
from torch import Tensor, nn

from genrep_dist.core.generators import generator_states, preserved_generators, seeded_generators
from genrep_dist.core.gradients.model import model_outputs
from genrep_dist.core.inputs import describe, form_of, pack_inputs
from genrep_dist.core.losses import LOSSES, Loss, get_loss
from genrep_dist.errors import GenRepError, ProblemError
from genrep_dist.problems.collections import collected, is_collection
from genrep_dist.problems.functions import has_recipe, predict_function, training_function
from genrep_dist.problems.protocol import Dataset, Problem, Recipe
from genrep_dist.problems.tables import validate
from genrep_dist.seeds import derive_seed

_ROWS = 8
_PASSES = 32
"""Passes that are compared where a forward pass draws random numbers in evaluation mode."""


def check_problem(problem: object, where: str) -> None:
    """Raise ProblemError unless an object has all parts of a problem, a valid recipe and loss, and builds a module by ``model()``.

    With a training function it needs no recipe, and with ``predict`` beside it no module.
    """
    optional = ("recipe",) if training_function(problem) is not None and not has_recipe(problem) else ()
    required = [part for part in ("model", "train_data", "test_data", "loss", "recipe") if part not in optional]
    missing = [part for part in required if not hasattr(problem, part)]
    missing += [part for part in ("model", "train_data", "test_data") if part not in missing and not callable(getattr(problem, part))]
    if missing:
        raise ProblemError(
            "this object is not a problem",
            where=where,
            expected="methods model, train_data, test_data and attributes loss, recipe",
            got=f"{type(problem).__name__} without {', '.join(missing)}",
        )
    checked = cast("Problem", problem)
    if not optional and not isinstance(checked.recipe, Recipe):
        raise ProblemError(
            "the recipe has a wrong type", where=f"{where}.recipe", expected="genrep_dist.Recipe", got=type(checked.recipe).__name__
        )
    get_loss(checked.loss)
    build_start(checked, where)


def build_model(problem: Problem, where: str = "problem") -> nn.Module:
    """``problem.model()`` with the random numbers of seed 0, checked to be an nn.Module. The default generators are left as they were."""
    model = _build(problem, where)
    if not isinstance(model, nn.Module):
        raise ProblemError("the model has a wrong type", where=f"{where}.model()", expected="torch.nn.Module", got=type(model).__name__)
    return model


def build_start(problem: Problem, where: str = "problem") -> object:
    """The same, but of any type where the problem has its own ``train`` and ``predict``."""
    return build_model(problem, where) if predict_function(problem) is None else _build(problem, where)


def has_module(problem: Problem) -> bool:
    """Whether the problem's models are torch modules."""
    return predict_function(problem) is None or isinstance(_build(problem, "problem"), nn.Module)


def _build(problem: Problem, where: str) -> object:
    with seeded_generators(derive_seed(0, "init")):
        try:
            model: object = problem.model()
        except GenRepError:
            raise
        except Exception as error:
            raise user_code_error("the model cannot be built", f"{where}.model()", error) from error
    return model


def load_datasets(problem: Problem, where: str = "problem") -> tuple[Dataset, Dataset]:
    """Training and test data, each read once, and checked.

    The checks are :func:`genrep_dist.problems.tables.validate`, equal forms of both, and a new model and the loss on the first rows
    (logistic: C = 1 and targets in [0, 1]; softmax: class numbers below C, C >= 2), and :func:`check_forward`. ProblemError, or
    NonFiniteError with sample ids.
    """
    train = _dataset(problem, "train", where)
    test = _dataset(problem, "test", where)
    if form_of(train.inputs) != form_of(test.inputs):
        raise ProblemError(
            "training and test inputs differ in form",
            where=f"{where}.test_data()",
            expected=_form_text(train.inputs),
            got=_form_text(test.inputs),
            remedy="give both the same keys, shapes and dtypes; pad_rows(rows, length=...) pads both to one length",
        )
    if train.inputs.shape[1:] != test.inputs.shape[1:] or train.inputs.dtype != test.inputs.dtype:
        raise ProblemError(
            "training and test inputs differ in shape or dtype",
            where=f"{where}.test_data()",
            expected=f"{train.inputs.dtype} (M, {', '.join(map(str, train.inputs.shape[1:]))})",
            got=f"{test.inputs.dtype} {tuple(test.inputs.shape)}",
        )
    if not has_module(problem):
        return train, test  # its outputs are known after a training
    model = build_model(problem, where)
    for which, data in (("train", train), ("test", test)):
        place = f"{where}.{which}_data()"
        check_loss_fits(problem, _first_outputs(model, data, place), data, place)
    check_forward(problem, model, train.inputs[:_ROWS], where)
    return train, test


def check_loss_fits(problem: Problem, outputs: Tensor, data: Dataset, where: str) -> None:
    """Raise ProblemError unless the problem's loss takes ``outputs`` (B, C) with the first B targets of ``data``."""
    loss = get_loss(problem.loss)
    _check_targets(loss.name if is_shipped(loss) else "", outputs.shape[1], data, where)
    _check_loss(loss, outputs, data.targets[: len(outputs)], where)


def check_forward(problem: Problem, model: nn.Module, inputs: Tensor, where: str) -> None:
    """Raise ProblemError if the model is no fixed function of ``inputs`` (B, ...) in evaluation mode, or of them and a seed in training.

    In evaluation mode passes over the same rows must agree. In training mode passes of two new models from one seed must agree, as a
    retraining is a function of its seed; what fails in training mode, such as batch normalisation of one row, is left to training.
    The model's buffers may change.
    """
    with preserved_generators():
        before = generator_states()
        first = _outputs(model, inputs, where)
        # Noise that is added to some passes only shows after a while.
        for _ in range(1 if generator_states() == before else _PASSES):
            again = _outputs(model, inputs, where)
            if not _agree(first, again):
                raise ProblemError(
                    "two forward passes over the same rows differ in evaluation mode",
                    where=f"{where}.model()",
                    expected="equal outputs after model.eval(): what is explained is one fixed function",
                    got=f"differences up to {float((first - again).detach().abs().max()):.3g}",
                    remedy="pass training=self.training to functional dropout, draw noise only if self.training, and change no attribute "
                    "in forward()",
                )
    try:
        passes = [_training_outputs(model, inputs) for _ in range(2)]
        if not _agree(*passes):
            # Layers may keep a state between passes: compare two new models, as each training has.
            passes = [_training_outputs(build_model(problem, where), inputs) for _ in range(2)]
    except Exception:  # a model that fails in training mode is refused by the trial of two steps
        return
    if not _agree(*passes):
        raise ProblemError(
            "two forward passes in training mode differ under one seed",
            where=f"{where}.model()",
            expected="equal outputs of two new models: a retraining depends on its seed alone",
            got=f"differences up to {float((passes[0] - passes[1]).detach().abs().max()):.3g}",
            remedy="draw from the default generators of torch, numpy or random, which are seeded, and not from a generator of your own or "
            "from time",
        )


def _training_outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    with seeded_generators(derive_seed(0, "train")), torch.no_grad():
        return model_outputs(model.train(), inputs).detach()  # a model may enable gradients by itself


def _agree(one: Tensor, other: Tensor) -> bool:
    """Whether two results of one computation are equal but for a few roundings."""
    if not one.is_floating_point():
        return torch.equal(one, other)
    scale = float(one.abs().nan_to_num(0.0, 0.0, 0.0).max())
    return one.shape == other.shape and torch.allclose(one, other, rtol=0.0, atol=8 * torch.finfo(one.dtype).eps * scale, equal_nan=True)


def num_outputs(model: nn.Module, dataset: Dataset) -> int:
    """C, the number of the model's outputs on these samples. ProblemError if its forward pass fails."""
    return int(_first_outputs(model, dataset, "problem").shape[1])


def _dataset(problem: Problem, which: str, where: str) -> Dataset:
    place = f"{where}.{which}_data()"
    with warnings.catch_warnings():
        # Of arrays that are mapped from a file that may only be read. Data are not written to, so they need no copy.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
        try:
            data: object = problem.train_data() if which == "train" else problem.test_data()
        except GenRepError:
            raise
        except Exception as error:
            raise user_code_error("the data cannot be loaded", place, error) from error
        if is_collection(data):
            data = collected(data, getattr(problem, "collate", None), place)
    if not isinstance(data, tuple) or len(data) != 3:
        got = f"a tuple of {len(data)}" if isinstance(data, tuple) else type(data).__name__
        expected = "a tuple (inputs, targets, ids), or a data set with __len__ and __getitem__"
        raise ProblemError("the data have a wrong type", where=place, expected=expected, got=got)
    inputs: object = data[0]
    dataset = Dataset(_packed(inputs, place) if _is_container(inputs) else data[0], *data[1:])
    validate(dataset, which)
    return dataset


def _is_container(inputs: object) -> bool:
    return isinstance(inputs, Mapping | tuple | list) or (is_dataclass(inputs) and not isinstance(inputs, type))


def _packed(inputs: object, place: str) -> Tensor:
    try:
        return pack_inputs(inputs)
    except ProblemError as error:
        raise ProblemError(
            error.what, where=f"{place}, {error.where}", expected=error.expected, got=error.got, remedy=error.remedy
        ) from error


def _form_text(inputs: Tensor) -> str:
    form = form_of(inputs)
    return f"one tensor {inputs.dtype} (N, {', '.join(map(str, inputs.shape[1:]))})" if form is None else describe(form)


def _first_outputs(model: nn.Module, data: Dataset, where: str) -> Tensor:
    """Outputs (B, C) of the first one or two samples in evaluation mode."""
    return _outputs(model, data.inputs[:2], where)


def _outputs(model: nn.Module, inputs: Tensor, where: str) -> Tensor:
    """Outputs (B, C) in evaluation mode. The modes of all layers are restored."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            return model_outputs(model, inputs).detach()
    except GenRepError:
        raise
    except Exception as error:
        form = form_of(inputs)
        given = f"{tuple(inputs.shape)}, {inputs.dtype}" if form is None else describe(form)
        found = user_code_error(f"the model fails on inputs {given}", where, error)
        remedy = "" if form is None else "a dictionary is passed as model(**inputs), a tuple as model(*inputs), a dataclass as it is"
        raise ProblemError(found.what, where=found.where, got=found.got, remedy=remedy) from error
    finally:
        for module, training in modes:
            module.training = training


def _check_targets(loss_name: str, num_outputs: int, data: Dataset, where: str) -> None:
    """Targets and number of outputs against a shipped loss. Other losses are checked by :func:`_check_loss` only."""
    targets, expected = data.targets, ""
    soft = targets.dim() == 2
    if loss_name == "logistic":
        if num_outputs != 1 or (soft and targets.shape[1] != 1):
            expected = "one output and targets (N,)"
        elif bool(((targets < 0) | (targets > 1)).any()):
            expected = "targets in [0, 1]"
    elif loss_name == "softmax":
        if num_outputs < 2:
            expected = "at least two outputs (for one logit use the loss 'logistic')"
        elif soft and (targets.shape[1] != num_outputs or not _are_distributions(targets)):
            expected = f"class numbers (N,) or distributions (N, {num_outputs})"
        elif not soft and (targets.is_floating_point() or bool(((targets < 0) | (targets >= num_outputs)).any())):
            expected = f"integer class numbers from 0 to {num_outputs - 1}"
    elif loss_name == "squared" and (targets.shape[1] if soft else 1) != num_outputs:
        expected = f"targets (N, {num_outputs})" if num_outputs > 1 else "targets (N,)"
    if expected:
        got = f"{num_outputs} outputs, targets {targets.dtype} {tuple(targets.shape)} from {targets.min().item()} to {targets.max().item()}"
        raise ProblemError(f"outputs and targets do not match the loss '{loss_name}'", where=where, expected=expected, got=got)


def _are_distributions(targets: Tensor) -> bool:
    """Whether each row (N, C) is non-negative and sums to one, up to float32 rounding."""
    sums = targets.to(torch.float64).sum(dim=1)
    return bool((targets >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-4)


def is_shipped(loss: Loss) -> bool:
    """Whether a loss is one of this package."""
    return type(loss) in {type(known) for known in LOSSES.values()}


def _check_loss(loss: Loss, outputs: Tensor, targets: Tensor, where: str) -> None:
    """Check the shapes that a loss returns for ``outputs`` (B, C) and ``targets``."""
    rows, columns = outputs.shape
    expected = {"value": (rows,), "derivative": (rows, columns), "second_derivative": (rows, columns, columns)}
    for method, shape in expected.items():
        try:
            result = getattr(loss, method)(outputs, targets)
        except Exception as error:
            raise user_code_error(f"the loss's {method} fails", where, error) from error
        if not isinstance(result, Tensor) or tuple(result.shape) != shape:
            got = str(tuple(result.shape)) if isinstance(result, Tensor) else type(result).__name__
            raise ProblemError(f"the loss's {method} has a wrong shape", where=where, expected=str(shape), got=got)


def user_code_error(what: str, where: str, error: Exception) -> ProblemError:
    """The ProblemError for an error that the user's code raised, with the file and line that raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" (in {trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno})" if trace is not None else ""
    return ProblemError(what, where=where, got=f"{type(error).__name__}: {error}{place}")
