"""Notes of damage that somebody has found: the next run mends it, although its results are published and it would read nothing.

Whoever reads a damaged file leaves a note if it can. A note has no authority: a run moves away what a note names only if it belongs to the
experiment.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from contextlib import suppress
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from genrep_dist.errors import CorruptError, DamagedArtifact, DamagedFile, StoreError
from genrep_dist.store.paths import DAMAGE_NOTES, ArtifactPaths, damage_note

if TYPE_CHECKING:
    from genrep_dist.store.objects import Objects


def noted(objects: Objects, error: CorruptError) -> CorruptError:
    """``error``, after a note of what it names. A store that cannot be written keeps no notes."""
    if error.damaged is not None:
        with suppress(StoreError):
            objects.put(_note(error.damaged), json.dumps({"path": _path(error.damaged)}).encode())
    return error


def forget(objects: Objects, damaged: DamagedArtifact | DamagedFile) -> None:
    """Remove the note of what was moved away."""
    objects.delete(_note(damaged))


def noted_damage(objects: Objects, folders: Collection[str], artifacts: Collection[tuple[str, str]]) -> list[DamagedArtifact | DamagedFile]:
    """What is noted of the files below ``folders`` and of the ``artifacts`` (kind, key)."""
    paths = objects.list(DAMAGE_NOTES)
    if not paths:
        return []
    whole = {ArtifactPaths(*one).folder: DamagedArtifact(*one) for one in artifacts}
    found: list[DamagedArtifact | DamagedFile] = []
    for note in paths:
        try:
            path = PurePosixPath(json.loads(objects.get(note))["path"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            objects.delete(note)  # damaged itself
            continue
        if ".." in path.parts:
            continue
        parents = {str(parent) for parent in path.parents}
        if str(path) in whole:
            found.append(whole[str(path)])
        elif parents & {*folders, *whole}:
            found.append(DamagedFile(str(path)))
    return found


def _path(damaged: DamagedArtifact | DamagedFile) -> str:
    return damaged.path if isinstance(damaged, DamagedFile) else ArtifactPaths(damaged.kind, damaged.key).folder


def _note(damaged: DamagedArtifact | DamagedFile) -> str:
    return damage_note(hashlib.sha256(_path(damaged).encode()).hexdigest())
