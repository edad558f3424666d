"""The doctor: whether a finished run can be trusted, as green, amber and red findings with number, bound and remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from genrep_dist.diagnostics.finding import Colour, Finding, worst

if TYPE_CHECKING:
    from genrep_dist.results import Run

__all__ = ["Colour", "Finding", "examine", "worst"]


def examine(run: Run, *, samples: int = 8) -> list[Finding]:
    """Examine a finished run, check by check: :func:`genrep_dist.diagnostics.checks.examine`."""
    from genrep_dist.diagnostics.checks import examine as examine_run

    return examine_run(run, samples=samples)
