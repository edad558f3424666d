"""Versions of the store's formats: what is older is read, what is newer is refused, and neither is moved away."""

from __future__ import annotations

from typing import Any

from genrep_dist.errors import StoreError


def refuse_newer(what: str, found: Any, newest: int, where: str, writer: Any = None) -> None:
    """Raise StoreError if ``found``, the format version of ``what``, is above ``newest``. ``writer``: the package version that wrote it."""
    if isinstance(found, int) and found > newest:
        by = f", by genrep-dist {writer}" if writer else ""
        raise StoreError(
            f"{what} was written by a newer version of genrep-dist",
            where=where,
            expected=f"format {newest} or older",
            got=f"format {found}{by}",
            remedy=f"install {f'genrep-dist {writer}' if writer else 'the version that wrote it'} or a newer one, or use another --store. "
            "Nothing in the store was changed",
        )
