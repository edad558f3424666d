"""A step that is captured once and replayed: the protocol of its implementations, and what came of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor


class StepGraph(Protocol):
    """The operations of a function, which are repeated in the same memory without a line of the function being run.

    ``device_type`` is where it computes. A shape of batches is captured after ``plain_steps`` of its steps: the more there were, the more
    are to come.
    """

    device_type: ClassVar[str]
    plain_steps: ClassVar[int]
    result: Tensor
    """What the function returned; each replay writes it again."""

    def __init__(self, function: Callable[[], Tensor], device: torch.device) -> None:
        """Capture ``function``. It may run some times: what it changes is undefined afterwards, until the caller restores it.

        Raises RuntimeError where the device cannot capture it.
        """

    def replay(self, hidden: Sequence[Tensor]) -> None:
        """Repeat the operations. ``hidden`` must not be read: an implementation for tests fills them with other values meanwhile."""


@dataclass
class StepGraphs:
    """How steps are captured: ``graph``, a class, and what came of it.

    ``captured`` graphs, ``replayed`` steps, and ``notes``: by the kind of pack, why it trains without graphs.
    """

    graph: type[StepGraph]
    captured: int = 0
    replayed: int = 0
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """In a few words, for the manifest of a model."""
        notes = "; ".join(f"{kind}: {note}" for kind, note in self.notes.items())
        return notes or ("steps are replayed" if self.captured else "too few steps of one shape")
