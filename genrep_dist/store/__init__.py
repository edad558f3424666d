"""The store: content-addressed artifacts, the ledger of retrainings, tables and records, under one URI."""

from __future__ import annotations

from genrep_dist.store.store import Store

__all__ = ["Store"]
