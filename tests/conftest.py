"""Property tests try the same examples everywhere: a red test stays red until it is mended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
from hypothesis import settings

from tests.publication import full_publication, publish_tables_only

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def own_memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is remembered of runs is not that of the user who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENREP_STATE", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session", autouse=True)
def tables_only() -> Iterator[pytest.MonkeyPatch]:
    """Runs in this process publish neither to MLflow nor figures, except in files that are marked with ``publishes``."""
    with pytest.MonkeyPatch.context() as patch:
        publish_tables_only(patch)
        yield patch


@pytest.fixture(scope="module", autouse=True)
def publication(request: pytest.FixtureRequest, tables_only: pytest.MonkeyPatch) -> Iterator[None]:
    """Publish in full in files that are marked with ``publishes``."""
    with nullcontext() if request.node.get_closest_marker("publishes") is None else full_publication(tables_only):
        yield


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose tests start clusters come first: where files are shared out, none of these long ones is begun last."""
    long = {item.path for item in items if item.get_closest_marker("ray")}
    items.sort(key=lambda item: item.path not in long)
