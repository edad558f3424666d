"""YAML text as plain data, with the line of each field. Keys that are there twice are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from genrep_dist.errors import ConfigError
from genrep_dist.filesystem import FILE, what_is_at

Lines = dict[tuple[str, ...], int]
"""Line (from 1) of each field by its path; 0 for a field that an override set."""


def read_yaml(path: Path) -> tuple[dict[str, Any], Lines]:
    """The fields of a YAML file, and the line of each. Raises ConfigError for a file that is not a readable mapping without double keys."""
    found = what_is_at(path)
    if found != FILE:
        raise ConfigError("the experiment cannot be read", where=str(path), expected="a YAML file", got=found, remedy="correct the path")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError("the experiment is not UTF-8 text", where=str(path), got=str(error), remedy="save it as UTF-8") from error
    except OSError as error:
        raise ConfigError("the experiment cannot be read", where=str(path), expected="a YAML file", got=str(error)) from error
    data, lines = parse_yaml(text, str(path), "the experiment is not YAML")
    if not isinstance(data, dict):
        got = "no field: only comments and blank lines" if data is None else type(data).__name__
        raise ConfigError("the experiment is not a mapping", where=str(path), expected="lines of key: value", got=got)
    return data, lines


def parse_yaml(text: str, where: str, what: str) -> tuple[Any, Lines]:
    """Plain data of YAML ``text``, and the line of each field. Raises ConfigError, with the message ``what`` for text that is not YAML."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        lines = _line_numbers(node, where)
        return yaml.safe_load(text), lines
    except yaml.YAMLError as error:
        raise ConfigError(what, where=where, got=str(error).replace("\n", " ")) from error
    # A date that does not exist is a ValueError, a mapping that contains itself a RecursionError.
    except (ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(what, where=where, got=f"{type(error).__name__}: {error}") from error


def _line_numbers(node: yaml.Node | None, where: str, path: tuple[str, ...] = ()) -> Lines:
    """The line of each field below ``node``. ConfigError for a key that one mapping has twice."""
    found: Lines = {}
    items: list[tuple[str, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        items = [(str(key.value), key, value) for key, value in node.value]
        _refuse_double_keys(items, where, path)
    elif isinstance(node, yaml.SequenceNode):
        items = [(str(index), item, item) for index, item in enumerate(node.value)]
    for name, start, value in items:
        here = (*path, name)
        found[here] = start.start_mark.line + 1
        found |= _line_numbers(value, where, here)
    return found


def _refuse_double_keys(items: list[tuple[str, yaml.Node, yaml.Node]], where: str, path: tuple[str, ...]) -> None:
    seen: dict[tuple[str, str], yaml.Node] = {}
    for name, key, _ in items:
        # By tag too: 1 and "1" are different keys.
        if (key.tag, name) in seen:
            lines = [mark.start_mark.line + 1 for mark in (seen[key.tag, name], key)]
            raise ConfigError(
                f"the key {name!r} is there twice",
                where=f"{where}, lines {lines[0]} and {lines[1]}: field {'.'.join((*path, name))}",
                expected="each key once: YAML would silently take the last one",
                got=f"line {lines[0]} and line {lines[1]}",
                remedy="remove one of the two lines",
            )
        seen[key.tag, name] = key
