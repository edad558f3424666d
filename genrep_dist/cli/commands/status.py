"""`genrep status`."""

from __future__ import annotations

from typing import Annotated

import typer

from genrep_dist.cli.options import CodeOption, JsonOption, NameArgument, StoreOption
from genrep_dist.cli.terminal import make_console, print_json


def status(
    name: NameArgument,
    store: StoreOption = "store",
    as_json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", help="Wait until the run begins, and refresh until it ends.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two refreshes.")] = 5.0,
    experiment: CodeOption = None,
) -> None:
    """Show the progress of a run from its store. The run may be on another machine, finished or dead."""
    from genrep_dist.cli.status import show_status, status_record

    if as_json:
        print_json(status_record(store, name, experiment))
    else:
        show_status(make_console(), store, name, every if watch else None, experiment)
