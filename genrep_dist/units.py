"""Units of work, as data: small, picklable, and all that a worker needs besides the job. Each stage defines its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from genrep_dist.core.changes import Change, Labels, Weights
from genrep_dist.core.policies import RetrainPolicy

StageName = str


@dataclass(frozen=True)
class Unit:
    """One unit of work of one seed; ``stage`` names the stage that runs it."""

    seed: int
    stage: ClassVar[StageName]

    @property
    def label(self) -> str:
        """What it computes, for people."""
        return f"{self.stage} seed={self.seed}"

    @property
    def part(self) -> str:
        """Name of the part that it writes; empty for a unit that writes a whole artifact."""
        return ""

    @property
    def size(self) -> int:
        """How many units it counts for in progress and rates: a retraining task counts its models."""
        return 1

    @property
    def ledger_key(self) -> str | None:
        """The ledger row that it alone writes; None for anything else."""
        return None

    def samples(self, train_ids: npt.NDArray[np.int64]) -> tuple[str, list[int]]:
        """How it relates to which training samples, for people, and their ids; nothing where it is about all of them."""
        del train_ids
        return "", []


@dataclass(frozen=True)
class RowsUnit(Unit):
    """A unit about the training rows ``start`` to ``stop``, which writes them as one part."""

    kernel: str
    epoch: int
    start: int
    stop: int

    @property
    def part(self) -> str:
        return f"rows-{self.start:09d}"

    @property
    def label(self) -> str:
        return f"{self.stage} seed={self.seed} {self.kernel} epoch={self.epoch} rows {self.start}-{self.stop}"

    def samples(self, train_ids: npt.NDArray[np.int64]) -> tuple[str, list[int]]:
        return "samples", train_ids[self.start : self.stop].tolist()


@dataclass(frozen=True)
class Retraining:
    """One model of the ledger: ``removed`` are sorted sample ids, ``weights`` and ``labels`` as in a :class:`Change`."""

    key: str
    seed: int
    policy: RetrainPolicy
    removed: tuple[int, ...]
    replicate: int = 0
    weights: Weights = ()
    labels: Labels = ()

    @property
    def change(self) -> Change:
        """What the training set differs in from the original's."""
        return Change(self.removed, self.weights, self.labels)
