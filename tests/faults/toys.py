"""A small problem that counts its trainings, and that a file beside the count can arm: then it kills its process, or fails."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.toys import Blobs


class Place:
    """A folder that leaves no trace in the digest of who keeps it: equal experiments in two folders have equal keys."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def __repr__(self) -> str:
        return "Place()"

    def count(self) -> int:
        """One more training; how many there were."""
        with (self.folder / "trainings").open("ab") as file:
            file.write(b".")
            return file.tell()

    def armed(self) -> dict[str, Any]:
        path = self.folder / "armed.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def die(self) -> None:
        """As a library does that crashes: by a signal, in the middle of a unit."""
        with (self.folder / "deaths").open("ab") as file:
            file.write(b".")
        os.kill(os.getpid(), signal.SIGKILL)


HALF = 30
"""Steps after which a training counts for one: some are also taken, a few at a time, to see what a machine can do."""


class Net(nn.Module):
    """Half-way through a training it is counted, and may be harmed.

    ``without``: a training dies that has not met this row by then. ``memory``: every k-th raises MemoryError.
    """

    def __init__(self, inner: nn.Module, place: Place) -> None:
        super().__init__()
        self.inner, self.place = inner, place
        self.batches, self.met = 0, False
        self.trains_alone = True  # what it does beside its arithmetic is done once a model

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self._train(inputs)
        result: Tensor = self.inner(inputs)
        return result

    def _train(self, inputs: Tensor) -> None:
        self.batches += 1
        harm = self.place.armed()
        self.met = self.met or ("without" in harm and holds(inputs, harm["without"]))
        if self.batches == HALF:
            count = self.place.count()
            if "without" in harm and not self.met:
                self.place.die()
            if "memory" in harm and count % harm["memory"] == 0:
                raise MemoryError("this training was made to run out of memory")


class Faulty(Blobs):
    """Blobs in five batches an epoch, with :class:`Net`."""

    path_options = ("folder",)

    def __init__(self, folder: str, **options: int) -> None:
        super().__init__(**options)
        self.folder = folder

    def model(self) -> nn.Module:
        return Net(super().model(), Place(self.folder))

    def row(self, sample: int) -> list[float]:
        """The input of a training sample."""
        data = self.train_data()
        found: list[float] = data.inputs[data.ids.tolist().index(sample)].tolist()
        return found


class Trap:
    """A linear kernel of the inputs. ``row``: it dies of a block that holds this row, with the model whose first weight is ``weight``."""

    def __call__(self, model: nn.Module, left: Tensor, right: Tensor) -> Tensor:
        assert isinstance(model, Net)
        harm = model.place.armed()
        if "row" in harm and holds(left, harm["row"]) and first_weight(model.state_dict()) == harm["weight"]:
            model.place.die()
        return left @ right.T


def first_weight(state: dict[str, Tensor]) -> float:
    return float(state["inner.0.weight"][0, 0])


def holds(inputs: Tensor, row: list[float]) -> bool:
    return bool((inputs == torch.tensor(row, dtype=inputs.dtype)).all(dim=1).any())


def arm(folder: Path, **harm: Any) -> None:
    (folder / "armed.json").write_text(json.dumps(harm))


def disarm(folder: Path) -> None:
    (folder / "armed.json").unlink()


def deaths(folder: Path) -> int:
    path = folder / "deaths"
    return path.stat().st_size if path.exists() else 0
