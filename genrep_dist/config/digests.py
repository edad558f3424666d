"""Digests of typed records. Only fields that differ from their defaults enter, so that a new field with a neutral default changes none.

A changed default is therefore a change of meaning under an unchanged digest: it needs a new ``NUMBERS_VERSION``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from pydantic import BaseModel

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def json_digest(value: Any) -> str:
    """sha256 of the canonical JSON of plain data."""
    return hashlib.sha256(_CANONICAL.encode(value).encode()).hexdigest()


def is_plain(value: Any) -> bool:
    """Whether a value is plain data, which has a digest."""
    try:
        json_digest(value)
    except (TypeError, ValueError):  # an object; NaN, or a cycle
        return False
    return True


def non_default_fields(record: Any, leave_out: Collection[str] = ()) -> Any:
    """The fields of a pydantic model or dataclass instance that differ from their defaults, as plain data; other values as they are."""
    if isinstance(record, BaseModel):
        # Required fields are always in. A section that is set but equal to its own defaults is in, as {}.
        return {
            name: non_default_fields(value)
            for name, field in type(record).model_fields.items()
            for value in (getattr(record, name),)
            if name not in leave_out and (field.is_required() or value != field.get_default(call_default_factory=True))
        }
    if is_dataclass(record) and not isinstance(record, type):
        return {
            field.name: non_default_fields(value)
            for field in fields(record)
            for value in (getattr(record, field.name),)
            if field.name not in leave_out and value != _default(field)
        }
    if isinstance(record, dict):
        return {str(key): non_default_fields(value) for key, value in record.items()}
    if isinstance(record, list | tuple):
        return [non_default_fields(value) for value in record]
    return record


def _default(field: Any) -> Any:
    if field.default is not MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not MISSING else MISSING
