from __future__ import annotations

from collections.abc import Iterator

import pytest

from genrep_dist.training.threads import one_thread


@pytest.fixture(autouse=True)
def as_units_run() -> Iterator[None]:
    """On one thread, whatever the machine has."""
    with one_thread():
        yield
