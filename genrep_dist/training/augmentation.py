"""Augmentation: rows as a function of (row, epoch, generator), whatever the batch, the pack and the removed rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from genrep_dist.core.inputs import form_of, packed_row, unpacked_row
from genrep_dist.errors import ProblemError
from genrep_dist.extension import extension_code, owner_text, require_returned
from genrep_dist.problems.protocol import Augment, Dataset
from genrep_dist.registry import import_object
from genrep_dist.training.randomness import Randomness

CHECKED_ROWS = 2


class Augmentation:
    """The augmented rows of a training set, computed one at a time on the CPU.

    What the function draws follows from the run's random numbers, the sample's id and the epoch. Models that train with the same random
    numbers share their augmented rows.
    """

    def __init__(self, augment: Augment | str, data: Dataset) -> None:
        self._augment: Any = import_object(augment) if isinstance(augment, str) else augment
        self._inputs, self._ids, self._device = data.inputs.cpu(), data.ids.tolist(), data.inputs.device
        self._generator = torch.Generator()

    def batch(self, randomness: Sequence[Randomness], rows: Tensor, epoch: int) -> Tensor:
        """The rows (S B, ...) of S models at positions ``rows`` (S, B), in ``epoch`` (from 1), on the device of the data.

        Raises ExtensionError if the function fails, ProblemError if it returns something else than such a row.
        """
        made: dict[tuple[Randomness, int], Tensor] = {}
        found = []
        for own, positions in zip(randomness, rows.tolist(), strict=True):
            for row in positions:
                if (own, row) not in made:
                    made[own, row] = self._row(own, row, epoch)
                found.append(made[own, row])
        return torch.stack(found).to(self._device)

    def check(self) -> None:
        """Raise ProblemError if two calls with equal generators differ."""
        rows = torch.arange(min(CHECKED_ROWS, len(self._ids))).unsqueeze(0)
        batches = []
        for seed in range(2):
            # Other default generators, and the same one for the function.
            with Randomness(seed).scope("train"):
                batches.append(self.batch([Randomness(0)], rows, 1))
        if not torch.equal(*batches):
            raise ProblemError(
                "the augmentation of a row is not a function of the row, the epoch and the generator",
                where=f"recipe.augment: {owner_text(self._augment)}",
                expected="equal rows from equal generators",
                got="rows that differ from one call to the next",
                remedy="draw from the generator that is passed, as in torch.rand(2, generator=generator), and keep no state between calls",
            )

    def _row(self, randomness: Randomness, row: int, epoch: int) -> Tensor:
        self._generator.manual_seed(randomness.number("augment", epoch, self._ids[row]))
        plain, form = self._inputs[row], form_of(self._inputs)
        with extension_code(self._augment, "__call__"):
            found: object = self._augment(unpacked_row(plain.clone()), epoch, self._generator)
            if form is not None:
                found = packed_row(found, form)
        fits = isinstance(found, Tensor) and found.shape == plain.shape and found.dtype == plain.dtype
        got = f"{found.dtype} of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        expected = f"a row as it was given, {plain.dtype} of shape {tuple(plain.shape)}"
        require_returned(fits, self._augment, "__call__", expected, got, f"sample {self._ids[row]}")
        assert isinstance(found, Tensor)
        return found.detach().cpu()
