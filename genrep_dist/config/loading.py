"""Reading experiments from YAML: look-up by name, profiles, overrides, and errors with file and line."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genrep_dist.config.experiment import Experiment
from genrep_dist.config.field_errors import Location
from genrep_dist.config.yaml_text import Lines, parse_yaml, read_yaml
from genrep_dist.errors import ConfigError
from genrep_dist.filesystem import FOLDER, what_is_at


def load_experiment(source: str | Path, overrides: Sequence[str] = (), profile: str | None = None) -> Experiment:
    """Read an experiment from a YAML file, or one that ships by its name.

    ``profile`` names one of the file's ``profiles``. Its fields replace those of the file, section by section, and ``name`` becomes
    ``name-profile``. An experiment with profiles requires one. ``overrides`` are ``a.b=value`` with YAML values, applied last, in order.

    Raises ConfigError that lists all errors, each with file, line, field, what was expected and what was found.
    """
    if not isinstance(source, str | os.PathLike):
        raise ConfigError(
            "this is no experiment",
            expected="the path of a YAML file, or the name of an experiment that ships",
            got=f"{type(source).__name__} {source!r}"[:80],
            remedy="for fields in a dictionary, use gr.Experiment.model_validate(fields)",
        )
    path = _find(source)
    data, lines = read_yaml(path)
    if profile is not None:
        _apply_profile(data, profile, path, lines)
    for override in [overrides] if isinstance(overrides, str) else overrides:
        _apply_override(data, override, lines)

    def place(location: Location) -> str:
        known = max((location[:length] for length in range(len(location) + 1) if location[:length] in lines), key=len, default=())
        line = lines.get(known)
        return str(path) if line is None else "the command line" if line == 0 else f"{path}, line {line}"

    return Experiment.validated(data, place)


def profile_names(source: str | Path) -> tuple[str, ...]:
    """Names of the profiles of an experiment in the file's order; empty for an experiment without profiles."""
    found = read_yaml(_find(source))[0].get("profiles") or {}
    return tuple(found) if isinstance(found, dict) else ()


def shipped_experiments() -> list[str]:
    """Names of the experiments that ship. Those in a folder are prefixed with its name, as in paper/mnist."""
    return sorted(
        {path.relative_to(folder).with_suffix("").as_posix() for folder in _experiment_folders() for path in folder.rglob("*.yaml")}
    )


def _experiment_folders() -> list[Path]:
    """Folders of shipped experiments, in an installed package or in a checkout."""
    package = Path(__file__).parent.parent
    return [folder for folder in (package / "experiments", package.parent / "jobs" / "experiments") if folder.is_dir()]


def _find(source: str | Path) -> Path:
    """The experiment's file. A path that exists but is no file is returned only if no shipped experiment has this name."""
    shipped = [folder / f"{source}.yaml" for folder in _experiment_folders()]
    paths = [path for path in (Path(source), *shipped) if os.path.isfile(path)]
    found = what_is_at(source)
    if not paths:
        inside = sorted(Path(source).glob("*.yaml"))[:5] if found == FOLDER else []
        raise ConfigError(
            "no such experiment",
            where=str(source),
            expected="a YAML file, or one of " + ", ".join(shipped_experiments()),
            got=found,
            remedy=f"name a file in it: {', '.join(map(str, inside))}"
            if inside
            else "check the path; shipped experiments are named without .yaml",
        )
    return paths[0]


def _apply_profile(data: dict[str, Any], profile: str, path: Path, lines: Lines) -> None:
    profiles = data.pop("profiles", None) or {}
    if not isinstance(profiles, dict) or not isinstance(profiles.get(profile), dict):
        names = list(map(str, profiles)) if isinstance(profiles, dict) else []
        near = difflib.get_close_matches(str(profile), names, n=1)
        raise ConfigError(
            "there is no such profile",
            where=f"{path}: profiles",
            expected="one of " + ", ".join(names) if names else "none: this experiment has one size",
            got=repr(profile),
            remedy=f"did you mean {near[0]}?" if near else "choose one of these" if names else "leave out --profile (profile=)",
        )
    _merge(data, profiles[profile])
    start = ("profiles", profile)
    for key in [key for key in lines if key[:2] == start and len(key) > 2]:
        lines[key[2:]] = lines[key]
    data["name"] = f"{data.get('name')}-{profile}"
    data["profile"] = profile


def _merge(into: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _apply_override(data: dict[str, Any], override: str, lines: Lines) -> None:
    name, sign, text = override.partition("=")
    where = f"--set {override}"
    if not sign or not name:
        raise ConfigError("an override cannot be read", where=where, expected="a.b=value", got=override)
    value, _ = parse_yaml(text, where, "an override's value is not YAML")
    *parents, last = path = tuple(name.split("."))
    section = data
    for parent in parents:
        inner = section.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ConfigError("an override names a field below one that has no fields", where=where, got=f"{parent} = {inner!r}")
        section = inner
    section[last] = value
    for key in [path, *(key for key in lines if key[: len(path)] == path)]:
        lines[key] = 0
