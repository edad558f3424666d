"""One seed of an experiment run up to its removal sets, in a temporary store, to measure what the others will cost."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from genrep_dist.store import Store
from genrep_dist.units import StageName
from genrep_dist.workflow.execute import execute, worker_context
from genrep_dist.workflow.prepare import PreparedExperiment, publish_inputs
from genrep_dist.workflow.record import write_record
from genrep_dist.workflow.requests import retrain_requests
from genrep_dist.workflow.retrain import RetrainStage, original_row
from genrep_dist.workflow.stages import artifacts_of


@dataclass(frozen=True)
class TrialRun:
    """Of the first seed: ``seconds`` of each stage on one worker, with the overhead of units, and the share of requested retrainings
    that are ``distinct``. Methods that remove the same samples share their retrained models.
    """

    seconds: Mapping[StageName, float]
    distinct: float


def trial_run(prepared: PreparedExperiment) -> TrialRun:
    """Run all stages of the first seed except the retrainings. Raises what a run would raise. The store is deleted."""
    experiment = prepared.plan.experiment
    with tempfile.TemporaryDirectory(prefix="genrep-trial-") as folder:
        store = Store(folder)
        moved = replace(prepared, store=store, job=replace(prepared.job, store_uri=store.uri))
        one = moved.with_experiment(experiment.with_fixed_seeds(name=f"{experiment.name}.trial", seeds=[experiment.seeds[0]]))
        write_record(one)
        publish_inputs(one)
        worker_context(one.job)
        seconds: dict[StageName, float] = {}
        for stage in one.plan.stages:
            if stage.name == RetrainStage.name:
                continue
            began = time.perf_counter()
            for artifact in artifacts_of(one.plan, stage.name):
                artifact.declare(store)
                for unit in artifact.units:
                    execute(one.job, unit)
                artifact.commit(store)
            seconds[stage.name] = time.perf_counter() - began
        keys = one.plan.keys
        store.ledger(keys.training).write([original_row(experiment.seeds[0], keys, store)])
        requests = retrain_requests(one.plan, store, one.train.ids.numpy(), one.test.ids.numpy())
        most = one.plan.retrainings_at_most
        distinct = sum(bool(retraining.removed) for retraining in requests.retrainings.values())
        return TrialRun(seconds, distinct / most if most else 1.0)
