"""The problem ``mnist``: 28x28 images of handwritten digits, or of anything else in files of the same format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from genrep_dist.core.losses import Loss
from genrep_dist.errors import ProblemError
from genrep_dist.problems.datasets.classes import apportion, check_classes, check_size, class_targets, loss_name, num_logits, rows_by_class
from genrep_dist.problems.datasets.idx import find_idx, parse_idx, read_idx
from genrep_dist.problems.datasets.image_models import VisionCNN
from genrep_dist.problems.datasets.mnist_files import TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS, read_cached_mnist
from genrep_dist.problems.protocol import Dataset, Recipe, Schedule


class Mnist:
    """Two classes with one logit (1.0 stands for ``classes[1]``), or more with one logit each; ``classes=None`` takes all ten.

    Images come from the cache (``genrep data fetch mnist``), or from ``folder`` with the four IDX files, raw or .gz. At most
    ``per_class`` training rows of each class are used (None: no limit); out of these ``train_size``, and out of the test rows of
    the classes ``test_size``, are drawn with the classes' own proportions, the same in every experiment (None: all).

    Inputs are float32 (N, 1, 28, 28) in [0, 1]. Ids are ascending: the row in the original training file, and for test rows the
    row in the test file plus the number of training rows there (60,000), so that no id occurs twice.
    """

    path_options = ("folder",)

    def __init__(
        self,
        classes: Sequence[int] | None = (3, 8),
        folder: str | None = None,
        train_size: int | None = None,
        test_size: int | None = None,
        per_class: int | None = 6000,
        epochs: int = 10,
        batch_size: int = 16,
        learning_rate: float = 0.1,
        schedule: Schedule = "constant",
    ) -> None:
        self.classes = check_classes(classes, "mnist")
        self.folder = None if folder is None else Path(folder).expanduser()
        self.train_size = check_size(train_size, "mnist.train_size")
        self.test_size = check_size(test_size, "mnist.test_size")
        self.per_class = check_size(per_class, "mnist.per_class")
        self.loss: str | Loss = loss_name(self.classes)
        self.recipe = Recipe(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, schedule=schedule)

    def model(self) -> nn.Module:
        return VisionCNN(1, 28, num_logits(self.classes))

    def train_data(self) -> Dataset:
        return self._dataset(TRAIN_IMAGES, self._labels(TRAIN_LABELS), 0, self.per_class, self.train_size, "mnist.train_size")

    def test_data(self) -> Dataset:
        first_id = len(self._labels(TRAIN_LABELS))
        return self._dataset(TEST_IMAGES, self._labels(TEST_LABELS), first_id, None, self.test_size, "mnist.test_size")

    def _dataset(
        self, images_name: str, labels: npt.NDArray[np.uint8], first_id: int, per_class: int | None, size: int | None, where: str
    ) -> Dataset:
        groups = rows_by_class(labels, np.arange(first_id, first_id + len(labels)), self.classes, "mnist")
        groups = [group[:per_class] for group in groups]
        counts = apportion([len(group) for group in groups], size, where)
        ids = np.sort(np.concatenate([group[:count] for group, count in zip(groups, counts, strict=True)]))
        rows = ids - first_id
        images = self._read(images_name, (None, 28, 28))
        if len(images) != len(labels):
            raise ProblemError(
                "there are not as many images as labels",
                where=f"{self.folder or 'cache'}: {images_name}",
                expected=str(len(labels)),
                got=str(len(images)),
            )
        inputs = torch.from_numpy(images[rows]).unsqueeze(1).to(torch.float32).div_(255)
        return Dataset(inputs, class_targets(labels[rows], self.classes), torch.from_numpy(ids))

    def _labels(self, name: str) -> npt.NDArray[np.uint8]:
        return self._read(name, (None,))

    def _read(self, name: str, shape: tuple[int | None, ...]) -> npt.NDArray[Any]:
        if self.folder is not None:
            return read_idx(find_idx(self.folder, name), dtype=np.uint8, shape=shape)
        return parse_idx(read_cached_mnist(name), name, dtype=np.uint8, shape=shape)
