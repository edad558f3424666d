"""`genrep import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from genrep_dist.cli.options import StoreOption
from genrep_dist.cli.terminal import write_line


def import_(
    what: Annotated[str, typer.Argument(metavar="truth", help="What is imported: 'truth'.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder that `genrep export truth` wrote.")],
    store: StoreOption = "store",
) -> None:
    """Add the models of an exported ground truth to the ledger of a store. Runs that need them then train none of them again.

    Every byte of the package is verified first. Its numbers are trusted.
    """
    from genrep_dist.runner.truth import import_truth
    from genrep_dist.store import Store

    if what != "truth":
        raise typer.BadParameter("genrep import truth FOLDER")
    done = import_truth(folder, Store(store))
    write_line(f"{done.written:,} models were added and {done.known:,} were there; training identity {done.training}")
