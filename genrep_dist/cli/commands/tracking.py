"""`genrep tracking`: the MLflow database of a store."""

from __future__ import annotations

from genrep_dist.cli.options import StoreOption
from genrep_dist.cli.terminal import write_line


def tracking_rebuild(store: StoreOption = "store") -> None:
    """Recreate a damaged MLflow database from the published results. The old one is moved away. No run may use the store meanwhile."""
    from genrep_dist.runner.rebuild_tracking import rebuild_tracking
    from genrep_dist.store import Store

    for line in rebuild_tracking(Store(store)):
        write_line(line)
