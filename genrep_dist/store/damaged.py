"""Damaged files are never deleted. They are moved to a separate folder of the store, so that a run can recompute them."""

from __future__ import annotations

import secrets
from contextlib import suppress

from genrep_dist.errors import CorruptError, DamagedArtifact, DamagedFile
from genrep_dist.store.artifacts import Artifact
from genrep_dist.store.damage_notes import forget
from genrep_dist.store.objects import Objects
from genrep_dist.store.paths import damaged_copy


def move_damaged(objects: Objects, damaged: DamagedArtifact | DamagedFile) -> str:
    """Move what a CorruptError names out of the way. Returns one sentence: what was moved, and where it is now.

    If the metadata of an artifact is intact, only its damaged parts are moved, and only these have to be recomputed. The manifest is
    moved first, then the part records: an interrupted move leaves nothing that vouches for missing data.
    """
    suffix = secrets.token_hex(4)
    if isinstance(damaged, DamagedFile):
        _move(objects, damaged.path, damaged_copy(damaged.path, suffix))
        forget(objects, damaged)
        return f"{damaged.path} was damaged; it was moved to {damaged_copy(damaged.path, suffix)}"
    artifact = Artifact(objects, damaged.kind, damaged.key)
    paths, target = artifact.paths, damaged_copy(artifact.path, suffix)
    parts = _damaged_parts(artifact)
    if parts:
        files = [path for part, chunk in parts.items() for path in (paths.record(part), chunk)]
        what = (
            f"{len(parts)} of {len(artifact.parts_done())} parts of {artifact.path} were damaged ({', '.join(list(parts)[:5])}); they were"
        )
    else:
        files = sorted(objects.list(artifact.path), key=lambda path: not path.startswith(f"{paths.records}/"))
        what = f"{artifact.path} was damaged; it was"
    for path in [paths.manifest, *(path for path in files if path != paths.manifest)]:
        _move(objects, path, f"{target}{path.removeprefix(artifact.path)}")
    forget(objects, damaged)
    return f"{what} moved to {target}"


def _move(objects: Objects, path: str, to: str) -> None:
    with suppress(FileNotFoundError):  # another driver moved it first
        objects.move(path, to)


def _damaged_parts(artifact: Artifact) -> dict[str, str]:
    """Empty if the damage is not limited to parts."""
    try:
        return artifact.damaged_parts()
    except (CorruptError, KeyError, TypeError):
        return {}
