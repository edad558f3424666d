"""The doctor: checks of a finished run. Each gives green, amber or red findings with number, bound and remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from genrep_dist.diagnostics.finding import Colour, Finding, worst_colour

if TYPE_CHECKING:
    from genrep_dist.results import Run

__all__ = ["Colour", "Finding", "diagnose", "worst_colour"]


def diagnose(run: Run, *, samples: int = 8) -> list[Finding]:
    """Run all checks on a finished run: :func:`genrep_dist.diagnostics.run_checks.diagnose`."""
    from genrep_dist.diagnostics.run_checks import diagnose as run_checks

    return run_checks(run, samples=samples)
