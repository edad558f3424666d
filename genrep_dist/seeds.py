"""One rule for every random number: a seed is derived from (seed, purpose, index), never drawn from a global generator."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, purpose: str, *index: int | str) -> int:
    """A 63-bit seed that depends on all its arguments and on nothing else.

    ``purpose`` names what the numbers are for ("init", "order", ...), so that two uses of one experiment seed are independent.
    """
    text = "/".join(["genrep", str(seed), purpose, *(str(part) for part in index)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
