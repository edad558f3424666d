"""Two steps of training before anything is trained: what would fail in every training is refused at the start.

A model that cannot be restored from its checkpoint, or that fails on the small batches that removals leave, would otherwise show it
after hours, in every attempt.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from genrep_dist.core.gradients.model import check_model, model_outputs
from genrep_dist.core.losses import Loss
from genrep_dist.core.tensors import NUMPY_FLOATS
from genrep_dist.errors import GenRepError, NonFiniteError, ProblemError
from genrep_dist.problems.checks import user_code_error
from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.training.loop import all_finite, predict, train
from genrep_dist.training.observers import Checkpoints, TrackingImportance
from genrep_dist.training.randomness import Randomness
from genrep_dist.workflow.checkpoints import state_arrays, state_dtypes, state_tensors

GPU_ROWS = 4
"""Rows of a step, if models train on GPUs: it is taken on the CPU, since a second process may not be allowed on the GPU."""
MAX_RATE = 1e-3
"""Learning rate of a step at most: whether training diverges on one batch says nothing."""

STEP_REMEDY = (
    "make torch.autograd.grad(model().train()(inputs).sum(), parameters) work, twice in succession and on any number of rows; "
    "checkpointing needs use_reentrant=False for it"
)

Factory = Callable[[], nn.Module]


def rehearse(factory: Factory, loss: Loss, recipe: Recipe, data: Dataset, *, on_gpu: bool = False) -> str:
    """Two steps of training on the first batch of ``data``, on the CPU, and a new model restored from the checkpoint after them.

    Returns why a model fails in training on a batch of one row, or "". Raises ProblemError if a step fails, if the state cannot be
    stored or restored, if the restored model gives other outputs, and for trained parameters in bfloat16, and by
    :func:`~genrep_dist.core.gradients.model.check_model`. A model with
    ``trains_alone`` is not run. ``on_gpu``: models train on GPUs, so a step that fails on the CPU may be none of these faults.
    """
    model = Randomness(0).build(factory)
    check_model(model)
    _check_precision(model)
    state_dtypes(model.state_dict())
    if getattr(model, "trains_alone", False):
        return ""
    rows = min(len(data.ids), GPU_ROWS if on_gpu else recipe.batch_size)
    some = Dataset(*(tensor[:rows] for tensor in data))
    if rows == 1 and not _training_fault(Randomness(0).build(factory), data.inputs[:2]):
        fault = _one_row_fault(factory, some.inputs)
        if fault:
            return fault
    short = replace(recipe, epochs=2, batch_size=rows, learning_rate=min(recipe.learning_rate, MAX_RATE))
    checkpoints = Checkpoints((0, 2), some, short)
    try:
        train(model, loss, short, some, Randomness(0), observers=(TrackingImportance(), checkpoints))
    except NonFiniteError:
        return ""  # training itself says where
    except GenRepError:
        raise
    except Exception as error:
        if on_gpu:
            return ""
        found = user_code_error("the model fails in a step of training", f"model().train() on {rows} rows", error)
        raise ProblemError(found.what, where=found.where, got=found.got, remedy=STEP_REMEDY) from error
    state: dict[str, Tensor] = {}
    for dtype, array in state_arrays([checkpoint.state for checkpoint in checkpoints.saved]).items():
        state |= state_tensors(dtype, array.values[-1], array.entries)
    # Another seed: what the constructor draws, and is not in the state, differs.
    check_restored(model, Randomness(1).build(factory), state, some.inputs)
    return _one_row_fault(factory, some.inputs)


def _check_precision(model: nn.Module) -> None:
    """Raise ProblemError for trained parameters in bfloat16 or a dtype of 8 bits."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.is_floating_point() and parameter.dtype not in NUMPY_FLOATS:
            raise ProblemError(
                "the trained parameters have too few bits for the steps and gradients of training",
                where=f"model parameter {name!r}",
                expected="float32, float64 or float16; frozen parameters may have any dtype",
                got=str(parameter.dtype),
                remedy="build the trained layers in float32, and set recipe.precision: bfloat16 for products in bfloat16",
            )


def _one_row_fault(factory: Factory, inputs: Tensor) -> str:
    """What goes wrong in training on the first of ``inputs`` alone, and the layers that may be the cause; "" if nothing does."""
    model = Randomness(0).build(factory)
    fault = _training_fault(model, inputs[:1])
    layers = [f"{name} ({type(module).__name__})" for name, module in model.named_modules() if hasattr(module, "running_mean")]
    return f"{fault}; layers that normalise: {', '.join(layers[:3])}" if fault and layers else fault


def _training_fault(model: nn.Module, inputs: Tensor) -> str:
    """Why a forward and backward pass over ``inputs`` in training mode fails, or ""."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    try:
        with Randomness(0).scope("train"), warnings.catch_warnings(action="ignore"):
            outputs = model_outputs(model.train(), inputs)
            gradients = torch.autograd.grad(outputs.sum(), parameters, allow_unused=True)
    except Exception as error:  # whatever the user's code raises
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    found = [outputs.detach(), *(gradient.to_dense() for gradient in gradients if gradient is not None)]
    return "" if all_finite(found) else "its outputs or gradients become NaN or Inf"


def check_restored(model: nn.Module, restored: nn.Module, state: dict[str, Tensor], inputs: Tensor) -> None:
    """Raise ProblemError unless ``restored`` takes the ``state`` of ``model`` and gives its outputs."""
    try:
        restored.load_state_dict(state)
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise ProblemError(
            "a new model does not take the state of a trained one",
            where="model().load_state_dict()",
            expected="the names and shapes of model().state_dict()",
            got=" ".join(str(error).split())[:300],
            remedy="create all parameters and buffers in model(); what a training step creates is not in a new model",
        ) from error
    expected, again, found = (predict(one, inputs) for one in (model, model, restored))
    if not torch.equal(expected, again) or not all_finite([expected]):
        return  # random outputs, and outputs that are not finite, are refused elsewhere
    difference, bound = float((found - expected).abs().max()), 10 * torch.finfo(expected.dtype).eps ** 0.5 * float(expected.abs().max())
    if not difference <= bound:
        raise ProblemError(
            "a model restored from its checkpoint gives other outputs",
            where="model().load_state_dict()",
            expected=f"the outputs of the model whose state it is, to {bound:.1g}",
            got=f"a difference of {difference:.3g}",
            remedy="register tensors that the constructor draws, or that training changes, with register_buffer(name, tensor): plain "
            "attributes and buffers with persistent=False are not in state_dict()",
        )
