"""A local folder and a bucket pass the conformance tests of stores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from genrep_dist.testing import StoreTests
from tests.store.s3_server import BUCKET, S3Server


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with S3Server.running() as running:
        yield running


class TestLocalFolder(StoreTests):
    @pytest.fixture
    def uri(self, tmp_path: Path) -> str:
        return str(tmp_path / "store")


class TestBucket(StoreTests):
    @pytest.fixture
    def uri(self, server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        return f"s3://{BUCKET}/{tmp_path.name}"
