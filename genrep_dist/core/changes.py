"""What the training set of a retrained model differs in from the original's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Weights = tuple[tuple[int, float], ...]
"""(sample id, weight in the loss), ascending by id."""
Labels = tuple[tuple[int, tuple[float, ...]], ...]
"""(sample id, the numbers of its target), ascending by id."""


@dataclass(frozen=True)
class Change:
    """Samples that are ``removed`` (ids, ascending), and samples that stay with other ``weights`` or ``labels``.

    A weight multiplies the sample's loss; a batch's mean is divided by the sum of its weights. Made by :meth:`of`, equal changes are equal.
    """

    removed: tuple[int, ...] = ()
    weights: Weights = ()
    labels: Labels = ()

    @classmethod
    def of(
        cls,
        removed: Iterable[int] = (),
        weights: Mapping[int, float] | None = None,
        labels: Mapping[int, float | Sequence[float]] | None = None,
    ) -> Change:
        """Weight 0 is a removal, and weight 1 is no change. Weights are finite and not negative."""
        weights = {int(sample): float(weight) for sample, weight in (weights or {}).items()}
        gone = {int(sample) for sample in removed} | {sample for sample, weight in weights.items() if weight == 0}
        values = {int(sample): _numbers(label) for sample, label in (labels or {}).items()}
        kept = sorted((sample, weight) for sample, weight in weights.items() if weight not in (0.0, 1.0))
        return cls(tuple(sorted(gone)), tuple(kept), tuple(sorted(values.items())))

    @property
    def samples(self) -> list[int]:
        """The ids of all samples that it is about, ascending."""
        return sorted({*self.removed, *(sample for sample, _ in self.weights), *(sample for sample, _ in self.labels)})

    def __len__(self) -> int:
        return len(self.samples) if self.weights or self.labels else len(self.removed)

    @property
    def identity(self) -> list[Any]:
        """As plain data, for content addresses. A removal is the list of its ids alone."""
        others = {name: [list(pair) for pair in pairs] for name, pairs in (("weights", self.weights), ("labels", self.labels)) if pairs}
        return [list(self.removed), *([others] if others else [])]

    @property
    def stream(self) -> str:
        """As text, from which fresh random numbers follow."""
        parts = [",".join(map(str, self.removed))]
        parts += [f"weights {sample} {weight!r}" for sample, weight in self.weights]
        parts += [f"label {sample} {' '.join(map(repr, label))}" for sample, label in self.labels]
        return "/".join(parts)


def _numbers(label: float | Sequence[float]) -> tuple[float, ...]:
    return tuple(map(float, label)) if isinstance(label, Sequence) else (float(label),)
