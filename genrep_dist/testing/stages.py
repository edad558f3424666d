"""Conformance tests of stages.

.. code-block:: python

    from genrep_dist.testing import StageTests

    class TestMyStage(StageTests):
        stage = MyStage
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from genrep_dist.testing.runs import FinishedRun, finished_run
from genrep_dist.units import Unit
from genrep_dist.workflow.base import ArtifactSpec, Rates, Stage
from genrep_dist.workflow.execute import execute
from genrep_dist.workflow.stages import STAGES, all_artifacts

RATES = Rates(train_seconds=1.0, retrain_seconds=1.0, gradient_rows_per_second=1e3, multiply_adds_per_second=1e9)


class StageTests:
    """A stage in a small run. A subclass defines ``stage``, and the ``fields`` of an experiment that has work for it."""

    stage: ClassVar[type[Stage[Any]]]
    fields: ClassVar[dict[str, Any]] = {}

    @pytest.fixture
    def finished(self, tmp_path: Path) -> Iterator[FinishedRun]:
        is_new = self.stage.name not in STAGES
        STAGES.register_loaded(self.stage.name, self.stage)
        yield finished_run(tmp_path, self.fields)
        if is_new:
            STAGES.unregister(self.stage.name)

    @pytest.fixture
    def artifacts(self, finished: FinishedRun) -> list[ArtifactSpec]:
        return [artifact for stage, artifact in all_artifacts(finished.plan) if stage.name == self.stage.name]

    def test_its_plan_counts_its_units(self, finished: FinishedRun, artifacts: list[ArtifactSpec]) -> None:
        (line,) = (line for line in finished.plan.stages if line.name == self.stage.name)
        assert line.what
        assert min(line.units, line.bytes_written, line.peak_bytes) > 0
        if artifacts:
            assert line.units == sum(len(artifact.units) for artifact in artifacts)
        seconds = self.stage().seconds(finished.plan, RATES)
        assert math.isfinite(seconds)
        assert seconds >= 0

    def test_its_artifacts_are_its_own_and_committed(self, finished: FinishedRun, artifacts: list[ArtifactSpec]) -> None:
        addresses = [(artifact.kind, artifact.key) for _, artifact in all_artifacts(finished.plan)]
        assert all(addresses.count((artifact.kind, artifact.key)) == 1 for artifact in artifacts)
        for artifact in artifacts:
            assert artifact.units
            assert len(artifact.parts) in (0, len(artifact.units)), "either all units write parts, or none"
            assert len(set(artifact.parts)) == len(artifact.parts)
            assert all((unit.stage, unit.seed) == (self.stage.name, artifact.seed) for unit in artifact.units)
            assert finished.store.artifact(artifact.kind, artifact.key).is_committed()
        labels = [unit.label for unit in _units(artifacts)]
        assert len(set(labels)) == len(labels)

    def test_a_unit_that_runs_again_writes_the_same_bytes(self, finished: FinishedRun, artifacts: list[ArtifactSpec]) -> None:
        for artifact in artifacts[:1] + artifacts[-1:]:
            before = _arrays(finished, artifact)
            assert before
            statistics = execute(finished.prepared.job, artifact.units[0])
            assert all(isinstance(value, float) for value in statistics.values())
            assert _arrays(finished, artifact) == before

    def test_samples_run_along_the_declared_axes(self, finished: FinishedRun, artifacts: list[ArtifactSpec]) -> None:
        shape, points = finished.plan.shape, finished.plan.experiment.num_test_points
        sizes = {"train": (shape.num_train,), "test": (shape.num_test, points)}
        for artifact in artifacts:
            for name, (data, axis) in self.stage().sample_axes(artifact.kind).items():
                assert finished.store.artifact(artifact.kind, artifact.key).reader(name).shape[axis] in sizes[data]


def _units(artifacts: list[ArtifactSpec]) -> Iterator[Unit]:
    return (unit for artifact in artifacts for unit in artifact.units)


def _arrays(finished: FinishedRun, artifact: ArtifactSpec) -> dict[str, bytes]:
    """The files of an artifact but its manifest, which has times."""
    stored = finished.store.artifact(artifact.kind, artifact.key)
    paths = [path for path in finished.store.objects.list(stored.path) if path != stored.paths.manifest]
    return {path: finished.store.objects.get(path) for path in paths if not path.startswith(stored.paths.records)}
