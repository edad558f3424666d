"""Errors of an experiment's fields, in words: what pydantic found, as what was expected and what was given."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from genrep_dist.errors import ConfigError

Location = tuple[str, ...]

_NOT_A_FIELD = re.compile(r"constrained-\w+|tuple\[.*\]|literal\[.*\]|\[key\]|function-\w+\[.*\]|nullable\[.*\]")
"""Parts of pydantic's error locations that are no fields: the alternative of a union, and the key of a mapping."""

_TABLE, _LIST, _TEXT, _WHOLE = "a table (lines of key: value)", "a list ([a, b])", "text", "a whole number"
_EXPECTED: dict[str, str] = {
    "model_type": _TABLE,
    "model_attributes_type": _TABLE,
    "dataclass_type": _TABLE,
    "dict_type": _TABLE,
    "mapping_type": _TABLE,
    "list_type": _LIST,
    "tuple_type": _LIST,
    "set_type": _LIST,
    "iterable_type": _LIST,
    "string_type": _TEXT,
    "string_unicode": _TEXT,
    "string_sub_type": _TEXT,
    "int_type": _WHOLE,
    "int_parsing": _WHOLE,
    "int_parsing_size": "a whole number of fewer digits",
    "int_from_float": "a whole number, without a fraction",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "none_required": "nothing (null)",
    "invalid_key": "a name as key, which is text",
    "missing": "this field, which is required",
    "recursion_loop": "a table that does not contain itself",
}
"""Pydantic's error types whose text is the same wherever they occur."""

_BOUNDS = {"gt": "greater than", "ge": "of at least", "lt": "less than", "le": "of at most"}
_SHARES = ("fraction", "fractions")
"""Fields that are shares of a data set, which many would give in percent."""
_PATTERNS = {
    r"^[A-Za-z0-9][A-Za-z0-9._-]*$": "a name of letters, digits, '.', '_' and '-', without spaces, that begins with a letter or digit",
    r"^[a-z][a-z0-9_]*$": "a name of lower-case letters, digits and '_', without spaces, that begins with a letter",
}
_OWN_FIELD = re.compile(r"(?:Value error, )?(\w+(?:\.\w+)*): (.*)", re.DOTALL)
"""A message about the whole experiment that begins with the field it is about."""
_WHOLE_LISTS = {"seeds": "a number of seeds, or a list of seeds ([0, 1, 2])"}
_COMPARISONS = {"greater_than": "gt", "greater_than_equal": "ge", "less_than": "lt", "less_than_equal": "le"}


def describe_errors(error: ValidationError, root: type[BaseModel], source: Callable[[Location], str] = lambda _: "") -> ConfigError:
    """The ConfigError that lists all errors of a validation of ``root``. ``source``: where a field stands, such as "exp.yaml, line 3"."""
    texts = [
        f"{prefix + ': ' if (prefix := source(place)) else ''}field {'.'.join(place) or 'the experiment'}: expected {expected}; got {got}"
        for place, expected, got in _texts(error, root)
    ]
    count = "an error" if len(texts) == 1 else f"{len(texts)} errors"
    return ConfigError(f"the experiment has {count}\n  " + "\n  ".join(texts), remedy="`genrep schema` prints all fields with their types")


def describe_fields(error: ValidationError, root: type[BaseModel], above: Location = ()) -> list[str]:
    """The same for a part of an experiment: "field: expected ...; got ..." for each error below the field ``above``."""
    return [f"{'.'.join((*above, *location))}: expected {expected}; got {got}" for location, expected, got in _texts(error, root)]


def first_expectation(error: ValidationError, root: type[BaseModel], above: Location = ()) -> str:
    """The first error below the field ``above`` as "field: what is expected", as a validator of the whole experiment words its own."""
    location, expected, _ = next(_texts(error, root))
    return f"{'.'.join((*above, *location))}: {expected}"


def _texts(error: ValidationError, root: type[BaseModel]) -> Iterator[tuple[Location, str, str]]:
    """Of each error: the field, what was expected, what was given."""
    for location, details in _errors(error):
        found, expected, given = location, _expected(location, details, root), details["input"]
        own = _OWN_FIELD.fullmatch(details["msg"]) if not location and details["type"] == "value_error" else None
        if own and isinstance(given, dict) and own.group(1).partition(".")[0] in given:
            found, expected = tuple(own.group(1).split(".")), own.group(2)
            for part in found:
                if isinstance(given, dict) and part in given:
                    given = given[part]
                elif isinstance(given, list) and part.isdigit() and int(part) < len(given):
                    given = given[int(part)]
        got = "nothing" if details["type"] == "missing" else repr(given)
        got = got if len(got) <= 80 else got[:77] + "..."
        yield found, expected, got


