"""The commands of `genrep`, a file for each. To add one: a file here with its function, and a line in :data:`COMMANDS` or :data:`GROUPS`.

These files import no heavy library: each function imports what it needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from genrep_dist.cli.commands import (
    compare,
    completion,
    data,
    doctor,
    du,
    export,
    gc,
    import_,
    ledger,
    list_,
    methods,
    plan,
    report,
    rm,
    run,
    schema,
    status,
    tracking,
)

Commands = dict[str, Callable[..., Any]]

COMMANDS: dict[str, Commands] = {
    "Experiments": {
        "plan": plan.plan,
        "run": run.run,
        "status": status.status,
        "report": report.report,
        "doctor": doctor.doctor,
        "compare": compare.compare,
    },
    "Stores": {
        "list": list_.list_experiments,
        "du": du.du,
        "rm": rm.rm,
        "gc": gc.gc,
        "export": export.export,
        "import": import_.import_,
    },
    "Reference": {
        "methods": methods.methods,
        "schema": schema.schema,
        "completion": completion.completion,
    },
}
"""By the heading and in the order of `genrep --help`."""

GROUPS: dict[str, tuple[str, str, Commands]] = {
    "ledger": ("Stores", "The ledger of retrained models.", {"compact": ledger.ledger_compact}),
    "tracking": ("Stores", "The MLflow database of a store.", {"rebuild": tracking.tracking_rebuild}),
    "data": ("Reference", "Data sets in the local cache.", {"list": data.data_list, "fetch": data.data_fetch}),
}
"""Commands of two words: heading, help text and commands of each first word."""
