"""One seed of an experiment done for real, up to its removal sets, in a store that is thrown away: what the others will cost."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from genrep_dist.store import Store
from genrep_dist.units import StageName
from genrep_dist.workflow.artifacts import assemblies, commit, declare
from genrep_dist.workflow.execute import execute, workbench
from genrep_dist.workflow.prepare import Prepared, publish_inputs, write_record
from genrep_dist.workflow.requests import ask
from genrep_dist.workflow.retrain import original_row


@dataclass(frozen=True)
class Rehearsal:
    """Of the first seed: seconds of each stage on one worker, units and their overhead included, and of the ``distinct`` removal sets the
    share of those that were asked for. Methods that name the same samples share their models, and how often they do only the data know.
    """

    seconds: Mapping[StageName, float]
    distinct: float


def rehearse(prepared: Prepared) -> Rehearsal:
    """Do all stages of the first seed but the retrainings. Raises what a run would raise. Nothing stays."""
    experiment = prepared.plan.experiment
    with tempfile.TemporaryDirectory(prefix="genrep-rehearsal-") as folder:
        store = Store(folder)
        moved = replace(prepared, store=store, job=replace(prepared.job, store_uri=store.uri))
        one = moved.of(experiment.with_fixed_seeds(name=f"{experiment.name}.rehearsal", seeds=[experiment.seeds[0]]))
        write_record(one)
        publish_inputs(one)
        workbench(one.job)
        seconds: dict[StageName, float] = {}
        for stage in one.plan.stages:
            if stage.name == "retrain":
                continue
            began = time.perf_counter()
            for assembly in assemblies(one.plan, stage.name):
                declare(store, assembly)
                for unit in assembly.units:
                    execute(one.job, unit)
                commit(store, assembly)
            seconds[stage.name] = time.perf_counter() - began
        keys = one.plan.keys
        store.ledger(keys.training).write([original_row(experiment.seeds[0], keys, store)])
        asked = ask(one.plan, store, one.train.ids.numpy(), one.test.ids.numpy())
        most = one.plan.retrainings_at_most
        distinct = sum(bool(retraining.removed) for retraining in asked.unique.values())
        return Rehearsal(seconds, distinct / most if most else 1.0)
