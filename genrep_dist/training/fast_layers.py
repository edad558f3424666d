"""Layers of one model that compute the same with less work while it trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from genrep_dist.training.fast_paths import FastPaths
from genrep_dist.training.optimizers.base import Optimizer
from genrep_dist.training.sequence_convolution import fast_sequence_convolutions

MIN_SPARSE_NUMBERS = 2**16
"""Numbers in an embedding from which sparse gradients pay: a small table is written whole in less time than its rows are looked up."""


@contextmanager
def fast_layers(model: nn.Module, optimizer: Optimizer, fast_paths: FastPaths) -> Iterator[None]:
    """Inside, ``model`` uses the fast layers that ``fast_paths`` allows; outside, it is as before. Results are equal to rounding."""
    with ExitStack() as stack:
        if fast_paths.sparse_embeddings and optimizer.accepts_sparse_gradients:
            stack.enter_context(sparse_embeddings(model))
        if fast_paths.sequence_convolutions:
            stack.enter_context(fast_sequence_convolutions(model))
        yield


@contextmanager
def sparse_embeddings(model: nn.Module) -> Iterator[None]:
    """Inside, the gradient of a large ``nn.Embedding`` is sparse: it holds the rows of a batch's tokens and no others."""
    changed = [module for module in model.modules() if is_large_embedding(module)]
    for module in changed:
        module.sparse = True  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in changed:
            module.sparse = False  # type: ignore[assignment]


def is_large_embedding(module: nn.Module) -> bool:
    """Whether a module is a plain embedding that is large enough for sparse gradients and does not have them yet."""
    return (
        isinstance(module, nn.Embedding)
        and type(module).forward is nn.Embedding.forward
        and module.weight.requires_grad
        and module.weight.numel() >= MIN_SPARSE_NUMBERS
        and module.max_norm is None
        and not module.scale_grad_by_freq
        and not module.sparse
    )
