"""How far a run is, read from the store alone."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from genrep_dist.errors import StoreError
from genrep_dist.plan import Plan
from genrep_dist.store import Store
from genrep_dist.units import StageName
from genrep_dist.workflow.artifacts import assemblies, missing_units
from genrep_dist.workflow.requests import count_retrainings, read_requests


@dataclass(frozen=True)
class StageStatus:
    """``done`` of ``total`` units; ``exact`` is False while the total is only an upper bound."""

    name: StageName
    total: int
    done: int
    exact: bool = True

    @property
    def missing_share(self) -> float:
        return (self.total - self.done) / self.total if self.total else 0.0


def stage_status(plan: Plan, store: Store, *, foreseen: bool = False) -> list[StageStatus]:
    """Every stage of the plan, in order. Nothing is computed and no problem is loaded.

    ``foreseen``: before a run has asked, look up which of its retrainings the store can tell already, and which of those are there.
    That reads all scores; without it only the largest possible number is told.
    """
    found = []
    for stage in plan.stages:
        if stage.name == "retrain":
            found.append(_retrain_status(plan, store, foreseen=foreseen))
            continue
        total = done = 0
        for assembly in assemblies(plan, stage.name):
            total += len(assembly.units)
            done += len(assembly.units) - len(missing_units(store, assembly))
        found.append(StageStatus(stage.name, total, done))
    return found


def _retrain_status(plan: Plan, store: Store, *, foreseen: bool) -> StageStatus:
    known = store.ledger(plan.keys.training).keys()
    wanted = _asked_keys(plan, store)
    if wanted is not None:
        return StageStatus("retrain", len(wanted), len(wanted & known))
    if not foreseen:
        return StageStatus("retrain", plan.retrainings_at_most, 0, exact=False)
    found = count_retrainings(plan, store)
    return StageStatus("retrain", len(found.keys) + found.more, len(found.keys & known), exact=not found.more)


def _asked_keys(plan: Plan, store: Store) -> set[str] | None:
    """Keys of all retrainings that the run asks for; None while it has not asked."""
    if any(missing_units(store, assembly) for assembly in assemblies(plan, "attributions")):
        return None
    try:
        return set(read_requests(plan, store).filter(pl.col("num_removed") > 0).select("key").unique().collect()["key"])
    except StoreError:
        return None
