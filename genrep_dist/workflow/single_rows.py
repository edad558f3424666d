"""Batches of one row, on which batch normalisation cannot be trained: found from the sizes and the planned removals before training."""

from __future__ import annotations

import math

from genrep_dist.config import Experiment
from genrep_dist.config.metrics import measured_metrics, retrain_policy
from genrep_dist.config.sections import RemovalSection
from genrep_dist.core.policies import is_rebatched
from genrep_dist.errors import PlanError
from genrep_dist.evaluation.metrics.base import Metric
from genrep_dist.plan import Plan
from genrep_dist.problems.protocol import Recipe

MAX_EXPECTED = 0.01
"""A run is refused if its retrainings are expected to meet more batches of one row than this."""
TRIED_SIZES = 64
"""Batch sizes on each side of the declared one that are tried for the message."""


def check_batches(plan: Plan, recipe: Recipe, fault: str) -> None:
    """Raise PlanError if models that fail on a batch of one row, because of ``fault``, would be trained on one.

    Nothing is checked if ``fault`` is empty. For the original models it is certain. Which rows a retraining lacks is not known before
    there are scores: for random rows the number of such batches in the run is expected, and may be MAX_EXPECTED at most.
    """
    if not fault or _is_safe(plan, recipe, recipe.batch_size):
        return
    num_rows, size = plan.shape.num_train, recipe.batch_size
    sizes = batch_sizes(num_rows, size, drop_last=recipe.drop_last)
    got = f"{num_rows} rows in batches of {' and '.join(map(str, sizes))}"
    if 1 not in sizes:
        expected = _expected_in_run(plan, recipe, size)
        got += f"; in all retrainings, which lack up to {plan.most_removed} of the rows, at most about {expected:.2g} batches of one row"
    steps = (step * sign for step in range(1, TRIED_SIZES + 1) for sign in (1, -1))
    fitting = next((size + step for step in steps if 1 < size + step <= num_rows and _is_safe(plan, recipe, size + step)), None)
    raise PlanError(
        "the models cannot be trained on a batch of one row",
        where=f"recipe.batch_size: {size}",
        expected="no batch of one row, neither at the end of an epoch nor after a removal",
        got=f"{got}; there {fault}",
        remedy=f"set another recipe.batch_size{'' if fitting is None else f', for example {fitting}'}, or use GroupNorm or LayerNorm, "
        "which normalise each row by itself",
    )


def batch_sizes(num_rows: int, batch_size: int, *, drop_last: bool = False) -> dict[int, int]:
    """The sizes of the batches of an epoch over ``num_rows`` rows, and how many there are of each."""
    full, last = divmod(num_rows, batch_size)
    return {size: count for size, count in ((batch_size, full), (0 if drop_last else last, 1)) if size and count}


def expected_single_rows(num_rows: int, batch_size: int, removed: int, *, drop_last: bool = False) -> float:
    """The most batches of one row to expect in an epoch without ``removed`` or fewer random rows of ``num_rows``."""
    total = 0.0
    for size, count in batch_sizes(num_rows, batch_size, drop_last=drop_last).items():
        # Exactly one of a batch's rows stays with probability kept C(N - kept, size - 1) / C(N, size), largest at (N + 1) // size.
        kept = max(num_rows - removed, (num_rows + 1) // size, 1)
        total += count * (kept * math.comb(num_rows - kept, size - 1) / math.comb(num_rows, size))
    return total


def _expected_in_run(plan: Plan, recipe: Recipe, batch_size: int) -> float:
    experiment, num_rows = plan.experiment, plan.shape.num_train
    total = 0.0
    for metric in measured_metrics(experiment):
        count = metric.count_requests(experiment, num_rows)
        models = len(experiment.methods) * count.per_method + count.shared
        if not models:
            continue
        removals = _removals(metric, experiment, num_rows)
        if is_rebatched(retrain_policy(metric, experiment)):
            # The number of rows alone decides, and not which rows remain.
            each = [float(1 in batch_sizes(num_rows - removed, batch_size, drop_last=recipe.drop_last)) for removed in removals]
        else:
            each = [expected_single_rows(num_rows, batch_size, removed, drop_last=recipe.drop_last) for removed in removals]
        total += models * sum(each) / len(removals)
    return len(experiment.seeds) * recipe.epochs * total


def _removals(metric: Metric, experiment: Experiment, num_rows: int) -> list[int]:
    """The numbers of rows that a metric's retrainings lack, equally many retrainings each; the largest, where its settings list none."""
    settings = metric.settings(experiment)
    listed = [count for _, count in settings.removals(num_rows) if count] if isinstance(settings, RemovalSection) else []
    return listed or [metric.largest_removal(experiment, num_rows)]


def _is_safe(plan: Plan, recipe: Recipe, batch_size: int) -> bool:
    sizes = batch_sizes(plan.shape.num_train, batch_size, drop_last=recipe.drop_last)
    return 1 not in sizes and _expected_in_run(plan, recipe, batch_size) <= MAX_EXPECTED
