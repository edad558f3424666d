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

COMMANDS: dict[str, Callable[..., Any]] = {
    "plan": plan.plan,
    "run": run.run,
    "status": status.status,
    "list": list_.list_experiments,
    "compare": compare.compare,
    "report": report.report,
    "doctor": doctor.doctor,
    "methods": methods.methods,
    "export": export.export,
    "import": import_.import_,
    "rm": rm.rm,
    "gc": gc.gc,
    "du": du.du,
    "schema": schema.schema,
    "completion": completion.completion,
}
"""By name, in the order of `genrep --help`."""

GROUPS: dict[str, tuple[str, dict[str, Callable[..., Any]]]] = {
    "data": ("Data sets in the local cache.", {"list": data.data_list, "fetch": data.data_fetch}),
    "ledger": ("The ledger of retrained models.", {"compact": ledger.ledger_compact}),
    "tracking": ("The MLflow database of a store.", {"rebuild": tracking.tracking_rebuild}),
}
"""Commands of two words: help text and commands of each first word."""
