"""The problem ``cifar10``: 32x32 colour images of ten classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from genrep_dist.core.losses import Loss
from genrep_dist.errors import ProblemError
from genrep_dist.problems.datasets.cifar_files import BATCH_ROWS, CIFAR10_CLASSES, TEST_BATCH, TRAIN_BATCHES, read_batches
from genrep_dist.problems.datasets.classes import (
    SPLIT_SEED,
    apportion,
    check_classes,
    check_seed,
    check_size,
    class_targets,
    loss_name,
    num_logits,
    rows_by_class,
)
from genrep_dist.problems.datasets.image_models import VisionCNN
from genrep_dist.problems.protocol import Dataset, Recipe, Schedule

_MEAN = (0.4914, 0.4822, 0.4465)
_STD = (0.2470, 0.2435, 0.2616)
"""Of the red, green and blue values of all 50,000 training images."""


class Cifar10:
    """Two classes with one logit (1.0 stands for ``classes[1]``), or more with one logit each; ``classes=None`` takes all ten.

    Classes are numbers: 0 airplane, 1 automobile, 2 bird, 3 cat, 4 deer, 5 dog, 6 frog, 7 horse, 8 ship, 9 truck. Images come from
    the cache (``genrep data fetch cifar10``). Out of the rows of the classes (5,000 training rows each, at most ``per_class``)
    ``train_size``, and out of the test rows ``test_size``, are drawn by ``split_seed`` with the classes' own proportions (None: all).

    Inputs are float32 (N, 3, 32, 32), each channel with mean 0 and standard deviation 1 over the training images. Ids are
    ascending: the row in the original batches, test rows after the 50,000 training rows.
    """

    def __init__(
        self,
        classes: Sequence[int] | None = (1, 7),
        train_size: int | None = None,
        test_size: int | None = None,
        per_class: int | None = 6000,
        split_seed: int = SPLIT_SEED,
        epochs: int = 10,
        batch_size: int = 16,
        learning_rate: float = 0.05,
        schedule: Schedule = "constant",
    ) -> None:
        self.classes = check_classes(classes, "cifar10")
        if max(self.classes) > 9:
            expected = ", ".join(f"{number} {name}" for number, name in enumerate(CIFAR10_CLASSES))
            raise ProblemError("there is no such class", where="cifar10.classes", expected=expected, got=repr(classes))
        self.train_size = check_size(train_size, "cifar10.train_size")
        self.test_size = check_size(test_size, "cifar10.test_size")
        self.per_class = check_size(per_class, "cifar10.per_class")
        self.split_seed = check_seed(split_seed, "cifar10.split_seed")
        self.loss: str | Loss = loss_name(self.classes)
        self.recipe = Recipe(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, schedule=schedule)

    def model(self) -> nn.Module:
        return VisionCNN(3, 32, num_logits(self.classes))

    def train_data(self) -> Dataset:
        return self._dataset(TRAIN_BATCHES, 0, self.per_class, self.train_size, "cifar10.train_size")

    def test_data(self) -> Dataset:
        return self._dataset((TEST_BATCH,), BATCH_ROWS * len(TRAIN_BATCHES), None, self.test_size, "cifar10.test_size")

    def _dataset(self, batches: tuple[str, ...], first_id: int, per_class: int | None, size: int | None, where: str) -> Dataset:
        images, labels = read_batches(batches)
        ids = np.arange(first_id, first_id + len(labels))
        groups = [group[:per_class] for group in rows_by_class(labels, ids, self.classes, "cifar10", self.split_seed)]
        counts = apportion([len(group) for group in groups], size, where)
        ids = np.sort(np.concatenate([group[:count] for group, count in zip(groups, counts, strict=True)]))
        rows = ids - first_id
        pixels = torch.from_numpy(images[rows]).to(torch.float32) / 255
        inputs = (pixels - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_STD).view(3, 1, 1)
        return Dataset(inputs, class_targets(labels[rows], self.classes), torch.from_numpy(ids))
