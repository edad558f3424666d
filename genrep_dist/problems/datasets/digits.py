"""The problem ``digits``: the 1,797 images of handwritten digits of scikit-learn, 8x8 pixels. They need no fetching."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from genrep_dist.core.losses import Loss
from genrep_dist.errors import ProblemError
from genrep_dist.problems.datasets.classes import (
    Ids,
    apportion,
    check_classes,
    check_size,
    class_targets,
    loss_name,
    num_logits,
    rows_by_class,
)
from genrep_dist.problems.datasets.image_models import SmallCNN
from genrep_dist.problems.protocol import Dataset, Recipe, Schedule


@dataclass(eq=False)
class Digits:
    """Two classes with one logit (1.0 stands for ``classes[1]``), or more with one logit each; ``classes=None`` takes all ten.

    ``train_size`` and ``test_size`` rows are drawn without overlap, with the class proportions, the same in all experiments. If one of
    them is None, it is all rows that the other leaves. If both are None, a fifth of the rows is the test set.

    Inputs are float32 (N, 1, 8, 8) in [0, 1]. Ids are row numbers of ``load_digits``, ascending. The default learning rate is 0.2
    for two classes and 0.5 for more. ProblemError for options that are not valid.
    """

    classes: Sequence[int] | None = (3, 8)
    train_size: int | None = 250
    test_size: int | None = None
    epochs: int = 20
    batch_size: int = 32
    learning_rate: float | None = None
    schedule: Schedule = "constant"

    def __post_init__(self) -> None:
        self.class_list = check_classes(self.classes, "digits")
        if max(self.class_list) > 9:
            raise ProblemError("there is no such digit", where="digits.classes", expected="digits from 0 to 9", got=repr(self.classes))
        check_size(self.train_size, "digits.train_size")
        check_size(self.test_size, "digits.test_size")
        self.loss: str | Loss = loss_name(self.class_list)
        rate = self.learning_rate if self.learning_rate is not None else 0.2 if len(self.class_list) == 2 else 0.5
        self.recipe = Recipe(self.epochs, self.batch_size, rate, self.schedule)

    def model(self) -> nn.Module:
        return SmallCNN(num_logits(self.class_list))

    def train_data(self) -> Dataset:
        images, labels = _load()
        return self._dataset(images, labels, self._split(labels)[0])

    def test_data(self) -> Dataset:
        images, labels = _load()
        return self._dataset(images, labels, self._split(labels)[1])

    def _split(self, labels: npt.NDArray[np.int64]) -> tuple[Ids, Ids]:
        """Row numbers of the training set and of the test set, both ascending."""
        groups = rows_by_class(labels, np.arange(len(labels)), self.class_list, "digits")
        counts = [len(group) for group in groups]
        if self.train_size is None:
            test = apportion(counts, self.test_size or sum(counts) // 5, "digits.test_size")
            left = [count - taken for count, taken in zip(counts, test, strict=True)]
            train = apportion(left, None, "digits.train_size")
        else:
            train = apportion(counts, self.train_size, "digits.train_size")
            left = [count - taken for count, taken in zip(counts, train, strict=True)]
            test = apportion(left, self.test_size, "digits.test_size (of the rows that are not training rows)")
        train_ids = [group[:count] for group, count in zip(groups, train, strict=True)]
        test_ids = [group[len(group) - count :] for group, count in zip(groups, test, strict=True)]
        return np.sort(np.concatenate(train_ids)), np.sort(np.concatenate(test_ids))

    def _dataset(self, images: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], rows: Ids) -> Dataset:
        inputs = torch.from_numpy(images[rows]).unsqueeze(1) / 16
        return Dataset(inputs, class_targets(labels[rows], self.class_list), torch.from_numpy(rows))


def _load() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Images (1797, 8, 8) with values 0..16 and labels (1797,)."""
    from sklearn.datasets import load_digits  # takes seconds to import

    bunch = load_digits()
    return np.asarray(bunch.images, dtype=np.float32), np.asarray(bunch.target, dtype=np.int64)
