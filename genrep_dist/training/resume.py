"""The state of an unfinished training, taken at the end of an epoch: with it a training that was killed goes on, with the same bits."""

from __future__ import annotations

import io
from typing import Any, Protocol

import torch

from genrep_dist.core.generators import read_generators, write_generators
from genrep_dist.training.packs.base import Pack


class StateStore(Protocol):
    """Keeps the state of one pack of models while it trains."""

    def load(self) -> bytes | None:
        """The last state that was saved, in this process or in an earlier one; None if there is none."""

    def is_due(self) -> bool:
        """Whether a state should be saved now."""

    def save(self, state: bytes) -> None:
        """Keep a state in place of the last one."""


class StateStores(Protocol):
    """The :class:`StateStore` of each pack, by a name that says which models train in it and how."""

    def __call__(self, name: str) -> StateStore: ...


def encoded(state: Any) -> bytes:
    """A ``state`` of tensors, numbers, texts, lists, tuples and dictionaries, with the states of the default generators."""
    buffer = io.BytesIO()
    torch.save({"state": state, "generators": read_generators()}, buffer)
    return buffer.getvalue()


def decoded(data: bytes) -> tuple[Any, dict[str, Any]]:
    """The state and the generators of :func:`encoded`, on the CPU. ValueError for other bytes; nothing of them is executed."""
    try:
        found: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return found["state"], found["generators"]
    # What torch raises for bytes that it has not written.
    except Exception as error:
        raise ValueError(f"not a state of a training: {type(error).__name__}") from error


def pack_state(pack: Pack, epoch: int) -> bytes:
    """All that training has changed by the end of ``epoch``: parameters, optimizer state, buffers and generators."""
    random_states = [generator.get_state() for generator in pack.generators()]
    return encoded([epoch, [tensor.detach().cpu() for tensor in pack.changing_tensors()], random_states])


@torch.no_grad()
def restore_state(pack: Pack, data: bytes) -> int:
    """Put a state of :func:`pack_state` into a pack of the same models; the epochs that are done.

    ValueError, with the pack as it was, for bytes that are no such state.
    """
    state, generators = decoded(data)
    own = pack.changing_tensors()
    try:
        epoch, tensors, random_states = state
        fits = [(one.shape, one.dtype) for one in tensors] == [(one.shape, one.dtype) for one in own]
        fits = fits and len(random_states) == len(pack.generators())
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError("a state of something else") from error
    if not fits or type(epoch) is not int or epoch < 1:
        raise ValueError("a state of another training")
    for mine, saved in zip(own, tensors, strict=True):
        mine.copy_(saved)
    for generator, saved in zip(pack.generators(), random_states, strict=True):
        generator.set_state(saved)
    write_generators(generators)
    return epoch
