"""The command line, `genrep`. Each command imports the heavy libraries that it needs, so that `genrep --help` imports none."""

from __future__ import annotations

import gc
from typing import Annotated

import typer

from genrep_dist.cli.commands import COMMANDS, GROUPS
from genrep_dist.cli.terminal import accept_any_text, write_line
from genrep_dist.cli.verbosity import current, with_output_options
from genrep_dist.errors import GenRepError

EXIT_CODES = """Exit codes: 0 success; 1 an error, or red findings of the doctor; 2 wrong use of a command; 75 the time of --for is over and
work is left; 130 stopped by Ctrl-C (SIGINT); 143 stopped by SIGTERM. What a stopped run has computed is kept: the same command
resumes it."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,  # `genrep completion` prints scripts that call what this adds
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    help="Compute sample-based explanations, and evaluate them by retraining models without the samples that they name.",
    epilog=" ".join(EXIT_CODES.split()),
)


def _show_version(asked: bool) -> None:
    if asked:
        from genrep_dist.provenance import package_version

        write_line(f"genrep {package_version()}")
        raise typer.Exit


@app.callback()
def _genrep(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    del version


for _heading, _commands in COMMANDS.items():
    for _name, _command in _commands.items():
        app.command(_name, rich_help_panel=_heading)(with_output_options(_command))
for _group, (_heading, _help, _commands) in GROUPS.items():
    _inner = typer.Typer(no_args_is_help=True, help=_help)
    for _name, _command in _commands.items():
        _inner.command(_name)(with_output_options(_command))
    app.add_typer(_inner, name=_group, rich_help_panel=_heading)


def main() -> None:
    """The console script. An error of this package is printed as one message, without traceback, with exit code 1."""
    accept_any_text()
    try:
        app()
    except GenRepError as error:
        current.show_error(error)
        raise SystemExit(1) from None
    finally:
        # The process ends. Without this, Python searches all objects of the libraries for cycles once more, a sixth of `genrep status`.
        gc.freeze()
