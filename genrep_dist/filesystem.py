"""What is at a path, in words for error messages."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

FILE = "a file"
FOLDER = "a folder"
EMPTY_FILE = "an empty file"


def what_is_at(path: str | Path) -> str:
    """:data:`FILE` for a file with contents that may be read, :data:`FOLDER` for a folder; else what is wrong there. Raises no error."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return "a symbolic link to nothing" if os.path.islink(path) else "nothing"
    except NotADirectoryError:
        return "nothing: a part of this path is a file"
    except PermissionError:
        return "a place that may not be read (permission denied)"
    except OSError as error:
        return "a symbolic link that leads to itself" if error.errno == errno.ELOOP else f"nothing that can be read ({error.strerror})"
    except ValueError:
        return "no path: it contains a null character"
    if stat.S_ISDIR(found.st_mode):
        return FOLDER
    if not stat.S_ISREG(found.st_mode):
        return "neither a file nor a folder"
    if not os.access(path, os.R_OK):
        return "a file that may not be read (permission denied)"
    return FILE if found.st_size else EMPTY_FILE
