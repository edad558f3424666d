"""Output to terminals and logs of any encoding: characters that one lacks are replaced, and no command fails for them."""

from __future__ import annotations

import codecs
import io
import json
import sys
from typing import Any

from rich.console import Console
from rich.text import Text

_HANDLER = "genrep_dist.plain"
_PLAIN = {"±": "+/-", "₋": "-", "₊": "+", "…": "...", "–": "-", "—": "-", "−": "-", "×": "x", "≤": "<=", "≥": ">=", "·": "."}
"""Characters of this package's texts, and what is written where they cannot be."""


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start : error.end]
    # Of the user's own texts, the code: data is not lost.
    return "".join(_PLAIN.get(char) or char.encode("ascii", "backslashreplace").decode() for char in found), error.end


codecs.register_error(_HANDLER, _replace)


def accept_any_text() -> None:
    """Let stdout and stderr replace characters that their encoding lacks, instead of raising UnicodeEncodeError."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)


def write_line(text: object, *, stderr: bool = False) -> None:
    """Write one line. Unlike ``click.echo``, which writes UTF-8 to a stream of ASCII."""
    stream = sys.stderr if stderr else sys.stdout
    stream.write(f"{text}\n")
    stream.flush()


def print_json(data: Any) -> None:
    """Write plain data as JSON."""
    write_line(json.dumps(data, indent=1, allow_nan=False))


class PlainConsole(Console):
    """A console whose texts are replaced before they are laid out, so that the columns of a table stay aligned."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(text.encode(self.encoding, _HANDLER).decode(self.encoding), **options)


def make_console(*, stderr: bool = False) -> Console:
    """A console at stdout or stderr. A log has no width: its lines are not wrapped to that of a terminal."""
    if (sys.stderr if stderr else sys.stdout).isatty():
        return PlainConsole(soft_wrap=False, stderr=stderr)
    return PlainConsole(width=160, stderr=stderr)


def moves_cursor(console: Console) -> bool:
    """Whether lines can be drawn again, as progress bars need it: at a terminal, but not at TERM=dumb."""
    return console.is_terminal and not console.is_dumb_terminal
