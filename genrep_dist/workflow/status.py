"""How far a run is, read from the store alone."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from genrep_dist.errors import StoreError
from genrep_dist.plan import Plan
from genrep_dist.store import Store
from genrep_dist.units import StageName
from genrep_dist.workflow.attributions import AttributionsStage
from genrep_dist.workflow.requests import count_retrainings, read_requests
from genrep_dist.workflow.retrain import RetrainStage
from genrep_dist.workflow.stages import artifacts_of


@dataclass(frozen=True)
class StageStatus:
    """``done`` of ``total`` units; ``exact`` is False while the total is only an upper bound.

    ``in_ledger``: models of the same training in the ledger, where it is not known yet which of them the run requests.
    """

    name: StageName
    total: int
    done: int
    exact: bool = True
    in_ledger: int = 0

    @property
    def missing_share(self) -> float:
        return (self.total - self.done) / self.total if self.total else 0.0


def stage_status(plan: Plan, store: Store, *, look_up: bool = False) -> list[StageStatus]:
    """Every stage of the plan, in order. Nothing is computed and no problem is loaded.

    ``look_up``: before a run has requested retrainings, find those that follow from the scores in the store, and which of them are
    done. That reads all scores; without it, only the largest possible number is given.
    """
    found: list[StageStatus] = []
    for stage in plan.stages:
        if stage.name == RetrainStage.name:
            is_scored = all(status.done == status.total for status in found if status.name == AttributionsStage.name)
            found.append(_retrain_status(plan, store, is_scored=is_scored, look_up=look_up))
            continue
        total = done = 0
        for artifact in artifacts_of(plan, stage.name):
            total += len(artifact.units)
            done += len(artifact.units) - len(artifact.missing_units(store))
        found.append(StageStatus(stage.name, total, done))
    return found


def _retrain_status(plan: Plan, store: Store, *, is_scored: bool, look_up: bool) -> StageStatus:
    originals = {plan.keys.retraining(seed, (), "same") for seed in plan.experiment.seeds}
    known = store.ledger(plan.keys.training).keys() - originals
    wanted = _requested_keys(plan, store) if is_scored else None
    if wanted is not None:
        return StageStatus(RetrainStage.name, len(wanted), len(wanted & known))
    if not look_up:
        return StageStatus(RetrainStage.name, plan.retrainings_at_most, 0, exact=False, in_ledger=len(known))
    found = count_retrainings(plan, store)
    done = len(found.keys & known)
    left = len(known) - done if found.more else 0
    return StageStatus(RetrainStage.name, len(found.keys) + found.more, done, exact=not found.more, in_ledger=left)


def _requested_keys(plan: Plan, store: Store) -> set[str] | None:
    """Keys of all retrainings that the run requests; None before it has written its requests."""
    try:
        return set(
            read_requests(plan, store, ("key", "num_removed")).filter(pl.col("num_removed") > 0).select("key").unique().collect()["key"]
        )
    except StoreError:
        return None
