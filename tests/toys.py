"""Small problems of our own for the tests: seconds to train, every row known."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from genrep_dist.problems.protocol import Dataset, Recipe


def blobs(num_rows: int, num_features: int, seed: int, num_classes: int = 2) -> tuple[Tensor, Tensor]:
    """Overlapping Gaussian classes: inputs (N, D) float32 and class numbers (N,)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_rows) % num_classes
    centres = torch.randn(num_classes, num_features, generator=generator)
    return centres[labels] + torch.randn(num_rows, num_features, generator=generator), labels


class Blobs:
    """Two or more classes, a one-hidden-layer network. Ids are not 0..N-1 and not sorted, so that ids and positions cannot be confused."""

    def __init__(
        self, train_size: int = 40, test_size: int = 12, num_classes: int = 2, epochs: int = 4, bad_row: int | None = None
    ) -> None:
        self.num_classes = num_classes
        self.sizes = train_size, test_size
        self.bad_row = bad_row
        self.loss = "logistic" if num_classes == 2 else "softmax"
        self.recipe = Recipe(epochs=epochs, batch_size=8, learning_rate=0.1)

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1 if self.num_classes == 2 else self.num_classes))

    def train_data(self) -> Dataset:
        return self._data(0, self.sizes[0], 1000)

    def test_data(self) -> Dataset:
        return self._data(1, self.sizes[1], 5000)

    def _data(self, seed: int, rows: int, first_id: int) -> Dataset:
        inputs, labels = blobs(rows, 5, seed, self.num_classes)
        if self.bad_row is not None and seed == 0:
            inputs[self.bad_row, 2] = float("nan")
        targets = labels.float() if self.num_classes == 2 else labels
        return Dataset(inputs, targets, first_id + 3 * torch.arange(rows).flip(0))


class Dropped(Blobs):
    """A network with a dropout layer."""

    def model(self) -> nn.Module:
        outputs = 1 if self.num_classes == 2 else self.num_classes
        return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, outputs))


class Linear(Blobs):
    """A model that is linear in its parameters: the tracking identity holds exactly."""

    def model(self) -> nn.Module:
        return nn.Linear(5, 1 if self.num_classes == 2 else self.num_classes)


class Slopes(nn.Module):
    """A network with a layer that is not known; ``alone``: it says that it trains alone."""

    def __init__(self, alone: bool) -> None:
        super().__init__()
        self.inner, self.slopes, self.linear = nn.Linear(5, 6), nn.PReLU(6), nn.Linear(6, 1)
        self.trains_alone = alone

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.linear(self.slopes(self.inner(inputs)))
        return result


class Sloped(Blobs):
    """Blobs for :class:`Slopes`."""

    def __init__(self, alone: bool = False, **options: int) -> None:
        super().__init__(**options)
        self.alone = alone

    def model(self) -> nn.Module:
        return Slopes(self.alone)


class CountingNet(nn.Module):
    """Counts trainings in a file, across processes, and can fail or die in every k-th of them."""

    def __init__(self, inner: nn.Module, log: Path, every: int, how: str) -> None:
        super().__init__()
        self.inner = inner
        self.log, self.every, self.how = log, every, how
        self.counted = False
        self.trains_alone = True  # what it does beside its arithmetic is done once a model

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled() and not self.counted:
            self.counted = True
            with self.log.open("ab") as file:
                file.write(b".")
            if self.log.with_name("slow").exists():
                time.sleep(4.0)
            if self.every and self.log.stat().st_size % self.every == 0:
                if self.how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise RuntimeError("this training was made to fail")
        result: Tensor = self.inner(inputs)
        return result

    def extra_repr(self) -> str:
        return ""


class Counting(Blobs):
    """Blobs whose trainings are counted in ``folder``/trainings, one byte each; every ``every``-th fails or kills its process.

    Where there is a file ``folder``/slow, each takes seconds.
    """

    path_options = ("folder",)

    def __init__(self, folder: str, every: int = 0, how: str = "raise", **options: int) -> None:
        super().__init__(**options)
        self.log, self.every, self.how = Path(folder) / "trainings", every, how

    def model(self) -> nn.Module:
        return CountingNet(super().model(), self.log, self.every, self.how)


def trainings(folder: Path) -> int:
    """How many trainings a run over :class:`Counting` began."""
    log = folder / "trainings"
    return log.stat().st_size if log.exists() else 0


class Rbf:
    """A kernel of one's own: Gaussian in the hidden layer's activations."""

    def __init__(self, width: float = 1.0) -> None:
        self.width = width

    def __call__(self, model: nn.Module, left: Tensor, right: Tensor) -> Tensor:
        assert isinstance(model, nn.Sequential)
        hidden = model[:2]
        return torch.exp(-(torch.cdist(hidden(left), hidden(right)) ** 2) / self.width)
