"""What is damaged is put aside, never away: into ``refused/``, under the path that it had."""

from __future__ import annotations

import secrets
from contextlib import suppress

from genrep_dist.errors import CorruptError
from genrep_dist.store.artifacts import Artifact
from genrep_dist.store.objects import Objects


def put_aside(objects: Objects, damaged: str) -> str:
    """Move what a CorruptError calls ``damaged`` out of the way; says, in a line, what was moved and where it is now.

    Of an artifact of many parts only the damaged ones are moved, if its own description is sound; then only they are missing. The
    proof of being finished goes first: when this is interrupted, nothing is left that vouches for what is gone.
    """
    place = f"refused/{damaged}-{secrets.token_hex(4)}"
    if not _is_artifact(damaged):
        with suppress(FileNotFoundError):  # another driver was faster
            objects.move(damaged, place)
        return f"{damaged} was damaged; it lies in {place} now"
    _, kind, _, key = damaged.split("/")
    artifact = Artifact(objects, kind, key)
    parts = _damaged_parts(artifact)
    if parts:
        blocks = [path for part, block in parts.items() for path in (f"{damaged}/parts/{part}.json", block)]
        what = f"{len(parts)} of {len(artifact.parts_done())} parts of {damaged} were damaged ({', '.join(list(parts)[:5])}); they lie"
    else:
        records = f"{damaged}/parts/"
        blocks = sorted(objects.list(damaged), key=lambda path: not path.startswith(records))
        what = f"{damaged} was damaged; it lies"
    manifest = f"{damaged}/manifest.json"
    for path in [manifest, *(path for path in blocks if path != manifest)]:
        with suppress(FileNotFoundError):
            objects.move(path, f"{place}{path.removeprefix(damaged)}")
    return f"{what} in {place} now"


def _is_artifact(path: str) -> bool:
    return path.startswith("artifacts/") and path.count("/") == 3


def _damaged_parts(artifact: Artifact) -> dict[str, str]:
    """Nothing where the damage is not one of parts."""
    try:
        return artifact.damaged_parts()
    except (CorruptError, KeyError, TypeError):
        return {}
