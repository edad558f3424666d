"""The token that protects a Ray cluster on this machine."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path


def create_auth_token() -> None:
    """Create Ray's token file, readable by this user alone, unless a token exists or token authentication is off.

    Ray would create the file itself, but with the permissions of the umask.
    """
    if os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    path = Path.home() / ".ray" / "auth_token"
    # Ray itself reports a folder that is not writable. An existing file may be the token of a running cluster.
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
