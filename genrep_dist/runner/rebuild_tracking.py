"""Recreates the MLflow database of a store from its published results, after the database was damaged or lost."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

from genrep_dist.errors import StoreError
from genrep_dist.results import open_run
from genrep_dist.runner.heartbeat import RunHistory
from genrep_dist.runner.track import track, tracking_record
from genrep_dist.store import Store
from genrep_dist.store.paths import EXPERIMENTS, ResultPaths, damaged_copy, recorded_names
from genrep_dist.store.publications import Publications
from genrep_dist.tracking.database import SIDE_FILES, sqlite_path, store_database


def rebuild_tracking(store: Store) -> Iterator[str]:
    """Move MLflow's database and artifacts of ``store`` away and publish all finished experiments to a new one. Yields what was done.

    Experiments that are tracked elsewhere (``tracking.uri``) are left as they are. No run may work on the store meanwhile. Raises
    StoreError if files cannot be moved or MLflow refuses, CorruptError for damaged results.
    """
    root = store.objects.root or Path.cwd()
    uri, artifacts = store_database(root)
    database = sqlite_path(uri)
    assert database is not None
    suffix = secrets.token_hex(4)
    for path in (*(database.with_name(f"{database.name}{side}") for side in SIDE_FILES), artifacts):
        if path.exists():
            moved = root / damaged_copy(path.name, suffix)
            try:
                moved.parent.mkdir(parents=True, exist_ok=True)
                path.rename(moved)
            except OSError as error:
                raise StoreError("a file cannot be moved away", where=str(path), expected=f"a move to {moved}", got=str(error)) from error
            yield f"{path} was moved to {moved}"
    for name in recorded_names(store.objects.list(EXPERIMENTS)):
        finished = open_run(store, name)
        manifest = finished.manifest()
        if manifest is None or not manifest.get("tracking", {}).get("in_store"):
            yield f"{name}: not finished, or tracked elsewhere"
            continue
        results = ResultPaths(name)
        files = [results.file(file) for file in (*manifest["tables"], *manifest.get("files", {})) if results.file(file) != results.config]
        link = track(finished, finished.judged(), files, RunHistory(**manifest.get("times", {"began": None, "ended": None})))
        Publications(store.objects, name).update({"tracking": tracking_record(finished, link)})
        yield f"{name}: published again, {link.hint}"
