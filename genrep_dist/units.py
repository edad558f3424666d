"""Units of work, as data: small, picklable, and all that a worker needs to be told beside the job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from genrep_dist.config.sections import StageName as StageName  # noqa: PLC0414 - others know it as a name of this module


@dataclass(frozen=True)
class TrainUnit:
    """Train one seed's model; writes its checkpoints, tracked importances and outputs."""

    seed: int
    stage: StageName = "train"

    @property
    def label(self) -> str:
        return f"train seed={self.seed}"


@dataclass(frozen=True)
class GradientUnit:
    """Features of the training rows ``start`` to ``stop``: one shard."""

    seed: int
    kernel: str
    epoch: int
    start: int
    stop: int
    stage: StageName = "gradients"

    @property
    def part(self) -> str:
        return f"rows-{self.start:09d}"

    @property
    def label(self) -> str:
        return f"gradients seed={self.seed} {self.kernel} epoch={self.epoch} rows {self.start}-{self.stop}"


@dataclass(frozen=True)
class KernelUnit:
    """K(train rows ``start`` to ``stop``, the seed's test points). ``stored``: from stored features; else gradients are streamed."""

    seed: int
    kernel: str
    epoch: int
    start: int
    stop: int
    stored: bool
    stage: StageName = "kernels"

    @property
    def part(self) -> str:
        return f"rows-{self.start:09d}"

    @property
    def label(self) -> str:
        return f"kernel seed={self.seed} {self.kernel} epoch={self.epoch} rows {self.start}-{self.stop}"


@dataclass(frozen=True)
class GramUnit:
    """One tile of the train-by-train gram, ``row`` <= ``column`` in tiles of ``tile`` training rows."""

    seed: int
    kernel: str
    epoch: int
    row: int
    column: int
    tile: int
    block: int
    stored: bool
    stage: StageName = "kernels"

    @property
    def part(self) -> str:
        return f"tile-{self.row:06d}-{self.column:06d}"

    @property
    def label(self) -> str:
        return f"gram seed={self.seed} {self.kernel} epoch={self.epoch} tile ({self.row}, {self.column})"


@dataclass(frozen=True)
class InfluenceUnit:
    """The influence kernel K_inf(train, test) of one seed, with the declared curvature."""

    seed: int
    epoch: int
    block: int
    stage: StageName = "influence"

    @property
    def label(self) -> str:
        return f"influence kernel seed={self.seed} epoch={self.epoch}"


@dataclass(frozen=True)
class ImportanceUnit:
    """Importances that are solved for on one gram: 'surrogate' or 'descent'. (Target and tracking ones fall out of training.)"""

    seed: int
    importance: str
    kernel: str
    epoch: int
    memory_budget_bytes: int
    stage: StageName = "importances"

    @property
    def label(self) -> str:
        return f"{self.importance} seed={self.seed} {self.kernel} epoch={self.epoch}"


@dataclass(frozen=True)
class AttributionUnit:
    """phi(train, test points) of one method, and what it would remove."""

    seed: int
    method: str
    stage: StageName = "attributions"

    @property
    def label(self) -> str:
        return f"attribution seed={self.seed} {self.method}"


@dataclass(frozen=True)
class DiagonalUnit:
    """K(x_i, x_i) of every training sample with the logit of its own label (N, C): what self-influence is made of."""

    seed: int
    kernel: str
    epoch: int
    block: int
    stage: StageName = "diagonals"

    @property
    def label(self) -> str:
        return f"diagonal seed={self.seed} {self.kernel} epoch={self.epoch}"


@dataclass(frozen=True)
class Retraining:
    """One model of the ledger: ``removed`` are sorted sample ids."""

    key: str
    seed: int
    policy: Literal["same", "fresh"]
    removed: tuple[int, ...]
    replicate: int = 0


@dataclass(frozen=True)
class RetrainUnit:
    """Retrainings that one task does and writes as one part of the ledger."""

    rows: tuple[Retraining, ...]
    stage: StageName = "retrain"

    @property
    def label(self) -> str:
        return f"retrain {len(self.rows)} models, seed={self.rows[0].seed}, first key {self.rows[0].key[:12]}"


Unit = TrainUnit | GradientUnit | KernelUnit | GramUnit | InfluenceUnit | ImportanceUnit | AttributionUnit | DiagonalUnit | RetrainUnit
