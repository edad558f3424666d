"""The problem ``mnist``: 28x28 images of handwritten digits, or other images in files of the same format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from genrep_dist.errors import ProblemError
from genrep_dist.problems.datasets.cache import read_cached
from genrep_dist.problems.datasets.classes import ClassificationProblem, check_classes, class_targets, num_logits
from genrep_dist.problems.datasets.idx import find_idx, parse_idx, read_idx
from genrep_dist.problems.datasets.image_models import VisionCNN
from genrep_dist.problems.datasets.mnist_files import TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS
from genrep_dist.problems.protocol import Dataset


@dataclass(eq=False)
class Mnist(ClassificationProblem):
    """Two classes with one logit (1.0 stands for ``classes[1]``), or more with one logit each; ``classes=None`` takes all ten.

    Images come from the cache (``genrep data fetch mnist``), or from ``folder`` with the four IDX files, raw or .gz. Other options are
    those of :class:`~genrep_dist.problems.datasets.classes.ClassificationProblem`.

    Inputs are float32 (N, 1, 28, 28) in [0, 1]. Ids are ascending: row numbers of the training file, and for test rows row numbers of
    the test file plus the length of the training file (60,000), so that all ids differ.
    """

    classes: Sequence[int] | None = (3, 8)
    folder: str | None = None

    name: ClassVar[str] = "mnist"
    path_options: ClassVar[tuple[str, ...]] = ("folder",)

    def _check_classes(self) -> tuple[int, ...]:
        return check_classes(self.classes, "mnist")

    def model(self) -> nn.Module:
        return VisionCNN(1, 28, num_logits(self.class_list))

    def _dataset(self, *, test: bool) -> Dataset:
        labels = self._read(TEST_LABELS if test else TRAIN_LABELS, (None,))
        first_id = len(self._read(TRAIN_LABELS, (None,))) if test else 0
        _, ids = self._choose_rows(labels, np.arange(first_id, first_id + len(labels)), self.class_list, test=test)
        images_name = TEST_IMAGES if test else TRAIN_IMAGES
        images = self._read(images_name, (None, 28, 28))
        if len(images) != len(labels):
            raise ProblemError(
                "the numbers of images and labels differ",
                where=f"{self.folder or 'cache'}: {images_name}",
                expected=str(len(labels)),
                got=str(len(images)),
            )
        rows = ids - first_id
        inputs = torch.from_numpy(images[rows]).unsqueeze(1).to(torch.float32).div_(255)
        return Dataset(inputs, class_targets(labels[rows], self.class_list), torch.from_numpy(ids))

    def _read(self, name: str, shape: tuple[int | None, ...]) -> npt.NDArray[Any]:
        if self.folder is not None:
            return read_idx(find_idx(Path(self.folder).expanduser(), name), dtype=np.uint8, shape=shape)
        return parse_idx(read_cached("mnist", name), name, dtype=np.uint8, shape=shape)
