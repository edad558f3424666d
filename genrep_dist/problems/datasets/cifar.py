"""The problem ``cifar10``: 32x32 colour images of ten classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from genrep_dist.errors import ProblemError
from genrep_dist.problems.datasets.cifar_files import BATCH_ROWS, CIFAR10_CLASSES, TEST_BATCH, TRAIN_BATCHES, read_batches
from genrep_dist.problems.datasets.classes import ClassificationProblem, check_classes, class_targets, num_logits
from genrep_dist.problems.datasets.image_models import VisionCNN
from genrep_dist.problems.protocol import Dataset

_MEAN = (0.4914, 0.4822, 0.4465)
_STD = (0.2470, 0.2435, 0.2616)
"""Of the red, green and blue values of all 50,000 training images."""


@dataclass(eq=False)
class Cifar10(ClassificationProblem):
    """Two classes with one logit (1.0 stands for ``classes[1]``), or more with one logit each; ``classes=None`` takes all ten.

    Classes are numbers: 0 airplane, 1 automobile, 2 bird, 3 cat, 4 deer, 5 dog, 6 frog, 7 horse, 8 ship, 9 truck, each with 5,000
    training rows. Images come from the cache (``genrep data fetch cifar10``). Other options are those of
    :class:`~genrep_dist.problems.datasets.classes.ClassificationProblem`.

    Inputs are float32 (N, 3, 32, 32), each channel with mean 0 and standard deviation 1 over all training images. Ids are ascending:
    row numbers of the original batches, test rows after the 50,000 training rows.
    """

    learning_rate: float = 0.05
    classes: Sequence[int] | None = (1, 7)

    name: ClassVar[str] = "cifar10"

    def _check_classes(self) -> tuple[int, ...]:
        classes = check_classes(self.classes, "cifar10")
        if max(classes) > 9:
            expected = ", ".join(f"{number} {name}" for number, name in enumerate(CIFAR10_CLASSES))
            raise ProblemError("there is no such class", where="cifar10.classes", expected=expected, got=repr(self.classes))
        return classes

    def model(self) -> nn.Module:
        return VisionCNN(3, 32, num_logits(self.class_list))

    def _dataset(self, *, test: bool) -> Dataset:
        images, labels = read_batches((TEST_BATCH,) if test else TRAIN_BATCHES)
        first_id = BATCH_ROWS * len(TRAIN_BATCHES) if test else 0
        _, ids = self._choose_rows(labels, np.arange(first_id, first_id + len(labels)), self.class_list, test=test)
        rows = ids - first_id
        pixels = torch.from_numpy(images[rows]).to(torch.float32) / 255
        inputs = (pixels - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_STD).view(3, 1, 1)
        return Dataset(inputs, class_targets(labels[rows], self.class_list), torch.from_numpy(ids))
