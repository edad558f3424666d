"""`genrep gc`."""

from __future__ import annotations

from typing import Annotated

import typer

from genrep_dist.cli.options import JsonOption, StoreOption, YesOption
from genrep_dist.cli.terminal import make_console, print_json


def gc(
    store: StoreOption = "store",
    yes: YesOption = False,
    ledgers: Annotated[
        bool, typer.Option("--ledgers", help="Also ledgers of no experiment: retrained models, the most expensive part of a store.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete what no experiment of a store refers to. Without --yes it only shows what it would delete.

    These are artifacts and data of removed experiments and of earlier versions of an experiment, values that tuning has not chosen, and
    damaged files that were moved away. While a run is active, nothing is deleted. Start no new experiment in the store before it ends.
    """
    from genrep_dist.cli.display import show_removals
    from genrep_dist.runner.cleanup import collect_garbage, find_garbage
    from genrep_dist.store.catalogue import open_existing

    opened = open_existing(store)
    console = make_console()
    found = collect_garbage(opened, ledgers=ledgers, message=console.print) if yes else find_garbage(opened, ledgers=ledgers)
    if as_json:
        print_json({"deleted": yes, "removed": [vars(one) for one in found]})
        return
    show_removals(console, f"not referred to in {opened.uri}", found, deleted=yes)
