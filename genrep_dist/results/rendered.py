"""Whether the published report is the one that would be written now. Imports nothing that draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genrep_dist.config.digests import json_digest
from genrep_dist.errors import CorruptError, DamagedFile
from genrep_dist.provenance import installation_digest
from genrep_dist.results.run import Run
from genrep_dist.store.damage_notes import noted
from genrep_dist.store.paths import ResultPaths
from genrep_dist.store.publications import Publications
from genrep_dist.workflow.user_code import classes_named


def rendering(run: Run, tracking: Mapping[str, Any] | None) -> str:
    """The digest of what a report is made from beside the published tables. ``tracking``: where the results are in MLflow."""
    # The lease is that of the last driver, which may have computed nothing.
    record = {name: value for name, value in run.record.items() if name != "lease"}
    return json_digest([installation_digest(), record, tracking])


def is_up_to_date(run: Run) -> bool:
    """Whether writing the report again would write what is there, and all published files are intact.

    False where code of other packages or of the user takes part, as what it says of samples may have changed.
    """
    manifest = run.manifest()
    if manifest is None or run.record["extensions"] or classes_named(run.record["experiment"]):
        return False
    written = rendering(run, manifest.get("tracking"))
    return manifest.get("report") == written and not damaged_files(run)


def damaged_files(run: Run) -> list[str]:
    """Paths of published files that are damaged or missing; the manifest's there, if it is."""
    manifest = run.manifest()
    return [] if manifest is None else Publications(run.store.objects, run.name).faults(manifest)


def published_report(run: Run) -> list[str]:
    """The paths of the published report of a run, which are verified. NotCommittedError if there is none, CorruptError for damage."""
    run.metrics()  # raises where nothing is published
    publications, manifest = Publications(run.store.objects, run.name), run.manifest() or {}
    for path in publications.faults(manifest):
        error = CorruptError(
            "a published file is damaged or missing",
            where=f"{run.store.uri}/{path}",
            remedy="run the experiment again: it is moved away and published again",
            damaged=DamagedFile(path),
        )
        raise noted(run.store.objects, error)
    results = ResultPaths(run.name)
    return [path for path in map(results.file, manifest.get("files", {})) if path != results.config]
