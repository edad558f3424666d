"""Links in a local store. A store writes, moves and reads below its root only: a link that leads out of it is refused.

Whoever may write into a store can change a link between a check and the use of the path; against that only permissions help.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from genrep_dist.errors import StoreError
from genrep_dist.filesystem import what_is_at


def path_inside(root: Path, path: str) -> Path:
    """The place of ``path`` below ``root``, a resolved folder.

    StoreError if links lead it out of ``root``, and if neither a file nor a folder is there: reading a pipe would wait for ever.
    """
    place = root / path
    if _is_plain(root, path):
        return place
    real = os.path.realpath(place)
    if not Path(real).is_relative_to(root):
        raise StoreError(
            "a link in the store leads out of it",
            where=str(_first_link(root, place)),
            expected="files and folders of the store",
            got=f"a path to {real}",
            remedy="find out who has made this link, and remove it; to keep a store elsewhere, give that place as --store",
        )
    try:
        mode = os.stat(real).st_mode
    except (OSError, ValueError):
        return place  # reported where it is used
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise StoreError(
            "something else is where the store has a file or a folder",
            where=str(place),
            expected="a file or a folder",
            got=what_is_at(place),
            remedy="move it out of the store and run the same command again: only what is missing is computed",
        )
    return place


def _is_plain(root: Path, path: str) -> bool:
    """Whether nothing between ``root`` and ``path`` is a link, and at its end is a file, a folder or nothing. Every access asks this."""
    parts = path.split("/")
    if ".." in parts or os.path.isabs(path):
        return False
    at, mode = str(root), stat.S_IFDIR
    for part in parts:
        at = f"{at}/{part}"
        try:
            mode = os.lstat(at).st_mode
        except ValueError:
            return False
        except OSError:
            return True
        if stat.S_ISLNK(mode):
            return False
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def check_links_below(root: Path, prefix: str) -> None:
    """Raise StoreError if a link in the folder ``prefix``, at any depth, leads out of ``root``. Links are not followed."""
    waiting = [path_inside(root, prefix)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_symlink():
                        path_inside(root, os.path.relpath(entry.path, root))
                    elif entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry.path))
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue  # nothing is listed there, or it is reported by what lists it


def _first_link(root: Path, place: Path) -> Path:
    """The first part of ``place`` that is a link; ``place`` itself for a path with "..", which needs none."""
    inside = [part for part in reversed(place.parents) if part.is_relative_to(root) and part != root]
    return next((part for part in [*inside, place] if part.is_symlink()), place)
