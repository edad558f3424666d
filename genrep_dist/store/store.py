"""Access to everything under one store URI."""

from __future__ import annotations

from os import PathLike

from genrep_dist.store.artifacts import Artifact
from genrep_dist.store.ledger import Ledger
from genrep_dist.store.objects import Objects


class Store:
    """Artifacts (Zarr), data, ledger and results (Parquet), records of experiments. :mod:`genrep_dist.store.paths` has the layout."""

    def __init__(self, uri: str | PathLike[str]) -> None:
        self.objects = Objects(uri)

    @property
    def uri(self) -> str:
        return self.objects.uri

    def artifact(self, kind: str, key: str) -> Artifact:
        return Artifact(self.objects, kind, key)

    def ledger(self, training: str) -> Ledger:
        return Ledger(self.objects, training)
