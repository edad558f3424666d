"""One removed set, drawn by a derived seed, is trained again now and compared with its row of the ledger."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl
import torch

from genrep_dist.diagnostics.context import CheckContext
from genrep_dist.diagnostics.finding import Finding, compare, green
from genrep_dist.diagnostics.ledger_rows import largest_difference, ledger_rows, requested
from genrep_dist.errors import NotCommittedError
from genrep_dist.training.threads import one_thread
from genrep_dist.units import Retraining
from genrep_dist.workflow.retrain import retrain

ROUNDINGS_PER_STEP = 4
"""Roundings by which each step of two equal trainings may differ: parameters, gradient, momentum, output."""


def check(context: CheckContext) -> Iterator[Finding]:
    repeat = context.run.choices.get("repeat")
    if repeat is not None and repeat["difference"] > 0:
        text = f"not checked: training is not deterministic (differences up to {repeat['difference']:.3g})"
        yield Finding("retraining", "amber", None, None, text, "seed what train() draws from generators of its own, with run.seed")
        return
    keys = requested(context).filter(pl.col("num_removed") > 0).select("key").unique().sort("key")
    if not keys.height:
        yield green("retraining", "no samples were removed, so no model can be retrained")
        return
    present = ledger_rows(context, keys, "key").unique().sort("key")
    if not present.height:
        raise NotCommittedError("no retrained model is in the ledger", where=context.store.ledger(context.plan.keys.training).folder)
    drawn = present[int(context.generator("retraining").integers(present.height))]
    row = ledger_rows(context, drawn, "key", "seed", "policy", "replicate", "outputs").row(0, named=True)
    change = context.store.ledger(context.plan.keys.training).changes([row["key"]])[row["key"]]
    request = Retraining(row["key"], row["seed"], row["policy"], change.removed, row["replicate"], change.weights, change.labels)
    kind = "with other weights or labels of" if change.weights or change.labels else "without"
    with one_thread():  # as all units of work run
        retrained = retrain(request, context.worker).outputs.ravel()
    stored = np.asarray(row["outputs"], dtype=np.float64)
    scale = float(np.abs(stored).max()) or 1.0
    manifest = context.train_artifact(row["seed"]).manifest()
    then = f"torch {manifest['torch']} on {manifest['device']}"
    now = f"torch {torch.__version__} on {context.worker.device.type}"
    yield compare(
        "retraining",
        largest_difference(retrained, stored) / scale,
        ROUNDINGS_PER_STEP * float(np.finfo(np.float32).eps) * context.num_steps,
        f"largest difference between the ledger's outputs {kind} {len(change)} samples (key {row['key'][:12]}) and those of "
        "a training done now, relative to the largest output; "
        f"{f'both with {now}' if then == now else f'then {then}, now {now}, which may round differently'}; "
        f"bound: {ROUNDINGS_PER_STEP} float32 roundings for each of {context.num_steps:,} steps",
        "a retraining must depend on recipe, seed and removed set only. For another machine, device or version of torch: run the doctor "
        "where the run was made. Else the ledger was changed, or the model draws random numbers of its own",
        seed=row["seed"],
    )
