"""Where the random numbers of a training run come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genrep_dist.core.changes import Change
from genrep_dist.core.generators import seeded_generators
from genrep_dist.core.policies import is_fresh
from genrep_dist.seeds import derive_seed


@dataclass(frozen=True)
class Randomness:
    """All random numbers of one training: the initial parameters, the order of every epoch, and what layers draw (dropout).

    ``stream`` is empty for an original model and for a retraining with common random numbers. A retraining with fresh random numbers has
    its own stream, so that it is independent of the original model and of every other removed set.
    """

    seed: int
    stream: str = ""

    @classmethod
    def for_retraining(cls, seed: int, policy: str, removed: Sequence[int] | Change, replicate: int = 0) -> Randomness:
        """The original model's random numbers, or those of a fresh policy, which follow from the change and the replicate."""
        if not is_fresh(policy):
            return cls(seed)
        change = removed if isinstance(removed, Change) else Change.of(removed)
        return cls(seed, f"fresh/{replicate}/{change.stream}")

    def number(self, purpose: str, *index: int) -> int:
        """A derived seed, another one for each purpose and index."""
        return derive_seed(self.seed, purpose, *([self.stream] if self.stream else []), *index)

    def order(self, epoch: int, num_rows: int) -> Tensor:
        """The order (num_rows,) int64 in which ``epoch`` visits the rows. It does not depend on what was drawn before."""
        generator = torch.Generator().manual_seed(self.number("order", epoch))
        return torch.randperm(num_rows, generator=generator)

    def build(self, model_factory: Callable[[], nn.Module]) -> nn.Module:
        """A new model whose initial parameters depend on this object alone. Global generators are left as they were."""
        with self.scope("init"):
            return model_factory()

    @contextmanager
    def scope(self, purpose: str) -> Iterator[None]:
        """Inside, the default generators of Python, numpy and torch start from a derived seed; outside, they are as before."""
        with seeded_generators(self.number(purpose)):
            yield
