"""Which artifacts each stage makes, of which parts, and what is still missing. Known to the driver and to `genrep status`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from genrep_dist.plan import Plan
from genrep_dist.store import Store
from genrep_dist.store.artifacts import Artifact
from genrep_dist.store.features import COLUMNS, TABLE
from genrep_dist.units import GradientUnit, GramUnit, KernelUnit, StageName, Unit


@dataclass(frozen=True)
class ArraySpec:
    """An array that the driver declares before workers fill it: its chunk grid is the grid of parts."""

    name: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dimension_names: tuple[str, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class Assembly:
    """One artifact and the units that make it. Without ``array`` a single unit writes and commits the whole of it."""

    kind: str
    key: str
    seed: int
    units: tuple[Unit, ...]
    array: ArraySpec | None = None
    projection: dict[str, Any] | None = None
    """How its features are projected, which its manifest tells."""

    @property
    def parts(self) -> list[str]:
        return [unit.part for unit in self.units if isinstance(unit, GradientUnit | KernelUnit | GramUnit)]


def assemblies(plan: Plan, stage: StageName) -> Iterator[Assembly]:
    """The artifacts of one stage, seed by seed. (`retrain` fills the ledger and has none.)"""
    keys = plan.keys
    if stage == "train":
        for train in plan.train_units():
            yield Assembly("train", keys.train(train.seed), train.seed, (train,))
    elif stage == "gradients":
        for seed in plan.experiment.seeds:
            for kernel, epoch in plan.features_stored():
                units = tuple(plan.gradient_units(seed, kernel, epoch))
                yield Assembly(
                    "features", keys.features(seed, kernel, epoch), seed, units, _features_array(plan, kernel), _projection(plan, kernel)
                )
    elif stage == "kernels":
        for seed in plan.experiment.seeds:
            for kernel, epoch in plan.kernels_needed():
                blocks = tuple(plan.kernel_units(seed, kernel, epoch))
                yield Assembly(
                    "kernel", keys.kernel(seed, kernel, epoch), seed, blocks, _kernel_array(plan, kernel), _projection(plan, kernel)
                )
            for kernel, epoch in plan.grams_needed():
                tiles = tuple(plan.gram_units(seed, kernel, epoch))
                yield Assembly("gram", keys.gram(seed, kernel, epoch), seed, tiles, _gram_array(plan, kernel), _projection(plan, kernel))
    elif stage == "influence":
        for influence in plan.influence_units():
            yield Assembly("kernel", keys.kernel(influence.seed, "influence", influence.epoch), influence.seed, (influence,))
    elif stage == "importances":
        for unit in plan.importance_units():
            key = keys.solved(unit.importance, unit.seed, unit.kernel, unit.epoch)
            yield Assembly(unit.importance, key, unit.seed, (unit,))
    elif stage == "attributions":
        methods = dict(zip(plan.experiment.methods, plan.experiment.parsed_methods, strict=True))
        for attribution in plan.attribution_units():
            key = keys.attribution(attribution.seed, methods[attribution.method])
            yield Assembly("attribution", key, attribution.seed, (attribution,))
    elif stage == "diagonals":
        for diagonal in plan.diagonal_units():
            yield Assembly("diagonal", keys.diagonal(diagonal.seed, diagonal.kernel, diagonal.epoch), diagonal.seed, (diagonal,))


def missing_units(store: Store, assembly: Assembly) -> Sequence[Unit]:
    """The units that still have to run: none of a committed artifact, all of one that was never begun."""
    artifact = store.artifact(assembly.kind, assembly.key)
    if artifact.is_committed():
        return ()
    if assembly.array is None:
        return assembly.units
    done = artifact.parts_done()
    return [unit for unit, part in zip(assembly.units, assembly.parts, strict=True) if part not in done]


def declare(store: Store, assembly: Assembly) -> None:
    """Create the metadata of an artifact's array, once, before any worker opens it."""
    spec = assembly.array
    if spec is not None:
        store.artifact(assembly.kind, assembly.key).create(spec.name, spec.shape, spec.chunks, spec.dtype, spec.dimension_names)


def commit(store: Store, assembly: Assembly) -> None:
    """Commit an artifact that was made of parts, once all are there; others have committed themselves."""
    artifact: Artifact = store.artifact(assembly.kind, assembly.key)
    if assembly.array is not None and not artifact.is_committed():
        first = assembly.units[0]
        assert isinstance(first, GradientUnit | KernelUnit | GramUnit)
        about = {} if assembly.projection is None else {"projection": assembly.projection}
        artifact.commit({"seed": assembly.seed, "kernel": first.kernel, "epoch": first.epoch, **about}, assembly.parts)


def _projection(plan: Plan, kernel: str) -> dict[str, Any] | None:
    asked = plan.experiment.projection
    return asked.model_dump(mode="json") if asked is not None and kernel == "ntk" else None


def _features_array(plan: Plan, kernel: str) -> ArraySpec:
    shape, rows = plan.shape, plan.block_rows[kernel]
    if kernel == "last-layer":
        return ArraySpec("features", (shape.num_train, shape.last_layer_width), (rows, shape.last_layer_width), ("train", "feature"))
    # The blocks themselves are as long as their samples' features happen to be.
    return ArraySpec(TABLE, (shape.num_train, len(COLUMNS)), (rows, len(COLUMNS)), ("train", "column"), "int64")


def _kernel_array(plan: Plan, kernel: str) -> ArraySpec:
    inner = (plan.shape.num_outputs, plan.experiment.num_test_points)
    return ArraySpec("kernel", (plan.shape.num_train, *inner), (plan.block_rows[kernel], *inner), ("train", "output", "test"))


def _gram_array(plan: Plan, kernel: str) -> ArraySpec:
    size = plan.shape.gram_rows(kernel)
    edge = plan.gram_tiles[kernel] * (size // plan.shape.num_train)
    return ArraySpec("gram", (size, size), (edge, edge), ("row", "column"))
