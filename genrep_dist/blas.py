"""How the BLAS library of torch rounds. Imports neither torch nor numpy."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def make_reproducible() -> None:
    """Let Intel's MKL round the same product in the same way wherever its operands lie in memory.

    On processors of other makers MKL chooses between code paths by the addresses of the operands. A product's last bits then depend on its
    place in a batch, and so on how many models share a step. Its mode ``MKL_CBWR=AUTO`` prevents this, at no measured cost. MKL reads the
    variable at the first product of a process. A value that is already set stays. On Intel's processors nothing is set: there, products
    of the sizes that packs use have the same bits at every address (`tests/training/test_stacked_packs.py`).
    """
    if "MKL_CBWR" not in os.environ and not _is_intel():
        os.environ["MKL_CBWR"] = "AUTO"


def _is_intel() -> bool:
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text(errors="replace")[:4096]
    except OSError:  # not Linux
        return "GenuineIntel" in platform.processor()
