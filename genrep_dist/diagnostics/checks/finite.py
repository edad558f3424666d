"""No NaN or Inf in stored outputs, importances, kernels and scores of all seeds, or in the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from genrep_dist.diagnostics.context import CheckContext, recompute_text
from genrep_dist.diagnostics.finding import Finding, compare
from genrep_dist.diagnostics.ledger_rows import needed_keys
from genrep_dist.store.artifacts import Artifact
from genrep_dist.workflow.stages import all_artifacts


@dataclass(frozen=True)
class _BadNumbers:
    """``count`` bad numbers in one place, with the id of the first sample that has one."""

    count: int
    where: str
    sample_id: int
    folder: str
    seed: int


def check(context: CheckContext) -> Iterator[Finding]:
    bad = [*_in_arrays(context), *_in_ledger(context)]
    first = bad[0] if bad else None
    yield compare(
        "finite",
        sum(found.count for found in bad),
        0,
        f"NaN or Inf stored, first in {first.where}: sample id {first.sample_id}"
        if first
        else "no NaN or Inf in stored outputs, importances, kernels and scores of all seeds, or in the ledger",
        f"the files were damaged after writing, which refuses such numbers: {recompute_text(context, first.folder)}" if first else "",
        seed=first.seed if first else None,
    )


def _in_arrays(context: CheckContext) -> Iterator[_BadNumbers]:
    ids = {"train": context.run.train.ids.numpy(), "test": context.run.test.ids.numpy()}
    for stage, made in all_artifacts(context.plan):
        artifact = context.store.artifact(made.kind, made.key)
        for name, (which, axis) in stage.sample_axes(made.kind).items():
            if name in artifact.manifest().get("absent", ()):
                continue  # a training function need not report its steps
            rows = _bad_samples(artifact, name, axis)
            if len(rows):
                where = f"{name} of {made.units[0].label}"
                yield _BadNumbers(len(rows), where, int(ids[which][rows[0]]), f"the folder {artifact.path}", made.seed)


def _bad_samples(artifact: Artifact, name: str, axis: int) -> npt.NDArray[np.int64]:
    """The sample position of every number that is not finite, ascending. Reads one chunk of rows at a time."""
    reader = artifact.reader(name)
    found = []
    for start in range(0, reader.shape[0], reader.chunks[0]):
        bad = np.argwhere(~np.isfinite(reader.read(slice(start, start + reader.chunks[0]))))
        found.append(bad[:, axis] + (start if axis == 0 else 0))
    return np.sort(np.concatenate(found)) if found else np.empty(0, dtype=np.int64)


def _in_ledger(context: CheckContext) -> Iterator[_BadNumbers]:
    ledger = context.store.ledger(context.plan.keys.training)
    rows = (
        ledger.scan()
        .join(needed_keys(context).lazy(), on="key", how="semi")
        .filter(pl.col("outputs").list.eval(~pl.element().is_finite()).list.any())
        .select("key", "seed", "outputs")
        .sort("key")
        .collect(engine="streaming")
    )
    ids, num_outputs = context.run.test.ids.numpy(), context.plan.shape.num_outputs
    for key, seed, outputs in rows.iter_rows():
        bad = np.flatnonzero(~np.isfinite(np.asarray(outputs, dtype=np.float64)))
        folder = f"the part of {ledger.folder} that holds key {key}"
        yield _BadNumbers(len(bad), f"the ledger's row {key[:12]}, output of a test sample", int(ids[bad[0] // num_outputs]), folder, seed)
