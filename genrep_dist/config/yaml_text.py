"""YAML text as plain data, with the line of each field. Keys that are there twice are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from genrep_dist.errors import ConfigError
from genrep_dist.filesystem import FILE, what_is_at
from genrep_dist.limits import MAX_DEPTH

MAX_BYTES = 2**22
"""Of an experiment file."""
MAX_NODES = 500_000
"""Values of an experiment, each counted as often as it is used. A list of sample ids can be long."""
MAX_DIGITS = 1_000
"""Characters of a number. Python reads one of base 60 in quadratic time."""
Lines = dict[tuple[str, ...], int]
"""Line (from 1) of each field by its path; 0 for a field that an override set."""


def read_yaml(path: Path) -> tuple[dict[str, Any], Lines]:
    """The fields of a YAML file, and the line of each. Raises ConfigError for a file that is not a readable mapping without double keys."""
    found = what_is_at(path)
    if found != FILE:
        raise ConfigError("the experiment cannot be read", where=str(path), expected="a YAML file", got=found, remedy="correct the path")
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ConfigError("the experiment is too long", where=str(path), expected=f"at most {MAX_BYTES:,} bytes", got=f"{size:,} bytes")
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
        _check_size(node, where, what)
        lines = _line_numbers(node, where)
        return yaml.safe_load(text), lines
    except yaml.YAMLError as error:
        raise _not_yaml(error, text, where, what) from error
    # A date that does not exist is a ValueError, a mapping that contains itself a RecursionError.
    except (ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(what, where=where, got=f"{type(error).__name__}: {error}") from error


def _not_yaml(error: yaml.YAMLError, text: str, where: str, what: str) -> ConfigError:
    """The ConfigError for text that YAML cannot read, with its line and, where the cause is common, what to do."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return ConfigError(what, where=where, got=str(error).replace("\n", " "))
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    problem = str(getattr(error, "problem", "") or error).replace("\n", " ")
    expected, remedy = "", ""
    if "\t" in line[: mark.column + 1]:
        expected, problem, remedy = (
            "spaces at the beginning of a line",
            "a tab",
            "replace the tab by spaces: YAML does not allow tabs there",
        )
    elif problem.startswith("mapping values are not allowed"):
        expected, remedy = "one `key: value` a line", "put a value that contains a colon into quotes"
    elif mark.line >= len(lines):
        expected, problem, remedy = "a closing bracket or quote", "the end of the file", "close what was opened"
    return ConfigError(
        what,
        where=f"{where}, line {mark.line + 1}, column {mark.column + 1}",
        expected=expected,
        got=f"{problem}: {line!r}" if line else problem,
        remedy=remedy,
    )


def _check_size(root: yaml.Node | None, where: str, what: str) -> None:
    """ConfigError for text that stands for far more than it shows: by aliases of aliases, by depth, and by numbers of many digits."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node, depth: int) -> int:
        """Nodes below one, each counted as often as it is used."""
        if id(node) not in sizes:
            if depth > MAX_DEPTH:
                raise _too_large(what, where, f"at most {MAX_DEPTH} lists and mappings in each other", "more, or one in itself")
            if isinstance(node, yaml.ScalarNode):
                if node.tag != "tag:yaml.org,2002:str" and len(node.value) > MAX_DIGITS:
                    raise _too_large(what, where, f"numbers of at most {MAX_DIGITS} characters", f"one of {len(node.value):,}")
                inner: list[yaml.Node] = []
            else:
                inner = [part for pair in node.value for part in (pair if isinstance(node, yaml.MappingNode) else (pair,))]
            sizes[id(node)] = 1 + sum(size(part, depth + 1) for part in inner)
        return sizes[id(node)]

    if root is not None and (total := size(root, 0)) > MAX_NODES:
        raise _too_large(what, where, f"at most {MAX_NODES:,} values, with those that aliases repeat", f"{total:,}")


def _too_large(what: str, where: str, expected: str, got: str) -> ConfigError:
    return ConfigError(what, where=where, expected=expected, got=got)


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
