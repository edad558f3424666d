"""What a script of `jobs/` does when it fails or is stopped."""

from __future__ import annotations

import sys
from collections.abc import Callable

from genrep_dist.cli.terminal import accept_any_text
from genrep_dist.errors import GenRepError
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
