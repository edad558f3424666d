"""There are enough seeds for the intervals, which resample them."""

from __future__ import annotations

from collections.abc import Iterator

from genrep_dist.diagnostics.context import CheckContext
from genrep_dist.diagnostics.finding import Finding, compare

FEWEST_SEEDS = 10


def check(context: CheckContext) -> Iterator[Finding]:
    count = len(context.seeds)
    text = "one seed: there is no interval, and nothing is known about other networks" if count == 1 else "number of seeds"
    yield compare(
        "power",
        count,
        FEWEST_SEEDS,
        f"{text}; bound: with at least {FEWEST_SEEDS} seeds the 95 % interval was measured to contain the truth in 94 to 95 %, with 5 in "
        "91 %; up to 4 seeds it is their range",
        f"run at least {FEWEST_SEEDS} seeds before reading intervals: finished seeds are not computed again",
        otherwise="amber",
        at_least=True,
    )
