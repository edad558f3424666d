"""What failed in a run, by kind, kept in the store: a run that died can still be asked."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from genrep_dist.runtime.executor import Outcome
from genrep_dist.store import Store

MAX_NAMED = 20


@dataclass
class Failures:
    """``by_kind``: units that failed for good, by the name of the error; ``named``: the first of them; ``retried``: attempts that failed
    and were made again.
    """

    by_kind: dict[str, int] = field(default_factory=dict)
    named: list[str] = field(default_factory=list)
    retried: int = 0

    def add(self, outcome: Outcome) -> bool:
        """Count one unit's end; whether anything is changed by it."""
        self.retried += outcome.attempts - 1
        if outcome.error is not None:
            kind = type(outcome.error).__name__
            self.by_kind[kind] = self.by_kind.get(kind, 0) + 1
            if len(self.named) < MAX_NAMED:
                self.named.append(outcome.unit.label)
        return outcome.error is not None or outcome.attempts > 1

    def write(self, store: Store, name: str) -> None:
        store.objects.put_json(_path(name), asdict(self))

    @classmethod
    def read(cls, store: Store, name: str) -> Failures:
        """Of the last run of the experiment ``name``; none where nothing was written."""
        return cls(**store.objects.get_json(_path(name))) if store.objects.exists(_path(name)) else cls()

    @classmethod
    def clear(cls, store: Store, name: str) -> None:
        store.objects.delete(_path(name))


def _path(name: str) -> str:
    return f"experiments/{name}/failures.json"
