"""Which faster ways of the same computation may be used."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FastPaths:
    """Switches for what training does faster than the plain loop. Each changes results by rounding only.

    ``stacked_packs``: several models per step, in batched layers. ``shared_batches``: stacked models that visit the same batches read
    them once. ``mapped_packs``: several models per step, through ``torch.func.vmap``.
    ``sparse_embeddings``: gradients of large embeddings hold the rows of the batch's tokens alone.
    ``sequence_convolutions``: ``nn.Conv1d`` in channels-last memory, with a sparse backward pass behind a global max pool.
    """

    stacked_packs: bool = True
    shared_batches: bool = True
    mapped_packs: bool = True
    sparse_embeddings: bool = True
    sequence_convolutions: bool = True


PLAIN = FastPaths(stacked_packs=False, shared_batches=False, mapped_packs=False, sparse_embeddings=False, sequence_convolutions=False)
"""The plain loop: one model at a time, torch's own layers."""
