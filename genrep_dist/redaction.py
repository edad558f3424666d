"""Text without the secrets of addresses: what is shown, logged or published of a configuration passes through here."""

from __future__ import annotations

import re

HIDDEN = "***"

# To the last @: a password may contain / and @. A port before a path with @ is none.
_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)(?:[^\s<>/@:]*:(?!\d+/)[^\s<>]*@|[^\s<>/]*@)")
_SENSITIVE = "password|passwd|pwd|token|secret|api_?key|access_?key|credential|signature|sig|auth"
_QUERY = re.compile(rf"([?&;][A-Za-z0-9_.-]*(?:{_SENSITIVE})[A-Za-z0-9_.-]*=)[^&;\s<>\"']+", re.IGNORECASE)


def redact(text: str) -> str:
    """``text`` with ``***`` in place of user and password of every address in it, and of values such as ``?password=...``."""
    if "://" not in text:
        return text
    return _QUERY.sub(rf"\1{HIDDEN}", _USER.sub(rf"\1{HIDDEN}@", text))
