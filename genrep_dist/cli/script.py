"""What the scripts of `jobs/` share: what they do when they fail or are stopped, and the places they write to."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

from genrep_dist.cli.terminal import accept_any_text
from genrep_dist.errors import ConfigError, GenRepError
from genrep_dist.filesystem import what_is_at
from genrep_dist.provenance import resume_command
from genrep_dist.runner.signals import Signals


def run_script(main: Callable[[], None]) -> None:
    """Call ``main``. A GenRepError is printed, with the exit code 1. The first SIGINT or SIGTERM exits with 130 or 143.

    The message of a stop has the command that goes on: the same one, since a run computes only what its store lacks.
    """
    accept_any_text()
    signals = Signals(lambda: f"what is finished is kept\nto resume: {resume_command()}\n")
    try:
        with signals:
            main()
            signals.check()
    except KeyboardInterrupt:
        sys.exit(signals.exit_code)
    except GenRepError as error:
        sys.exit(f"error: {error}")


def output_folder(path: Path) -> Path:
    """``path``, created if it does not exist. ConfigError, before any work, if files cannot be written there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise _cannot_write(path, "a folder, existing or new, that files can be written to", error) from error
    return path


def output_file(path: Path) -> Path:
    """``path``, whose folder is created if it does not exist. ConfigError, before any work, if this file cannot be written."""
    output_folder(path.parent)
    if path.is_dir():
        raise _cannot_write(path, "a file, existing or new", IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)))
    return path


def _cannot_write(path: Path, expected: str, error: OSError) -> ConfigError:
    got = f"{what_is_at(path)} ({error.strerror or error})"
    return ConfigError("the results cannot be written", where=f"--to {path}", expected=expected, got=got, remedy="choose another place")
