"""The problem ``concrete``: compressive strength of 1,030 concrete mixtures (Yeh 1998, UCI), a regression."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from genrep_dist.core.losses import Loss
from genrep_dist.problems.datasets.cache import read_cached
from genrep_dist.problems.datasets.classes import check_seed
from genrep_dist.problems.datasets.concrete_files import TABLE, parse_table
from genrep_dist.problems.protocol import Dataset, Recipe


@dataclass(eq=False)
class Concrete:
    """Eight inputs (N, 8) and the strength (N, 1), float32, standardized by the training rows; loss `squared`.

    Nine tenths of the rows, drawn by numpy's generator of ``split_seed``, are the training set: 927 and 103 of UCI's table. The table comes
    from the cache (``genrep data fetch concrete --from PATH``). Ids are row numbers of the file. ProblemError for a seed that is not valid.
    """

    split_seed: int = 0

    name: ClassVar[str] = "concrete"

    def __post_init__(self) -> None:
        check_seed(self.split_seed, f"{self.name}.split_seed")
        self.loss: str | Loss = "squared"
        # Half the squared error has half the gradient: 0.06 is a rate of 0.03 on the squared error.
        self.recipe = Recipe(epochs=40, batch_size=32, learning_rate=0.06, weight_decay=5e-6, drop_last=True)

    def model(self) -> nn.Module:
        widths = (8, 128, 128, 128)
        hidden = [layer for inner, outer in pairwise(widths) for layer in (nn.Linear(inner, outer), nn.ReLU())]
        return nn.Sequential(*hidden, nn.Linear(128, 1))

    def train_data(self) -> Dataset:
        return self._rows(test=False)

    def test_data(self) -> Dataset:
        return self._rows(test=True)

    def _rows(self, *, test: bool) -> Dataset:
        table = parse_table(read_cached("concrete", TABLE), TABLE).astype(np.float32).astype(np.float64)
        # The order of numpy's older generator is that of the published split.
        order = np.random.RandomState(self.split_seed).choice(np.arange(len(table)), len(table), replace=False)
        num_train = round(0.9 * len(table))
        train = table[order[:num_train]]
        deviation = train.std(axis=0)
        scaled = (table - train.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
        rows = np.sort(order[num_train:] if test else order[:num_train])
        values = torch.from_numpy(scaled[rows].astype(np.float32))
        return Dataset(values[:, :8].contiguous(), values[:, 8:].contiguous(), torch.from_numpy(rows.astype(np.int64)))
