"""The command line, `genrep`. Each command imports the heavy libraries that it needs, so that `genrep --help` imports none."""

from __future__ import annotations

import typer

from genrep_dist.cli.commands import COMMANDS, GROUPS
from genrep_dist.cli.terminal import accept_any_text, write_line
from genrep_dist.errors import GenRepError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Compute sample-based explanations, and evaluate them by retraining models without the samples that they name.",
)
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)
for _group, (_help, _commands) in GROUPS.items():
    _inner = typer.Typer(no_args_is_help=True, help=_help)
    for _name, _command in _commands.items():
        _inner.command(_name)(_command)
    app.add_typer(_inner, name=_group)


def main() -> None:
    """The console script. An error of this package is printed as one message, without traceback, with exit code 1."""
    accept_any_text()
    try:
        app()
    except GenRepError as error:
        write_line(f"error: {error}", stderr=True)
        raise SystemExit(1) from None
