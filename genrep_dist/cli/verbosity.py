"""How much a command says: ``--quiet``, ``--verbose`` and ``--log-file``, options of every command."""

from __future__ import annotations

import functools
import inspect
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from genrep_dist.cli.terminal import write_line
from genrep_dist.errors import GenRepError, StoreError
from genrep_dist.filesystem import what_is_at

PANEL = "Output"
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print results, warnings and errors only.", rich_help_panel=PANEL)]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Print more: all steps, and tracebacks.", rich_help_panel=PANEL)]
LogOption = Annotated[
    Path | None,
    typer.Option("--log-file", metavar="FILE", help="Append progress, messages and errors to a file.", rich_help_panel=PANEL),
]


@dataclass
class Verbosity:
    """What the user has chosen for the command that runs."""

    quiet: bool = False
    verbose: bool = False
    log_file: Path | None = None

    def log(self, text: str) -> None:
        """Append lines with the time to the log file, if there is one."""
        if self.log_file is None:
            return
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        lines = "".join(f"{now} {line}\n" for line in text.splitlines())
        try:
            with self.log_file.open("a", encoding="utf-8") as file:
                file.write(lines)
        except OSError as error:
            path, self.log_file = self.log_file, None  # the error itself is not logged
            raise StoreError(
                "the log file cannot be written",
                where=str(path),
                expected="a file in an existing folder",
                got=f"{what_is_at(path)} ({error.strerror or error})",
                remedy="choose another --log-file",
            ) from error

    def show_error(self, error: GenRepError) -> None:
        """Print an error, with its traceback if the output is verbose, and log it with its traceback."""
        details = "".join(traceback.format_exception(error))
        if self.verbose:
            sys.stderr.write(details)
        write_line(f"error: {error}", stderr=True)
        if self.log_file is not None:
            self.log(f"{details}error: {error}")


current = Verbosity()
"""Of the command that runs in this process."""


def with_output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command with the options of this module besides its own."""

    @functools.wraps(command)
    def called(*arguments: Any, quiet: bool, verbose: bool, log_file: Path | None, **options: Any) -> Any:
        if quiet and verbose:
            raise typer.BadParameter("--quiet and --verbose exclude each other")
        current.quiet, current.verbose, current.log_file = quiet, verbose, log_file
        current.log(f"started: {' '.join(sys.argv)}")
        return command(*arguments, **options)

    own = inspect.signature(command, eval_str=True)
    added = {"quiet": (QuietOption, False), "verbose": (VerboseOption, False), "log_file": (LogOption, None)}
    parameters = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=d, annotation=kind) for n, (kind, d) in added.items()]
    called.__signature__ = own.replace(parameters=[*own.parameters.values(), *parameters])  # type: ignore[attr-defined]
    called.__annotations__ = {name: one.annotation for name, one in called.__signature__.parameters.items()}  # type: ignore[attr-defined]
    return called
