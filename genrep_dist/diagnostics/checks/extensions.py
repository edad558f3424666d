"""What other packages declare and cannot be used here."""

from __future__ import annotations

from collections.abc import Iterator

from genrep_dist.diagnostics.context import CheckContext
from genrep_dist.diagnostics.finding import Finding, compare
from genrep_dist.registry import extension_faults


def check(context: CheckContext) -> Iterator[Finding]:
    """The number counts them. None of them was used by this run, which would not have begun. No finding where there are none."""
    del context
    faults = extension_faults()
    if faults:
        text = "; ".join(f"{fault.what} ({fault.where}): {fault.got}" for fault in faults)
        yield compare("extensions", len(faults), 0, f"{text}; this run uses none of them", faults[0].remedy, otherwise="amber")
