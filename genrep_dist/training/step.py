"""One step of a pack of models: from the rows of a batch to the next parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from genrep_dist.core.tensors import OUT_OF_MEMORY
from genrep_dist.errors import GenRepError, ProblemError
from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.training.batches import Step
from genrep_dist.training.packs.base import Pack
from genrep_dist.training.precision import tf32, training_outputs
from genrep_dist.training.torch_private import vector_jacobian_product

Derivative = Callable[[Tensor, Tensor], Tensor]
"""dL/df (B, C) from outputs (B, C) and targets (B, ...)."""


class PackStep:
    """Forward pass, dL/df, backward pass and update of all models of a pack.

    What changes from step to step is passed in: the batch, the learning rate, and augmented inputs. All else that a step reads is memory
    that stays where it is: the pack's, and the training set ``data`` with the ``targets`` (S, N, ...) of each model (None: those of the
    data). ``describe(slot)`` names a model's training in error messages.
    """

    def __init__(
        self, pack: Pack, derivative: Derivative, recipe: Recipe, data: Dataset, targets: Tensor | None, describe: Callable[[int], str]
    ) -> None:
        self._pack, self._derivative, self._recipe = pack, derivative, recipe
        self._data, self._targets, self._describe = data, targets, describe

    def take(self, step: Step, rate: float, inputs: Tensor | None = None) -> Tensor:
        """Take one step; dL/df (S B, C) of the batch means. ``inputs`` (S B, ...) in place of the rows of the data."""
        pack = self._pack
        pack.begin(step)
        if inputs is None:
            inputs = self._data.inputs[pack.rows_read(step).flatten()]
        with tf32(self._recipe), self._one_row_explained(step):
            outputs = training_outputs(pack.module, inputs, self._recipe, step.rows.numel())
            output_gradient = step.mean_gradient(self._derivative(outputs.detach(), self._targets_of(step.rows)))
            gradients = vector_jacobian_product(outputs, pack.parameters, output_gradient, allow_unused=True)
        pack.optimized.step(gradients, rate, step.idle_slots, consume=pack.owns_gradients)
        return output_gradient

    def _targets_of(self, rows: Tensor) -> Tensor:
        """The targets (S B, ...) of ``rows`` (S, B), each model's own."""
        if self._targets is None:
            return self._data.targets[rows.flatten()]
        slots = torch.arange(len(rows), device=rows.device).unsqueeze(1)
        return self._targets[slots, rows].flatten(0, 1)

    @contextmanager
    def _one_row_explained(self, step: Step) -> Iterator[None]:
        """Turns an error of the model on a batch of one row, as batch normalisation raises it, into a ProblemError that names the cause."""
        try:
            yield
        except (GenRepError, *OUT_OF_MEMORY):
            raise
        except Exception as error:
            sole: Sequence[tuple[int, int]] = step.sole_rows()
            if not sole:
                raise
            (slot, row), *_ = sole
            layers = self._pack.normalizing_layers()
            raise ProblemError(
                "the model fails in training on a batch of one row",
                where=f"{self._describe(slot)}, sample id {int(self._data.ids[row])}",
                expected="a step on what a removal leaves of a batch",
                got=f"{type(error).__name__}: {error}" + (f"; layers that normalise: {', '.join(layers[:3])}" if layers else ""),
                remedy="set another recipe.batch_size, or use GroupNorm or LayerNorm, which normalise each row by itself",
            ) from error
