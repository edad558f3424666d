from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tests.faults.trial import Trial


class Undisturbed:
    """The experiment as it comes out when nothing happens to it."""

    def __init__(self, trial: Trial) -> None:
        trial.run_here()
        self.trial = trial
        self.published: Mapping[str, Any] = trial.published()
        self.trainings = trial.trainings()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(Trial.make(tmp_path_factory.mktemp("undisturbed")))
