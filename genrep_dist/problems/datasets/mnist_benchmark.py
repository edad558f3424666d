"""The problem ``mnist-benchmark``: the first rows of MNIST, all ten digits, and two small networks that published comparisons use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from genrep_dist.core.losses import Loss
from genrep_dist.errors import ProblemError
from genrep_dist.problems.datasets.cache import read_cached
from genrep_dist.problems.datasets.classes import check_size
from genrep_dist.problems.datasets.idx import parse_idx
from genrep_dist.problems.datasets.mnist_files import TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS
from genrep_dist.problems.protocol import Dataset, Recipe

PIXEL_MEAN, PIXEL_STD = 0.1307, 0.3081
"""Of the pixels of all training images."""


class Perceptron(nn.Module):
    """784-128-64-10 with ReLUs and dropout of 0.1 after both: inputs (B, 1, 28, 28) -> logits (B, 10). 109,386 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(784, 128),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Linear(128, 64),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Linear(64, 10),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.layers(inputs)
        return logits


def linear_model() -> nn.Module:
    """Logistic regression of ten classes: inputs (B, 1, 28, 28) -> logits (B, 10). 7,850 parameters."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Recipe]] = {
    "linear": (linear_model, Recipe(epochs=20, batch_size=32, learning_rate=0.01)),
    "mlp": (Perceptron, Recipe(epochs=50, batch_size=64, learning_rate=0.01, momentum=0.9)),
}
"""Each network with its recipe."""


@dataclass(eq=False)
class MnistBenchmark:
    """The first ``train_size`` rows of MNIST's training file and the first ``test_size`` of its test file, ten classes, softmax loss.

    Images come from the cache (``genrep data fetch mnist``). ``network`` is "linear" (logistic regression) or "mlp".

    Inputs are float32 (N, 1, 28, 28), standardized by the mean and deviation of all training pixels. Ids are row numbers of the training
    file; those of test rows are row numbers of the test file plus 60,000. ProblemError for options that are not valid.
    """

    network: str = "linear"
    train_size: int = 5000
    test_size: int = 500

    name: ClassVar[str] = "mnist-benchmark"

    def __post_init__(self) -> None:
        for option in ("train_size", "test_size"):
            check_size(getattr(self, option), f"{self.name}.{option}")
        if self.network not in NETWORKS:
            raise ProblemError(
                "there is no such network", where=f"{self.name}.network", expected=" or ".join(NETWORKS), got=repr(self.network)
            )
        self._build, self.recipe = NETWORKS[self.network]
        self.loss: str | Loss = "softmax"

    def model(self) -> nn.Module:
        return self._build()

    def train_data(self) -> Dataset:
        return self._first_rows(TRAIN_IMAGES, TRAIN_LABELS, self.train_size, 0)

    def test_data(self) -> Dataset:
        return self._first_rows(TEST_IMAGES, TEST_LABELS, self.test_size, 60_000)

    def _first_rows(self, images_name: str, labels_name: str, size: int, first_id: int) -> Dataset:
        images = parse_idx(read_cached("mnist", images_name), images_name, dtype=np.uint8, shape=(None, 28, 28))
        labels = parse_idx(read_cached("mnist", labels_name), labels_name, dtype=np.uint8, shape=(None,))
        if size > len(labels):
            raise ProblemError(
                "there are fewer rows", where=f"{self.name}, {labels_name}", expected=f"at most {len(labels)}", got=str(size)
            )
        inputs = torch.from_numpy(images[:size].copy()).unsqueeze(1).to(torch.float32).div_(255).sub_(PIXEL_MEAN).div_(PIXEL_STD)
        return Dataset(inputs, torch.from_numpy(labels[:size].astype(np.int64)), torch.arange(first_id, first_id + size))
