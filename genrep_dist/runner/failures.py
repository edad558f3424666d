"""What failed in a run, by kind."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from genrep_dist.executors.base import Outcome

MAX_NAMED = 20


@dataclass
class Failures:
    """``by_kind``: units that failed for good, by the name of the error; ``named``: the first of them; ``retried``: attempts that failed
    and were made again.
    """

    by_kind: dict[str, int] = field(default_factory=dict)
    named: list[str] = field(default_factory=list)
    retried: int = 0

    def add(self, outcome: Outcome) -> None:
        """Count one unit's end."""
        self.retried += outcome.attempts - 1
        if outcome.error is not None:
            kind = type(outcome.error).__name__
            self.by_kind[kind] = self.by_kind.get(kind, 0) + 1
            if len(self.named) < MAX_NAMED:
                self.named.append(outcome.unit.label)

    def forget(self, outcome: Outcome) -> None:
        """Take back a unit's failure: what it held is tried anew. Its attempts stay counted."""
        kind = type(outcome.error).__name__
        self.by_kind[kind] -= 1
        if not self.by_kind[kind]:
            del self.by_kind[kind]
        if outcome.unit.label in self.named:
            self.named.remove(outcome.unit.label)

    def plain(self) -> dict[str, Any]:
        return {"by_kind": dict(self.by_kind), "named": list(self.named), "retried": self.retried}
