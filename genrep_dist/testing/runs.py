"""A small experiment that is run up to its tables, for tests of metrics and stages. Nothing is published."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from genrep_dist.config import Experiment
from genrep_dist.evaluation.tables import EvaluationTables
from genrep_dist.plan import Plan
from genrep_dist.runner.progress import NoProgress, ProgressCounter
from genrep_dist.runner.stage_runner import StageRunner, Workers
from genrep_dist.store import Store
from genrep_dist.workflow.evaluate import evaluate
from genrep_dist.workflow.execute import worker_context
from genrep_dist.workflow.prepare import PreparedExperiment, prepare, publish_inputs
from genrep_dist.workflow.record import write_record

METHODS = ("ntk-final/tracking", "last-layer-final/surrogate", "influence-function", "random")
_finished: dict[str, FinishedRun] = {}


@dataclass(frozen=True)
class FinishedRun:
    """All stages are run; ``requests`` is the table of retrain requests."""

    prepared: PreparedExperiment
    requests: pl.DataFrame

    @property
    def plan(self) -> Plan:
        return self.prepared.plan

    @property
    def store(self) -> Store:
        return self.prepared.store

    @cached_property
    def tables(self) -> EvaluationTables:
        return self.evaluate(self.requests)

    def evaluate(self, requests: pl.DataFrame) -> EvaluationTables:
        """The tables of the experiment from these requests."""
        return evaluate(self.plan, self.store, requests, lambda: worker_context(self.prepared.job), self.prepared.flipped)


def finished_run(folder: Path, fields: Mapping[str, Any]) -> FinishedRun:
    """A run of two seeds in ``folder`` with these ``fields``; one that was made before in this process is used again."""
    key = json.dumps(fields, sort_keys=True)
    if key not in _finished:
        experiment = Experiment.model_validate(
            {
                "name": "conformance",
                "problem": {"name": "genrep_dist.testing.problems:FaultyProblem", "options": {"folder": str(folder)}},
                "seeds": 2,
                "test_points": 2,
                "methods": list(METHODS),
                "deletion": {"fractions": [0.0, 0.25]},
                **fields,
            }
        )
        prepared = prepare(experiment, Store(str(folder / "store")))
        write_record(prepared)
        publish_inputs(prepared)
        runner = StageRunner(prepared, ProgressCounter(NoProgress()), Workers(experiment, serial=True))
        _finished[key] = FinishedRun(prepared, runner.run())
    return _finished[key]
