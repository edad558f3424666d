"""`genrep compare`."""

from __future__ import annotations

from typing import Annotated

import typer

from genrep_dist.cli.options import JsonOption, StoreOption
from genrep_dist.cli.terminal import make_console, print_json


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="A finished experiment of the store.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    store: StoreOption = "store",
    other_store: Annotated[str | None, typer.Option("--other-store", help="The store of B. Default: that of A.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two runs: the methods of both with the difference B - A and its 95% interval, and what differs in their configuration."""
    from genrep_dist.results import open_run
    from genrep_dist.results.compare import compare_runs
    from genrep_dist.store.catalogue import open_existing

    stores = [open_existing(store), open_existing(other_store or store)]
    found = compare_runs(*(open_run(opened, name) for opened, name in zip(stores, (first, second), strict=True)))
    if as_json:
        print_json(
            {
                "first": found.first,
                "second": found.second,
                "methods": found.methods.to_dicts(),
                "configuration": [vars(change) for change in found.changes],
                "warnings": found.warnings,
            }
        )
        return
    from genrep_dist.cli.compared import show_comparison

    show_comparison(make_console(), found)
