"""`genrep ledger`: the ledger of retrained models."""

from __future__ import annotations

from genrep_dist.cli.options import CodeOption, NameArgument, StoreOption
from genrep_dist.cli.terminal import write_line


def ledger_compact(name: NameArgument, store: StoreOption = "store", experiment: CodeOption = None) -> None:
    """Merge the small files of a run's ledger. Safe while the run is running, and when interrupted."""
    from genrep_dist.results import open_run

    opened = open_run(store, name, experiment=experiment)
    done = opened.store.ledger(opened.plan.keys.training).compact_alone()
    write_line(f"{done.parts_before:,} parts -> {done.parts_after:,}; {done.rows:,} trained models, {done.bytes:,} bytes")
