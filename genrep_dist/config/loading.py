"""Reading experiments from YAML: look-up by name, profiles, overrides, and errors with file and line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from genrep_dist.config.experiment import Experiment
from genrep_dist.errors import ConfigError

Lines = dict[tuple[str, ...], int]
"""Line (from 1) of each field by its path; 0 for a field that an override set."""

_NOT_A_FIELD = re.compile(r"constrained-\w+|tuple\[.*\]|literal\[.*\]|\[key\]")
"""Parts of pydantic's error locations that are no fields: the alternative of a union, and the key of a mapping."""


def load_experiment(source: str | Path, overrides: Sequence[str] = (), profile: str | None = None) -> Experiment:
    """Read an experiment from a YAML file, or one that ships by its name.

    ``profile`` names one of the file's ``profiles``. Its fields replace those of the file, section by section, and ``name`` becomes
    ``name-profile``. An experiment with profiles requires one. ``overrides`` are ``a.b=value`` with YAML values, applied last, in order.

    Raises ConfigError that lists all errors, each with file, line, field, what was expected and what was found.
    """
    path = _find(source)
    data, lines = _read(path)
    if profile is not None:
        _apply_profile(data, profile, path, lines)
    for override in overrides:
        _apply_override(data, override, lines)
    try:
        return Experiment.model_validate(data)
    except ValidationError as error:
        raise _config_error(error, path, lines) from error


def profile_names(source: str | Path) -> tuple[str, ...]:
    """Names of the profiles of an experiment in the file's order; empty for an experiment without profiles."""
    found = _read(_find(source))[0].get("profiles") or {}
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
    for path in (Path(source), *(folder / f"{source}.yaml" for folder in _experiment_folders())):
        if path.is_file():
            return path
    raise ConfigError(
        "no such experiment",
        where=str(source),
        expected="a YAML file, or one of " + ", ".join(shipped_experiments()),
        got="neither",
        remedy="check the path; shipped experiments are named without .yaml",
    )


def _read(path: Path) -> tuple[dict[str, Any], Lines]:
    """The file's fields, and the line of each."""
    try:
        text = path.read_text(encoding="utf-8")
        data = yaml.safe_load(text)
        lines = _line_numbers(yaml.compose(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise ConfigError("the experiment is not YAML", where=str(path), got=str(error).replace("\n", " ")) from error
    except UnicodeDecodeError as error:
        raise ConfigError("the experiment is not UTF-8 text", where=str(path), got=str(error)) from error
    if not isinstance(data, dict):
        raise ConfigError("the experiment is not a mapping", where=str(path), expected="lines of key: value", got=type(data).__name__)
    return data, lines


def _line_numbers(node: yaml.Node | None, path: tuple[str, ...] = ()) -> Lines:
    found: Lines = {}
    items: list[tuple[str, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        items = [(str(key.value), key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        items = [(str(index), item, item) for index, item in enumerate(node.value)]
    for name, start, value in items:
        here = (*path, name)
        found[here] = start.start_mark.line + 1
        found |= _line_numbers(value, here)
    return found


def _apply_profile(data: dict[str, Any], profile: str, path: Path, lines: Lines) -> None:
    profiles = data.pop("profiles", None) or {}
    if not isinstance(profiles, dict) or not isinstance(profiles.get(profile), dict):
        known = ", ".join(map(str, profiles)) if isinstance(profiles, dict) and profiles else "none: this experiment has one size"
        raise ConfigError("there is no such profile", where=f"{path}: profiles", expected=known, got=repr(profile))
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
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError("an override's value is not YAML", where=where, got=text) from error
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


def _config_error(error: ValidationError, path: Path, lines: Lines) -> ConfigError:
    texts: list[str] = []
    for location, details in _errors(error):
        known = max((location[:length] for length in range(len(location) + 1) if location[:length] in lines), key=len, default=())
        line = lines.get(known)
        source = str(path) if line is None else "the command line" if line == 0 else f"{path}, line {line}"
        expected, got = details["msg"].removeprefix("Value error, "), repr(details["input"])
        if details["type"] == "extra_forbidden":
            expected = "no such field" + _near_fields(location)
        elif details["type"] == "missing":
            expected, got = "this field, which is required", "nothing"
        got = got if len(got) <= 80 else got[:77] + "..."
        texts.append(f"{source}: field {'.'.join(location) or 'the experiment'}: expected {expected}; got {got}")
    count = "an error" if len(texts) == 1 else f"{len(texts)} errors"
    return ConfigError(f"the experiment has {count}\n  " + "\n  ".join(texts), remedy="`genrep schema` prints all fields with their types")


def _errors(error: ValidationError) -> list[tuple[tuple[str, ...], ErrorDetails]]:
    """Each error with its field. For a field of several types, errors of types that were not meant are left out."""
    found: dict[tuple[str, ...], list[ErrorDetails]] = {}
    for details in error.errors():
        location = tuple(str(part) for part in details["loc"] if not _NOT_A_FIELD.fullmatch(str(part)))
        found.setdefault(location, []).append(details)
    return [
        (location, details)
        for location, several in found.items()
        for details in ([d for d in several if not d["type"].endswith("_type")] or several[:1] if len(several) > 1 else several)
    ]


def _near_fields(location: tuple[str, ...]) -> str:
    """The nearest fields of the section that has no field of this name."""
    section: type[BaseModel] = Experiment
    for part in location[:-1]:
        inner = section.model_fields.get(part)
        if inner is None or not isinstance(inner.annotation, type) or not issubclass(inner.annotation, BaseModel):
            return ""
        section = inner.annotation
    names = [field.alias or name for name, field in section.model_fields.items()]
    near = difflib.get_close_matches(location[-1], names, n=2)
    return f" (did you mean {' or '.join(near)}?)" if near else f" (fields here: {', '.join(names)})"
