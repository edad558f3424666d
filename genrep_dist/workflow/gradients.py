"""Stage gradients: per-sample features of a block of training rows, written as one block."""

from __future__ import annotations

from genrep_dist.store.features import write_block
from genrep_dist.units import GradientUnit
from genrep_dist.workflow.context import Workbench, to_numpy


def run(unit: GradientUnit, bench: Workbench) -> dict[str, float]:
    """Compute and write one block: the NTK's as factors, in whatever form takes the fewest bytes. Returns statistics."""
    artifact = bench.store.artifact("features", bench.keys.features(unit.seed, unit.kernel, unit.epoch))
    if unit.kernel == "ntk":
        rows = bench.feature_rows(unit.seed, unit.epoch, unit.start, unit.stop)
        num_bytes = write_block(artifact, unit.part, unit.start, rows, seconds=bench.elapsed())
    else:
        features = bench.features(unit.seed, unit.kernel, unit.epoch, unit.start, unit.stop)
        artifact.write_part(unit.part, "features", (unit.start, 0), to_numpy(features.float()), seconds=bench.elapsed())
        num_bytes = features.numel() * 4
    return {"rows": float(unit.stop - unit.start), "bytes": float(num_bytes)}
