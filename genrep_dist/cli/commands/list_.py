"""`genrep list`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from genrep_dist.cli.options import JsonOption, StoreOption
from genrep_dist.cli.terminal import make_console, print_json, write_line

if TYPE_CHECKING:
    from genrep_dist.store.catalogue import ExperimentEntry
    from genrep_dist.store.store import Store


def list_experiments(
    store: StoreOption = "store",
    as_json: JsonOption = False,
    all_: Annotated[bool, typer.Option("--all", help="Also runs that only train the models of an export.")] = False,
) -> None:
    """List the experiments of a store: state, seeds, methods, size of their results, and when they ran last.

    `genrep du --experiments` shows the size of all that an experiment refers to.
    """
    from genrep_dist.store.catalogue import experiments, open_existing

    opened = open_existing(store)
    rows = [_row(opened, entry) for entry in experiments(opened) if all_ or not entry.is_internal]
    if as_json:
        print_json(rows)
        return
    if not rows:
        write_line(f"no experiment was run in {opened.uri}")
        return
    from genrep_dist.cli.display import bytes_text, table, time_text

    shown = [
        (
            row["name"],
            row["state"],
            "-" if row["seeds"] is None else str(row["seeds"]),
            "-" if row["methods"] is None else str(row["methods"]),
            bytes_text(row["results_bytes"]),
            time_text(row["updated"]),
        )
        for row in rows
    ]
    columns = ("name", "state", "seeds", "methods", "results", "last run")
    make_console().print(table(f"experiments in {opened.uri}", columns, shown, numeric=(2, 3, 4)))


def _row(store: Store, entry: ExperimentEntry) -> dict[str, Any]:
    from genrep_dist.runner.heartbeat import read_state

    state = read_state(store, entry.name, watch=False)
    declared = entry.record.get("experiment") or {}
    alive = state is not None and state.state == "running"
    text = "finished" if entry.finished and not alive else "not finished" if state is None or state.state == "finished" else state.state
    return {
        "name": entry.name,
        "state": text if entry.record else "damaged record",
        "problem": (declared.get("problem") or {}).get("name"),
        "seeds": len(declared["seeds"]) if isinstance(declared.get("seeds"), list) else None,
        "methods": len(declared["methods"]) if "methods" in declared else None,
        "results_bytes": entry.results_bytes,
        "updated": None if state is None else state.record["written"],
    }
