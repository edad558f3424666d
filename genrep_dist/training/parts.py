"""A step's rows go through a network a part at a time, where all at once would leave the processor's cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.representers.features import outputs as model_outputs
from genrep_dist.representers.losses import Loss
from genrep_dist.training.batches import Batch
from genrep_dist.training.packs import CODE_FAILS
from genrep_dist.training.precision import training_outputs
from genrep_dist.training.randomness import Randomness

CACHED_BYTES = 4 * 2**20
"""Of the largest result of a layer for the rows of a part. It is written, read, and written again on the way back: beyond a core's cache
each time costs what the memory costs, and a step of the vision networks a tenth to a quarter more."""
FEWEST_ROWS = 16
"""Of a part: calls cost more than caches save below it."""


def rows_at_once(factory: Callable[[], nn.Module], recipe: Recipe, data: Dataset) -> int | None:
    """How many rows of a batch go through a model of ``factory`` together; None for all.

    A function of the model, the recipe and the shape of the data, and of nothing that is timed: it changes the last bits. A model is asked
    in parts only if a trial on a batch shows that its outputs for a row do not depend on the other rows, that it draws no random numbers
    and that it keeps nothing.
    """
    if data.inputs.device.type != "cpu":
        return None
    inputs = data.inputs[: recipe.batch_size]
    model = Randomness(0).build(factory).train()
    largest = 0

    def look(module: nn.Module, inputs: object, result: object) -> None:
        nonlocal largest
        if isinstance(result, Tensor):
            largest = max(largest, result.numel() * result.element_size())

    hooks = [module.register_forward_hook(look) for module in model.modules()]
    generator = torch.get_rng_state()
    before = [buffer.clone() for buffer in model.buffers()]
    try:
        with torch.no_grad():
            whole = model_outputs(model, inputs)
            for hook in hooks:
                hook.remove()
            most = max(FEWEST_ROWS, CACHED_BYTES * len(inputs) // max(1, largest))
            if len(inputs) <= most:
                return None
            parts = torch.cat([model_outputs(model, part) for part in _parts(inputs, most)])
        unmoved = torch.equal(generator, torch.get_rng_state())
    except CODE_FAILS:
        return None
    finally:
        torch.set_rng_state(generator)
    kept = all(torch.equal(one, other) for one, other in zip(before, model.buffers(), strict=True))
    close = float((whole - parts).norm()) <= torch.finfo(whole.dtype).eps ** 0.5 * float(whole.norm())
    return most if close and kept and unmoved else None


def gradients(
    model: nn.Module, loss: Loss, recipe: Recipe, parameters: Sequence[Tensor], batch: Batch, at_once: int | None
) -> tuple[Tensor, list[Tensor | None]]:
    """dL/df / B (B, C) and the gradients of the batch's mean loss in ``parameters``; None for one that took no part."""
    total: list[Tensor | None] = []
    slopes: list[Tensor] = []
    for inputs, targets in zip(_parts(batch.inputs, at_once), _parts(batch.targets, at_once), strict=True):
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
