"""`genrep du`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from genrep_dist.cli.options import JsonOption, StoreOption
from genrep_dist.cli.terminal import make_console, print_json, write_line

if TYPE_CHECKING:
    from genrep_dist.store.store import Store


def du(
    store: StoreOption = "store",
    by_experiment: Annotated[
        bool, typer.Option("--experiments", help="By experiment: all that it refers to, and what no other experiment needs.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the disk space of a store, by the kind of files or by experiment."""
    from genrep_dist.cli.display import bytes_text, table
    from genrep_dist.store.catalogue import disk_usage, open_existing

    opened = open_existing(store)
    if by_experiment:
        _show_experiments(opened, as_json=as_json)
        return
    usage = disk_usage(opened)
    if as_json:
        print_json([vars(one) for one in usage])
        return
    rows = [(one.part, one.what, f"{one.files:,}", bytes_text(one.bytes)) for one in usage]
    total = ("total", "", f"{sum(one.files for one in usage):,}", bytes_text(sum(one.bytes for one in usage)))
    make_console().print(table(f"disk space of {opened.uri}", ("part", "what", "files", "size"), [*rows, total], numeric=(2, 3)))


def _show_experiments(store: Store, *, as_json: bool) -> None:
    from genrep_dist.cli.display import bytes_text, table
    from genrep_dist.runner.cleanup import experiment_sizes, find_references

    references = find_references(store)
    found: list[dict[str, Any]] = [vars(one) for one in experiment_sizes(store, references)]
    if as_json:
        print_json({"experiments": found, "unknown": references.unknown})
        return
    rows = [(one["name"], bytes_text(one["bytes"]), bytes_text(one["own_bytes"])) for one in found]
    columns = ("experiment", "refers to", "of it no other experiment does")
    make_console().print(table(f"disk space of {store.uri}", columns, rows, numeric=(1, 2)))
    for name, reason in references.unknown.items():
        write_line(f"{name}: not known: {reason}")
