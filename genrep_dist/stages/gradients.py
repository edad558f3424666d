"""Stage gradients: per-sample features of a block of training rows, written as one shard."""

from __future__ import annotations

from genrep_dist.stages.job import Workbench, to_numpy
from genrep_dist.units import GradientUnit


def run(unit: GradientUnit, bench: Workbench) -> dict[str, float]:
    """Compute and write one shard. Returns statistics."""
    features = bench.features(unit.seed, unit.kernel, unit.epoch, unit.start, unit.stop)
    artifact = bench.store.artifact("features", bench.keys.features(unit.seed, unit.kernel, unit.epoch))
    starts = (unit.start,) + (0,) * (features.dim() - 1)
    artifact.write_part(unit.part, "features", starts, to_numpy(features.float()), seconds=bench.elapsed())
    return {"rows": float(unit.stop - unit.start), "bytes": float(features.numel() * 4)}
