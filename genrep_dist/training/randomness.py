"""Where the random numbers of a training run come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genrep_dist.seeds import derive_seed


@dataclass(frozen=True)
class Randomness:
    """All random numbers of one run: the initialisation, the order of every epoch, and what layers draw (dropout).

    ``stream`` is empty for an original model and for a retraining with common random numbers; a retraining with fresh ones has
    a stream of its own, so that it is independent of the original run and of every other removed set.
    """

    seed: int
    stream: str = ""

    @classmethod
    def of_retraining(cls, seed: int, policy: str, removed: Sequence[int], replicate: int = 0) -> Randomness:
        """``same``: the original run's numbers. ``fresh``: numbers that depend on the removed set and the replicate."""
        if policy == "same":
            return cls(seed)
        return cls(seed, f"fresh/{replicate}/{','.join(map(str, sorted(removed)))}")

    def number(self, purpose: str, *index: int) -> int:
        """A derived seed, different for each purpose."""
        return derive_seed(self.seed, purpose, *([self.stream] if self.stream else []), *index)

    def order(self, epoch: int, num_rows: int) -> Tensor:
        """The order (num_rows,) in which ``epoch`` visits the rows; it does not depend on what was drawn before."""
        generator = torch.Generator().manual_seed(self.number("order", epoch))
        return torch.randperm(num_rows, generator=generator)

    def build(self, model_factory: Callable[[], nn.Module]) -> nn.Module:
        """A fresh model whose initial parameters depend on this object alone; global generators are left as they were."""
        with self.scope("init"):
            return model_factory()

    @contextmanager
    def scope(self, purpose: str) -> Iterator[None]:
        """Inside, what layers draw from the default generator is derived; outside, that generator is untouched."""
        devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.number(purpose))
            yield
