"""The optimizer against methods whose derivation assumes plain SGD."""

from __future__ import annotations

from collections.abc import Iterator

from genrep_dist.diagnostics.context import CheckContext
from genrep_dist.diagnostics.finding import Finding, compare, green

BEFORE_RETRAINING = True


def check(context: CheckContext) -> Iterator[Finding]:
    """The number counts the reasons why the optimizer breaks the tracking identities."""
    reasons = context.plan.shape.identity_gap_reasons
    assume_sgd = [method.name for method in context.plan.experiment.parsed_methods if method.follows_training]
    if not reasons:
        yield green("optimizer", "plain SGD, which the tracking and TracIn identities assume", number=0.0, bound=0.0)
    elif not assume_sgd:
        yield green("optimizer", f"{'; '.join(reasons)}. No method of this run assumes plain SGD", number=len(reasons))
    else:
        text = (
            f"{'; '.join(reasons)}. f_T - f_0 = sum_i alpha_i K(x_i, .) does not hold, not even for linear models, for "
            f"{', '.join(assume_sgd)}; bound: plain SGD has no such reason"
        )
        remedy = "train with plain SGD if the identity matters; deletion scores are valid in any case"
        yield compare("optimizer", len(reasons), 0.0, text, remedy, otherwise="amber")
