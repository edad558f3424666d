"""What methods cost that are no importance times a kernel, for the plan."""

from __future__ import annotations

from collections.abc import Iterator

from genrep_dist.plan import FLOAT_BYTES, Plan
from genrep_dist.workflow.base import Rates
from genrep_dist.workflow.blocks import block_bytes
from genrep_dist.workflow.gradients import features_seconds

NUMBER_BYTES = 2 * FLOAT_BYTES


def scorer_bytes(plan: Plan) -> int:
    """Memory of a scorer at work beside its scores: blocks of its base kernel, and what it makes of the test points."""
    values = 4 * NUMBER_BYTES * plan.shape.num_train * max(plan.experiment.num_test_points, plan.shape.num_outputs)
    return max((block_bytes(plan, base) + values for base in _bases(plan)), default=0)


def scorer_seconds(plan: Plan, rates: Rates) -> float:
    """Seconds of one worker for the features of all scorers' base kernels."""
    return sum(features_seconds(plan, base, rates) for base in _bases(plan))


def _bases(plan: Plan) -> Iterator[str]:
    """The base kernel of each scorer that has one."""
    scorers = (method.scorer_class for method in plan.experiment.parsed_methods)
    return (scorer.base for scorer in scorers if scorer is not None and scorer.base is not None)
