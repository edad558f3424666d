"""`genrep methods`."""

from __future__ import annotations

import typer

from genrep_dist.cli.options import JsonOption
from genrep_dist.cli.terminal import make_console, print_json


def methods(as_json: JsonOption = False) -> None:
    """List the attribution methods: formula, source, needs, cost. Warns of what other packages declare and cannot be used."""
    from dataclasses import asdict

    from genrep_dist.core.methods import catalogue
    from genrep_dist.registry import extension_faults

    entries = catalogue()
    for fault in extension_faults():
        typer.echo(f"warning: {fault}", err=True)
    if as_json:
        print_json([asdict(entry) for entry in entries])
        return
    from genrep_dist.cli.display import table

    rows = [(e.name, e.formula, e.source, ", ".join(e.needs) or "-", e.cost) for e in entries]
    make_console().print(table("attribution methods", ("method", "phi(x_i -> x)", "source", "needs", "cost"), rows))
