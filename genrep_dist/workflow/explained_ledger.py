"""The ledger with the explained numbers of every requested model behind its outputs, for targets that are not an output."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
import torch

from genrep_dist.core.function_targets import TargetInputs
from genrep_dist.plan import Plan
from genrep_dist.workflow.context import WorkerContext
from genrep_dist.workflow.targets import explained_numbers, group_means, is_output


def explained_ledger(plan: Plan, ledger: pl.LazyFrame, requests: pl.DataFrame, open_context: Callable[[], WorkerContext]) -> pl.LazyFrame:
    """``ledger`` as metrics read it; itself where an output of each test point is explained.

    Else the rows of requested models, whose ``outputs`` are followed by the numbers that their seed explains, in the order of its points.
    Memory: the outputs at the explained points of all requested models.
    """
    if is_output(plan.experiment):
        return ledger
    keys = pl.concat([requests["key"], requests["original_key"]]).unique()
    wanted = ledger.join(keys.to_frame().lazy(), on="key", how="semi")
    numbers = pl.concat([_numbers(plan, wanted, seed, open_context()) for seed in plan.experiment.seeds])
    with_numbers = wanted.join(numbers.lazy(), on="key", how="inner")
    return with_numbers.with_columns(outputs=pl.concat_list(pl.col("outputs").cast(pl.List(pl.Float64)), "numbers")).drop("numbers")


def _numbers(plan: Plan, ledger: pl.LazyFrame, seed: int, context: WorkerContext) -> pl.DataFrame:
    """``key`` and ``numbers`` (list of the seed's explained numbers) of the seed's rows of the ledger. NaN where outputs are missing."""
    num_outputs, rows = plan.shape.num_outputs, plan.keys.test_positions(seed)
    places = (np.asarray(rows)[:, None] * num_outputs + np.arange(num_outputs)).ravel().tolist()
    gathered = pl.col("outputs").list.gather(places, null_on_oob=True).cast(pl.List(pl.Float64))
    found = ledger.filter(seed=seed).select("key", outputs=gathered).collect(engine="streaming").unique("key", keep="any")
    outputs = torch.tensor(found["outputs"].explode().to_numpy(), dtype=torch.float64).view(-1, num_outputs)
    num_models, points = found.height, context.test_points(seed)
    chosen, targets = (one.cpu().repeat(num_models, *(1 for _ in one.shape[1:])) for one in (points.outputs, context.test.targets[rows]))
    finite = torch.isfinite(outputs).all(dim=1)
    numbers = torch.full((num_models * len(rows),), float("nan"), dtype=torch.float64)
    some = TargetInputs(chosen[finite], targets[finite], context.loss)
    numbers[finite] = explained_numbers(context.target, outputs[finite], some, f"retrained models of seed {seed}")
    means = group_means(numbers.view(num_models, len(rows)), plan.keys.test_groups(seed))
    return pl.DataFrame({"key": found["key"], "numbers": pl.Series(means.tolist(), dtype=pl.List(pl.Float64))})
