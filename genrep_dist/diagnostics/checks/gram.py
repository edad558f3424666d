"""Stored grams are symmetric to the bit, and positive semi-definite up to rounding, as a Mercer kernel is."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from genrep_dist.diagnostics.context import CheckContext, rerun_text
from genrep_dist.diagnostics.finding import Finding, compare, largest_key
from genrep_dist.diagnostics.grams import gram_artifact, gram_spectrum

EIGEN_ROWS = 2048
"""Largest matrix whose eigenvalues are computed, which takes seconds."""
ALL_SEEDS_BYTES = 64 * 2**20
"""Grams of all seeds are checked if they have at most this size together; else only the first seed's."""


def check(context: CheckContext) -> Iterator[Finding]:
    """Two findings for each gram: symmetry, and the smallest eigenvalue.

    The eigenvalues are those of the whole gram if it is small enough for the memory budget and :data:`EIGEN_ROWS`, else of a principal
    minor of randomly drawn rows. The smallest eigenvalue of a minor is never below that of the gram.
    """
    for kernel, epoch in context.plan.needs.grams:
        size = context.plan.shape.gram_rows(kernel)
        seeds = context.seeds if 4 * size * size * len(context.seeds) <= ALL_SEEDS_BYTES else context.seeds[:1]
        # Four float64 matrices: the minor, LAPACK's copy and workspace, and a tile.
        count = max(1, min(size, EIGEN_ROWS, int((context.memory_budget_bytes / 32) ** 0.5)))
        rows = np.sort(context.generator("gram").choice(size, size=count, replace=False))
        artifacts = {seed: gram_artifact(context, seed, kernel, epoch) for seed in seeds}
        spectra = {seed: gram_spectrum(artifact, rows) for seed, artifact in artifacts.items()}
        which = f"{kernel} at epoch {epoch}" + (f", worst of {len(seeds)} seeds" if len(seeds) > 1 else "")
        damaged = largest_key({seed: asymmetry for seed, (asymmetry, _) in spectra.items()})
        lowest = largest_key({seed: -eigenvalue for seed, (_, eigenvalue) in spectra.items()})
        yield compare(
            "gram symmetry",
            spectra[damaged][0],
            0,
            f"{which}: largest |K - K^T| within a diagonal tile; bound: tiles are written symmetric to the bit",
            f"the stored gram was changed: {rerun_text(context, artifacts[damaged])}",
            seed=damaged,
        )
        part = f"all {size} rows" if count == size else f"a principal minor, {count} of {size} rows, which can miss a negative one"
        is_users = kernel in context.plan.experiment.kernels or f"kernel {kernel}" in context.plan.keys.extensions
        remedy = (
            "correct the kernel's class and run the experiment again: the changed class is a new kernel and is recomputed"
            if is_users
            else "on a GPU set torch.backends.cudnn.allow_tf32 = False; then, or if the stored gram was changed, "
            f"{rerun_text(context, artifacts[lowest])}"
        )
        yield compare(
            "gram eigenvalue",
            spectra[lowest][1],
            -count * float(np.finfo(np.float32).eps),
            f"{which}: smallest eigenvalue relative to the largest, of {part}; bound: one float32 rounding of the largest per row",
            f"K is not a Mercer kernel, so neither surrogate nor influence is defined on it: {remedy}",
            seed=lowest,
            at_least=True,
        )
