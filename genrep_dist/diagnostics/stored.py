"""What the store holds: no NaN or Inf anywhere, and every score is what its importances and kernels make it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from genrep_dist.core.attribution import ranking
from genrep_dist.core.methods import SOLVED
from genrep_dist.diagnostics.finding import Finding, badness, counted, judge
from genrep_dist.diagnostics.fixture import Patient
from genrep_dist.diagnostics.ledger import wanted_keys
from genrep_dist.store.artifacts import Artifact
from genrep_dist.workflow.artifacts import assemblies
from genrep_dist.workflow.attributions import attribution

_FLOAT64_ROUNDING = 1e-12
"""Relative to the largest score: sums of N C float64 terms in another order."""

_SAMPLE_AXES: dict[str, dict[str, tuple[str, int]]] = {
    "train": {"tracking": ("train", 0), "outputs_train": ("train", 1), "outputs_test": ("test", 0)},
    "kernel": {"kernel": ("train", 0)},
    **{importance: {"alpha": ("train", 0)} for importance in SOLVED},
    "attribution": {"phi": ("train", 0)},
    "diagonal": {"diagonal": ("train", 0)},
}
"""For each kind of artifact its arrays of numbers, and which data set's samples run along which axis."""


@dataclass(frozen=True)
class _Bad:
    count: int
    where: str
    sample_id: int
    folder: str
    seed: int


def finite(patient: Patient) -> list[Finding]:
    """Outputs, importances, kernels and scores of all seeds, and the ledger's outputs, hold neither NaN nor Inf."""
    bad = [*_bad_arrays(patient), *_bad_rows(patient)]
    first = bad[0] if bad else None
    finding = judge(
        "finite",
        sum(found.count for found in bad),
        0,
        f"NaN or Inf stored, first in {first.where}: sample id {first.sample_id}"
        if first
        else "no NaN or Inf among stored outputs, importances, kernels and scores of all seeds, nor in the ledger",
        f"it was damaged after it was written, as writing refuses these: delete {first.folder} of the store and run again" if first else "",
        seed=first.seed if first else None,
    )
    return [finding]


def scores(patient: Patient) -> list[Finding]:
    """The first seed's stored phi against alpha K of what is stored, for every method, and the removal orders against phi.

    Scores from elsewhere have nothing in the store that they could be held against; their orders have.
    """
    ids = patient.bench.train.ids
    names, methods = patient.plan.experiment.methods, patient.plan.experiment.parsed_methods
    differences: dict[str, float] = {}
    for name, method in zip(names, methods, strict=True):
        artifact = patient.store.artifact("attribution", patient.plan.keys.attribution(patient.seed, method))
        phi = torch.from_numpy(artifact.read("phi"))
        expected = phi if method.kernel == "external" else attribution(method, patient.seed, patient.bench)
        differences[name] = float((phi - expected).abs().max() / expected.abs().max().clamp(min=torch.finfo(torch.float64).tiny))
        if differences[name] <= _FLOAT64_ROUNDING:
            orders = {sign: artifact.read(f"order_{sign}") for sign in ("negative", "positive")}
            if not all(np.array_equal(orders[sign], ranking(phi, ids, len(ids), sign).numpy()) for sign in ("negative", "positive")):
                differences[name] = float("inf")
    worst = max(names, key=lambda name: badness(differences[name]))
    path = patient.store.artifact("attribution", patient.plan.keys.attribution(patient.seed, patient.plan.experiment.method(worst))).path
    finding = judge(
        "scores",
        differences[worst],
        _FLOAT64_ROUNDING,
        f"{worst}, worst of {len(names)} methods: largest difference between stored phi and alpha K of what is stored, relative to the "
        "largest phi (infinite: the removal order is not phi's); bound: float64 sums in another order",
        f"scores, importances or kernels were changed since: delete the folder {path} of the store and run again",
        seed=patient.seed,
    )
    return [finding]


def elsewhere(patient: Patient) -> list[Finding]:
    """Whether scores from elsewhere said, when they were read, that they are of exactly the models that were judged."""
    keys, experiment = patient.plan.keys, patient.plan.experiment
    manifests = {
        (name, seed): patient.store.artifact("attribution", keys.attribution(seed, experiment.method(name))).manifest()
        for name in experiment.external_methods
        for seed in patient.seeds
    }
    if not manifests:
        return []
    silent = [place for place, manifest in manifests.items() if not manifest["verified"]]
    finding = judge(
        "scores from elsewhere",
        len(silent),
        0,
        f"of {counted(len(manifests), 'table')} of scores from elsewhere, those that do not say which model they are of"
        + (f", first {silent[0][0]}, seed {silent[0][1]}" if silent else ""),
        "export the problem, score exactly those models, and save the scores with their identity",
        worse="amber",
    )
    return [finding]


def _bad_arrays(patient: Patient) -> Iterator[_Bad]:
    ids = {"train": patient.run.train.ids.numpy(), "test": patient.run.test.ids.numpy()}
    for stage in patient.plan.stages:
        for assembly in assemblies(patient.plan, stage.name):
            artifact = patient.store.artifact(assembly.kind, assembly.key)
            for name, (which, axis) in _SAMPLE_AXES.get(assembly.kind, {}).items():
                rows = _bad_samples(artifact, name, axis)
                if len(rows):
                    where = f"{name} of {assembly.units[0].label}"
                    yield _Bad(len(rows), where, int(ids[which][rows[0]]), f"the folder {artifact.path}", assembly.seed)


def _bad_samples(artifact: Artifact, name: str, axis: int) -> npt.NDArray[np.int64]:
    """The sample's position of every number that is not finite, ascending; chunk of rows by chunk of rows."""
    reader = artifact.reader(name)
    found = []
    for start in range(0, reader.shape[0], reader.chunks[0]):
        bad = np.argwhere(~np.isfinite(reader.read(slice(start, start + reader.chunks[0]))))
        found.append(bad[:, axis] + (start if axis == 0 else 0))
    return np.sort(np.concatenate(found)) if found else np.empty(0, dtype=np.int64)


def _bad_rows(patient: Patient) -> Iterator[_Bad]:
    """Ledger rows of this run with outputs that are not finite."""
    rows = (
        patient.store.ledger(patient.plan.keys.training)
        .scan()
        .join(wanted_keys(patient).lazy(), on="key", how="semi")
        .filter(pl.col("outputs").list.eval(~pl.element().is_finite()).list.any())
        .select("key", "seed", "outputs")
        .sort("key")
        .collect(engine="streaming")
    )
    ids, num_outputs = patient.run.test.ids.numpy(), patient.plan.shape.num_outputs
    for key, seed, outputs in rows.iter_rows():
        bad = np.flatnonzero(~np.isfinite(np.asarray(outputs, dtype=np.float64)))
        folder = f"the part of {patient.store.ledger(patient.plan.keys.training).folder} that holds key {key}"
        yield _Bad(len(bad), f"the ledger's row {key[:12]}, a test sample's output", int(ids[bad[0] // num_outputs]), folder, seed)
