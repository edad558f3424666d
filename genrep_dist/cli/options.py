"""Arguments and options that several commands have."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from genrep_dist.config import Experiment


def _complete_experiment(incomplete: str) -> list[str]:
    """YAML files of the current folder, or of the one that was typed, and the experiments that ship."""
    from genrep_dist.config.loading import shipped_experiments

    folder = Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent
    files = sorted(str(path) for suffix in ("yaml", "yml") for path in folder.glob(f"*.{suffix}"))
    return [name for name in (*files, *shipped_experiments()) if name.startswith(incomplete)]


def _complete_name(context: typer.Context, incomplete: str) -> list[str]:
    """The experiments of the store, if it is a local folder."""
    from genrep_dist.store.paths import ExperimentPaths, recorded_names

    folder = Path(str(context.params.get("store") or "store"))
    records = [path.relative_to(folder).as_posix() for path in folder.glob(ExperimentPaths("*").record)]
    return [name for name in recorded_names(records) if name.startswith(incomplete)]


ExperimentArgument = Annotated[
    str,
    typer.Argument(metavar="EXPERIMENT", help="A YAML file, or the name of an experiment that ships.", autocompletion=_complete_experiment),
]
NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="The name of an experiment that was run in this store.", autocompletion=_complete_name)
]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Change a field. May be repeated.")]
ProfileOption = Annotated[str | None, typer.Option("--profile", help="The size of an experiment that has several, for example cpu.")]
StoreOption = Annotated[str, typer.Option("--store", help="Folder or URL of the store with all results.")]
CodeOption = Annotated[
    str | None,
    typer.Option(
        "--experiment",
        metavar="EXPERIMENT",
        help="The YAML file of this run. Of a store from elsewhere, classes are imported only if they are named so.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
YesOption = Annotated[bool, typer.Option("--yes", "--delete", help="Really delete it.")]


_UNIT_SECONDS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}


def parse_seconds(text: str) -> float:
    """Seconds of a time such as 40m, 1h30m, 1.5h or 90 (seconds). typer.BadParameter for anything else, and for no time at all."""
    plain = text.replace(" ", "")
    whole = re.fullmatch(r"(?:\d+(?:\.\d+)?d)?(?:\d+(?:\.\d+)?h)?(?:\d+(?:\.\d+)?m)?(?:\d+(?:\.\d+)?s)?|\d+(?:\.\d+)?", plain)
    parts = re.findall(r"(\d+(?:\.\d+)?)([dhms]?)", plain)
    seconds = sum(float(number) * _UNIT_SECONDS[unit or "s"] for number, unit in parts)
    if not whole or not 0 < seconds < float("inf"):
        raise typer.BadParameter(f"{text!r} is no time; expected a number of seconds, or for example 40m, 1h30m, 2d")
    return seconds


def load(experiment: str, overrides: Sequence[str] | None, profile: str | None = None) -> Experiment:
    from genrep_dist.config import load_experiment

    return load_experiment(experiment, overrides or (), profile)


def search_path(experiment: str) -> tuple[str, ...]:
    """Folders of a user's own problem: that of the experiment file, then the current folder."""
    path = Path(experiment)
    folder = [str(path.resolve().parent)] if path.is_file() else []
    return (*folder, str(Path.cwd()))
