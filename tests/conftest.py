"""Property tests try the same examples everywhere: a red test stays red until it is mended."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def own_memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is remembered of runs is not that of the user who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENREP_STATE", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="module")
def no_mlflow() -> Iterator[None]:
    """Runs of this module are not published to MLflow, which takes longer than they do: a database for each store."""
    from genrep_dist.runner import publish
    from tests.faults.driver import no_tracking

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "_track", no_tracking)
        yield


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose tests start clusters come first: where files are shared out, none of these long ones is begun last."""
    long = {item.path for item in items if item.get_closest_marker("ray")}
    items.sort(key=lambda item: item.path not in long)
