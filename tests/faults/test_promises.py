"""docs/reliability.md: every promise names tests that are there."""

from __future__ import annotations

import ast
import re

from tests.experiments import ROOT

TEXT = (ROOT / "docs/reliability.md").read_text()


def test_every_promise_names_tests_that_exist() -> None:
    # The table of faults that were tried counts them; its promises are in the tables before it.
    before, _, after = TEXT.partition("## Faults that were tried")
    stated = before + after[after.index("\n## ") :]
    promises = [line for line in stated.splitlines() if line.startswith("| ") and not line.startswith("| what happens")]
    assert len(promises) >= 18
    for promise in promises:
        named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", promise.rstrip(" |").rpartition(" | ")[2])
        assert named, promise
        for file, test in named:
            tree = ast.parse((ROOT / file).read_text())
            assert not test or test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file}::{test}"


def test_every_fault_has_its_promise() -> None:
    """No test of a whole run under a fault is without a row."""
    for path in sorted((ROOT / "tests/faults").glob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
                continue
            if "undisturbed" in {argument.arg for argument in node.args.args}:
                assert f"`tests/faults/{path.name}::{node.name}`" in TEXT, node.name
