from __future__ import annotations

import pytest

from tests.cli.calls import Genrep


@pytest.fixture
def genrep(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Genrep:
    return Genrep(monkeypatch, capsys)
