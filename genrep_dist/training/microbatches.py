"""A step's rows go through a network a part at a time, where all at once would leave the processor's cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from genrep_dist.core.gradients.model import model_outputs
from genrep_dist.core.losses import Loss
from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.training.batches import Batch
from genrep_dist.training.flop_count import CODE_FAILS
from genrep_dist.training.precision import tf32, training_outputs
from genrep_dist.training.randomness import Randomness

CACHED_BYTES = 4 * 2**20
"""Of the largest result of a layer for the rows of a part. It is written, read, and written again on the way back: beyond a core's cache
each time costs what the memory costs."""
FEWEST_ROWS = 16
"""Of a part: calls cost more than caches save below it."""


def rows_at_once(factory: Callable[[], nn.Module], loss: Loss, recipe: Recipe, data: Dataset) -> int | None:
    """How many rows of a batch go through a model of ``factory`` together; None for all.

    A function of the model, the loss, the recipe and the data, and of nothing that is timed: it changes the last bits. A batch goes in
    parts only where a trial of two steps shows that its gradients are then the same to rounding, that the model draws no random numbers
    and that it keeps nothing; and where the model does not say ``trains_alone``.
    """
    model = Randomness(0).build(factory).train()
    if data.inputs.device.type != "cpu" or getattr(model, "trains_alone", False):
        return None
    rows = slice(0, recipe.batch_size)
    batch = Batch(0, data.ids[rows], data.inputs[rows], data.targets[rows])
    generator = torch.get_rng_state()
    before = [buffer.clone() for buffer in model.buffers()]
    try:
        most = max(FEWEST_ROWS, CACHED_BYTES * len(batch.rows) // max(1, _largest_result(model, batch.inputs)))
        agree = len(batch.rows) > most and _agree(model, loss, replace(recipe, precision="full"), batch, most)
        unmoved = torch.equal(generator, torch.get_rng_state())
    except CODE_FAILS:
        return None
    finally:
        torch.set_rng_state(generator)
    kept = all(torch.equal(one, other) for one, other in zip(before, model.buffers(), strict=True))
    return most if agree and kept and unmoved else None


def _largest_result(model: nn.Module, inputs: Tensor) -> int:
    """Bytes of the largest tensor that a module gives for ``inputs``."""
    largest = 0

    def look(module: nn.Module, args: object, result: object) -> None:
        nonlocal largest
        if isinstance(result, Tensor):
            largest = max(largest, result.numel() * result.element_size())

    hooks = [module.register_forward_hook(look) for module in model.modules()]
    try:
        with torch.no_grad():
            model_outputs(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return largest


def _agree(model: nn.Module, loss: Loss, recipe: Recipe, batch: Batch, at_once: int) -> bool:
    """Whether a batch's gradients in parts are those of the whole, at the parameters of ``model`` and again a step further."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    for _ in range(2):
        slopes, whole = gradients(model, loss, recipe, parameters, batch, None)
        slopes_of_parts, in_parts = gradients(model, loss, recipe, parameters, batch, at_once)
        pairs = [(slopes, slopes_of_parts), *((a, b) for a, b in zip(whole, in_parts, strict=True) if a is not None and b is not None)]
        bound = torch.finfo(slopes.dtype).eps ** 0.5
        if not all(float((one - other).norm()) <= bound * float(one.norm()) for one, other in pairs):
            return False
        with torch.no_grad():
            for parameter, gradient in zip(parameters, whole, strict=True):
                if gradient is not None:
                    parameter.add_(gradient, alpha=-recipe.learning_rate)
    return True


def gradients(
    model: nn.Module, loss: Loss, recipe: Recipe, parameters: Sequence[Tensor], batch: Batch, at_once: int | None
) -> tuple[Tensor, list[Tensor | None]]:
    """dL/df / B (B, C) and the gradients of the batch's mean loss in ``parameters``; None for one that took no part."""
    total: list[Tensor | None] = []
    slopes: list[Tensor] = []
    for inputs, targets in zip(_parts(batch.inputs, at_once), _parts(batch.targets, at_once), strict=True):
        with tf32(recipe):
            outputs = training_outputs(model, inputs, recipe)
            slopes.append(loss.derivative(outputs.detach(), targets) / len(batch.rows))
            found = torch.autograd.grad(outputs, parameters, slopes[-1], allow_unused=True)
        total = [_sum(one, other) for one, other in zip(total, found, strict=True)] if total else list(found)
    return slopes[0] if len(slopes) == 1 else torch.cat(slopes), total


def _parts(rows: Tensor, at_once: int | None) -> tuple[Tensor, ...]:
    """As few as hold at most ``at_once`` rows each, of about equal size."""
    return (rows,) if at_once is None or len(rows) <= at_once else torch.tensor_split(rows, -(-len(rows) // at_once))


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one + other
