"""`genrep methods`."""

from __future__ import annotations

from typing import Annotated

import typer

from genrep_dist.cli.options import JsonOption
from genrep_dist.cli.terminal import make_console, print_json, write_line

WIDE = 120
"""Columns of a terminal from which formulas and sources fit into the table."""


def methods(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show one method with its formula and source.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the attribution methods: formula, source, needs, cost. Warns of what other packages declare and cannot be used."""
    from dataclasses import asdict

    from genrep_dist.core.methods import catalogue, describe, parse_method
    from genrep_dist.registry import extension_faults

    entries = catalogue() if name is None else [describe(parse_method(name))]
    for fault in extension_faults():
        write_line(f"warning: {fault}", stderr=True)
    if as_json:
        print_json([asdict(entry) for entry in entries])
        return
    if name is not None:
        for label, value in asdict(entries[0]).items():
            write_line(f"{label + ':':<9}{', '.join(value) if isinstance(value, tuple) else value}")
        return
    from genrep_dist.cli.display import table

    console = make_console()
    if console.width >= WIDE:
        rows = [(e.name, e.formula, e.source, ", ".join(e.needs) or "-", e.cost) for e in entries]
        console.print(table("attribution methods", ("method", "phi(x_i -> x)", "source", "needs", "cost"), rows))
        return
    short = [(e.name, ", ".join(e.needs) or "-", e.cost) for e in entries]
    console.print(table("attribution methods", ("method", "needs", "cost"), short))
    console.print("genrep methods NAME shows the formula and the source of a method", markup=False, highlight=False)
