"""Print each dependency of pyproject.toml at its lower bound, as constraints for pip.

torch is left out: its wheels of old versions are CUDA builds of several gigabytes, and constraints.txt pins the small one.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parent.parent / "pyproject.toml"
LEFT_OUT = ("torch",)


def lowest_versions(project: str) -> list[str]:
    """Of the text of a pyproject.toml: ``name==version`` for each ``name[extras]>=version``. ValueError for a dependency without one."""
    found = []
    for dependency in tomllib.loads(project)["project"]["dependencies"]:
        match = re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?>=([0-9][0-9.]*)(?:,.*)?", dependency.replace(" ", ""))
        if match is None:
            raise ValueError(f"no lower bound: {dependency}")
        if match[1] not in LEFT_OUT:
            found.append(f"{match[1]}=={match[2]}")
    return found


if __name__ == "__main__":
    sys.stdout.write("\n".join(lowest_versions(PROJECT.read_text())) + "\n")
