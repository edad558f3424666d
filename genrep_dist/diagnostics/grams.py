"""Stored grams: symmetric to the bit, and positive semi-definite up to rounding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from genrep_dist.diagnostics.finding import Finding, badness, judge
from genrep_dist.diagnostics.fixture import Patient

Array = npt.NDArray[Any]

EIGEN_ROWS = 2048
"""Largest matrix whose eigenvalues are computed: seconds."""
ALL_SEEDS_BYTES = 64 * 2**20
"""The grams of all seeds are looked at when they are no larger together; else the first seed's."""


def gram(patient: Patient) -> list[Finding]:
    """Each gram's diagonal tiles are exactly symmetric, and its smallest eigenvalue is zero up to rounding: K is a Mercer kernel.

    Eigenvalues are those of the whole gram where it is small enough for the memory budget and for a wait of seconds, else of a
    principal minor on rows drawn by a derived seed. A minor's smallest eigenvalue is never below the whole's.
    """
    findings = []
    for name, epoch in patient.plan.grams_needed():
        size = patient.plan.shape.gram_rows(name)
        seeds = patient.seeds if 4 * size * size * len(patient.seeds) <= ALL_SEEDS_BYTES else patient.seeds[:1]
        # Four float64 matrices: the minor, LAPACK's copy, its workspace, and a tile.
        count = max(1, min(size, EIGEN_ROWS, int((patient.memory_budget / 32) ** 0.5)))
        rows = np.sort(patient.generator("gram").choice(size, size=count, replace=False))
        looked = {seed: _look(patient, seed, name, epoch, rows) for seed in seeds}
        which = f"{name} at epoch {epoch}" + (f", worst of {len(seeds)} seeds" if len(seeds) > 1 else "")
        damaged = max(seeds, key=lambda seed: badness(looked[seed][0]))
        lowest = max(seeds, key=lambda seed: badness(-looked[seed][1]))
        findings.append(
            judge(
                "gram symmetry",
                looked[damaged][0],
                0,
                f"{which}: largest |K - K^T| within a diagonal tile; bound: these are written symmetric to the bit",
                f"the stored gram was changed: delete the folder {_folder(patient, damaged, name, epoch)} of the store and run again",
                seed=damaged,
            )
        )
        part = f"all {size} rows" if count == size else f"a principal minor, {count} of {size} rows, which can miss a negative one"
        own = name in patient.plan.experiment.kernels
        findings.append(
            judge(
                "gram eigenvalue",
                looked[lowest][1],
                -count * float(np.finfo(np.float32).eps),
                f"{which}: smallest eigenvalue relative to the largest, of {part}; bound: one float32 rounding of the largest for each row",
                "K is no Mercer kernel, so neither surrogate nor influence is defined on it: "
                + ("mend the kernel's class, " if own else "on a GPU set torch.backends.cudnn.allow_tf32 = False, ")
                + f"delete the folder {_folder(patient, lowest, name, epoch)} of the store and run again",
                seed=lowest,
                at_least=True,
            )
        )
    return findings


def product(patient: Patient, seed: int, name: str, epoch: int, alpha: Array) -> Array:
    """K alpha (N, C) for ``alpha`` (N, C) float64, tile by tile; a gram of N rows is a scalar kernel, the same for each output."""
    vectors = alpha.reshape(patient.plan.shape.gram_rows(name), -1)
    result = np.zeros_like(vectors)
    for across, along, tile in _tiles(patient, seed, name, epoch):
        result[across] += tile @ vectors[along]
        if across != along:
            result[along] += tile.T @ vectors[across]
    return result.reshape(alpha.shape)


def _look(patient: Patient, seed: int, name: str, epoch: int, rows: Array) -> tuple[float, float]:
    """Largest asymmetry of a diagonal tile, and smallest over largest eigenvalue of the principal minor ``rows``, tile by tile."""
    minor = np.empty((len(rows), len(rows)))
    asymmetry = 0.0
    for across, along, tile in _tiles(patient, seed, name, epoch):
        if across == along:
            asymmetry = max(asymmetry, float(np.abs(tile - tile.T).max()), key=badness)
        at, over = _within(rows, across), _within(rows, along)
        part = tile[np.ix_(rows[at] - across.start, rows[over] - along.start)]
        minor[np.ix_(over, at)] = part.T
        minor[np.ix_(at, over)] = part
    if not np.isfinite(minor).all():
        return asymmetry, float("nan")
    # One triangle is taken; symmetry has a finding of its own.
    eigenvalues = np.linalg.eigvalsh(minor, UPLO="U")
    largest = float(np.abs(eigenvalues).max())
    return asymmetry, float(eigenvalues[0]) / largest if largest > 0 else 0.0


def _tiles(patient: Patient, seed: int, name: str, epoch: int) -> Iterator[tuple[slice, slice, Array]]:
    """(rows, columns, values) of every stored tile: the upper half and the diagonal."""
    reader = patient.store.artifact("gram", patient.plan.keys.gram(seed, name, epoch)).reader("gram")
    size, edge = reader.shape[0], reader.chunks[0]
    spans = [slice(start, min(start + edge, size)) for start in range(0, size, edge)]
    for number, across in enumerate(spans):
        for along in spans[number:]:
            yield across, along, reader.read(across, along)


def _within(rows: Array, span: slice) -> Array:
    """Where in ``rows`` those of a tile's edge stand."""
    found: Array = np.flatnonzero((rows >= span.start) & (rows < span.stop))
    return found


def _folder(patient: Patient, seed: int, name: str, epoch: int) -> str:
    return patient.store.artifact("gram", patient.plan.keys.gram(seed, name, epoch)).path
