"""What a stage is: its units, its artifacts, its work, its memory and its cost in one file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from genrep_dist.extension import Extension
from genrep_dist.plan import Plan, StagePlan
from genrep_dist.units import StageName, Unit

if TYPE_CHECKING:
    from genrep_dist.store import Store
    from genrep_dist.workflow.context import WorkerContext

UnitT = TypeVar("UnitT", bound=Unit)
SampleAxis = tuple[Literal["train", "test"], int]
"""A data set, and the axis of an array along which its samples run."""


@dataclass(frozen=True)
class ArraySpec:
    """An array that the driver declares before workers fill it: its chunk grid is the grid of parts."""

    name: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dimension_names: tuple[str, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class ArtifactSpec:
    """One artifact and the units that make it. Without ``array`` a single unit writes and commits the whole of it.

    ``manifest``: what the driver writes into the manifest of an artifact that is made of parts.
    """

    kind: str
    key: str
    seed: int
    units: tuple[Unit, ...]
    array: ArraySpec | None = None
    manifest: dict[str, Any] = field(default_factory=dict)

    @property
    def parts(self) -> list[str]:
        return [unit.part for unit in self.units if unit.part]

    def missing_units(self, store: Store) -> Sequence[Unit]:
        """The units that still have to run: none of a committed artifact, all of one that was never begun."""
        artifact = store.artifact(self.kind, self.key)
        if artifact.is_committed():
            return ()
        if self.array is None:
            return self.units
        done = artifact.parts_done()
        return [unit for unit in self.units if unit.part not in done]

    def declare(self, store: Store) -> None:
        """Create the metadata of its array, once, before any worker opens it."""
        spec = self.array
        if spec is not None:
            store.artifact(self.kind, self.key).create(spec.name, spec.shape, spec.chunks, spec.dtype, spec.dimension_names)

    def commit(self, store: Store) -> None:
        """Commit an artifact that is made of parts, once all are there; others have committed themselves."""
        artifact = store.artifact(self.kind, self.key)
        if self.array is not None and not artifact.is_committed():
            artifact.commit({"seed": self.seed, **self.manifest}, self.parts)


@dataclass(frozen=True)
class Rates:
    """Measured on one worker: seconds to train an original model, and a retrained one among those that share its steps; training rows a
    second through gradients; multiply-adds a second.
    """

    train_seconds: float
    retrain_seconds: float
    gradient_rows_per_second: float
    multiply_adds_per_second: float


class Stage(Extension, ABC, Generic[UnitT]):
    """One stage of a run.

    ``uses_actors``: whether its units run on long-lived workers that keep models between units, else as stateless tasks.
    """

    name: ClassVar[StageName]
    uses_actors: ClassVar[bool] = False

    @abstractmethod
    def artifacts(self, plan: Plan) -> Iterator[ArtifactSpec]:
        """The artifacts of the stage, seed by seed, with their units."""

    @abstractmethod
    def run(self, unit: UnitT, context: WorkerContext) -> dict[str, float]:
        """Run one unit on a worker; what it makes is in the store, whole, or not at all. Returns statistics."""

    @abstractmethod
    def plan(self, plan: Plan) -> StagePlan | None:
        """Its line of the plan: units, bytes written, and the most memory that a unit takes; None where there is nothing to do."""

    def check_budget(self, plan: Plan) -> None:
        """Raise PlanError, with both numbers, for work that cannot be divided to fit the memory budget. By default it can."""
        del plan

    def sample_axes(self, kind: str) -> dict[str, SampleAxis]:
        """The arrays of numbers of its artifacts of one ``kind``, each with the axis along which samples run."""
        del kind
        return {}

    def seconds(self, plan: Plan, rates: Rates) -> float:
        """Seconds of one worker for all of the stage, without the overhead of units."""
        del plan, rates
        return 0.0