def _errors(error: ValidationError) -> list[tuple[Location, ErrorDetails]]:
    """Each error with its field. For a field of several types, errors of types that were not meant are left out."""
    found: dict[Location, list[ErrorDetails]] = {}
    for details in error.errors():
        location = tuple(str(part) for part in details["loc"] if not _NOT_A_FIELD.fullmatch(str(part)))
        found.setdefault(location, []).append(details)
    # A list whose items are wrong has too few of them, which says nothing.
    wrong = {location[:-1] for location in found}
    found = {place: several for place, several in found.items() if place not in wrong or several[0]["type"] != "too_short"}
    return [
        (location, details)
        for location, several in found.items()
        for details in ([d for d in several if not d["type"].endswith("_type")] or several[:1] if len(several) > 1 else several)
    ]


def _expected(location: Location, details: ErrorDetails, root: type[BaseModel]) -> str:
    kind, context = details["type"], details.get("ctx", {})
    if any(name in _SHARES for name in location[-2:]) and kind in (*_COMPARISONS, "float_parsing", "float_type"):
        return f"a share{_share_range(location, root)}, not percent (0.02 is 2 %)"
    if kind in ("tuple_type", "list_type") and ".".join(location) in _WHOLE_LISTS:
        return _WHOLE_LISTS[".".join(location)]
    if kind == "extra_forbidden":
        return "no such field" + _near_fields(location, root)
    if kind in _EXPECTED:
        return _EXPECTED[kind]
    if kind in _COMPARISONS:
        return f"a number {_range(location, root) or f'{_BOUNDS[_COMPARISONS[kind]]} {context[_COMPARISONS[kind]]:g}'}"
    if kind in ("literal_error", "enum"):
        return f"one of {context['expected']}"
    if kind in ("too_short", "too_long"):
        return f"a list of {_size(context)}; this one has {context['actual_length']}"
    if kind in ("string_too_short", "string_too_long"):
        return f"text of {_size(context, 'character')}"
    if kind == "string_pattern_mismatch":
        pattern = context["pattern"]
        near = re.sub(r"[^A-Za-z0-9._-]+", "-", str(details["input"])).strip("._-")
        hint = f", such as {near}" if near and pattern in _PATTERNS and re.fullmatch(pattern, near) else ""
        return f"{_PATTERNS.get(pattern, f'a name that matches {pattern}')}{hint}"
    return details["msg"].removeprefix("Value error, ").removeprefix("Input should be ")


def _size(context: dict[str, Any], noun: str = "item") -> str:
    bound, size = ("at least", context["min_length"]) if "min_length" in context else ("at most", context["max_length"])
    return f"{bound} {size} {noun}{'' if size == 1 else 's'}"


def _share_range(location: Location, root: type[BaseModel]) -> str:
    """The bounds of a share, also of one in a list."""
    bounds = _range(location, root)
    return f" {bounds}" if bounds else " of at least 0 and less than 1"


def _range(location: Location, root: type[BaseModel]) -> str:
    """Both bounds of a field, "greater than 0 and less than 1"; empty for a field that is not found."""
    *above, name = location
    section = _section(tuple(above), root)
    field = None if section is None else _field(section, name)
    found = [f"{words} {value:g}" for words, value in _bounds([] if field is None else field.metadata)]
    return " and ".join(found)


def _bounds(metadata: list[Any]) -> Iterator[tuple[str, float]]:
    for attribute, words in _BOUNDS.items():
        for constraint in metadata:
            value = getattr(constraint, attribute, None)
            if value is not None:
                yield words, value


def _section(location: Location, root: type[BaseModel]) -> type[BaseModel] | None:
    """The section of a field that is a table; None if it is another kind of field, or a table of free keys."""
    section: type[BaseModel] = root
    for part in location:
        field = _field(section, part)
        kinds = [] if field is None else [field.annotation, *get_args(field.annotation)]
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not inner:
            return None
        section = inner[0]
    return section


def _field(section: type[BaseModel], name: str) -> FieldInfo | None:
    return next((field for key, field in section.model_fields.items() if name in (key, field.alias)), None)


def _near_fields(location: Location, root: type[BaseModel]) -> str:
    """The nearest fields of the section that has no field of this name."""
    section = _section(location[:-1], root)
    if section is None:
        return ""
    names = [field.alias or name for name, field in section.model_fields.items()]
    near = difflib.get_close_matches(location[-1], names, n=2)
    return f" (did you mean {' or '.join(near)}?)" if near else f" (fields here: {', '.join(names)})"
