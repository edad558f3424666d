"""Runs without MLflow, with empty figures and without waiting for the disk: these take longer than the small experiments of the tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import IO, Any

import pytest
from matplotlib.figure import Figure

from genrep_dist.runner import track

EMPTY_FIGURES = {
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>',
    "png": bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
        "0000000c49444154789c63f8ffff3f0005fe02fe0def46b80000000049454e44ae426082"
    ),
}


def no_tracking(*_arguments: Any, **_options: Any) -> Any:
    """Takes the place of the publication to MLflow."""
    return SimpleNamespace(tracking_uri="", experiment_id="", run_id="", hint="none")


def _save_empty(_figure: Figure, file: IO[bytes], **options: Any) -> None:
    file.write(EMPTY_FIGURES[options["format"]])


def publish_tables_only(patch: pytest.MonkeyPatch) -> None:
    """Publish tables and the text of the report. No file is synchronised: no test ends the machine, only processes."""
    patch.setattr(track, "track", no_tracking)
    patch.setattr(Figure, "savefig", _save_empty)
    patch.setattr(os, "fsync", lambda _file: None)


@contextmanager
def full_publication(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without what :func:`publish_tables_only` did with ``patch``."""
    patch.undo()
    yield
    publish_tables_only(patch)
