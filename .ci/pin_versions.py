"""Print constraints.txt: the installed version of every package that an installation of this project takes.

Run it with the Python of an environment in which `pip install -e .[dev,text]` was run and all tests pass (`make pins`).
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HEADER = """\
# The versions that are tested together (Python 3.11). Install with: pip install -c constraints.txt -e .[dev,text]
# All packages that this installs are here, so that two installations are equal. Made by `make pins`.
# Without the pin of torch, installers take the newest CUDA build, several gigabytes.
"""


def required(root: str, extras: tuple[str, ...]) -> dict[str, str]:
    """Versions by name of what ``root`` with ``extras`` requires on this platform, directly or not. LookupError for what is absent."""
    versions: dict[str, str] = {}
    done: set[tuple[str, str]] = set()
    left = [(root, extra) for extra in ("", *extras)]
    while left:
        name, extra = left.pop()
        if (canonicalize_name(name), extra) in done:
            continue
        done.add((canonicalize_name(name), extra))
        try:
            found = distribution(name)
        except PackageNotFoundError as error:
            raise LookupError(f"{name} is required and not installed") from error
        versions[found.metadata["Name"]] = found.version
        for line in found.requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                left += [(requirement.name, wanted) for wanted in ("", *requirement.extras)]
    del versions[distribution(root).metadata["Name"]]
    return versions


if __name__ == "__main__":
    pins = required("genrep-dist", ("dev", "text"))
    # A local label, as of a CPU build, is no part of a constraint.
    lines = [f"{name}=={pins[name].partition('+')[0]}" for name in sorted(pins, key=str.casefold)]
    sys.stdout.write(HEADER + "\n".join(lines) + "\n")
