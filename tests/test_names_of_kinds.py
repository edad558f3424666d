"""Code asks what a kernel, an importance or a scorer is, never what it is called: names stand in their own files alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from genrep_dist.core.importances import IMPORTANCES
from genrep_dist.core.kernels import KERNELS
from genrep_dist.core.scorers import SCORERS
from tests.experiments import ROOT

NAMES = {*KERNELS, *IMPORTANCES, *SCORERS, "external", "random"}
HOMES = {"core/methods.py": "the grammar of method names"}
ALLOWED = {
    ("problems/tables.py", "target"): "a column of the samples' table",
    ("config/experiment.py", "external"): "a field of the experiment",
    ("config/experiment.py", "influence"): "a section of the experiment",
}


def comparisons(path: Path) -> Iterator[tuple[int, str]]:
    """(line, name) of every comparison with a name, and of every mapping whose keys are such names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Compare):
            for side in [node.left, *node.comparators]:
                for part in ast.walk(side):
                    if isinstance(part, ast.Constant) and part.value in NAMES:
                        yield node.lineno, str(part.value)
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Dict):
            yield from ((node.lineno, str(key.value)) for key in node.value.keys if isinstance(key, ast.Constant) and key.value in NAMES)


def test_no_code_asks_for_the_name_of_a_kernel_or_an_importance() -> None:
    package = ROOT / "genrep_dist"
    found = []
    for path in sorted(package.rglob("*.py")):
        place = path.relative_to(package).as_posix()
        if place.startswith(("core/kernels/", "core/importances/", "core/scorers/", "paper/")) or place in HOMES:
            continue
        found += [f"{place}:{line}: {name}" for line, name in comparisons(path) if (place, name) not in ALLOWED]
    assert not found, "\n".join(found)
