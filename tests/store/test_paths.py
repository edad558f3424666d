"""The layout of a store stands in one module."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from genrep_dist.store import paths
from tests.experiments import ROOT

PACKAGE = ROOT / "genrep_dist"
STORE_PATH = re.compile(
    r"(^|\{\}/)(artifacts|experiments|results|ledger|refused|data)/"  # a folder of the store
    r"|/(parts|lease|c)(/|$)"  # what is below an artifact or an experiment
    r"|(record|progress|quarantine)\.json"
    r"|/(manifest|zarr)\.json"
)
OTHER_LAYOUTS = {"external", "problems/datasets", "runner/export.py"}
"""Modules about other folders: foreign scores, the cache of data sets, exported runs."""


def literals(tree: ast.AST) -> Iterator[str]:
    """Strings of a module without its docstrings; an f-string is its literal pieces, with {} between them."""
    documented = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    inside = {id(piece) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for piece in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(piece.value) if isinstance(piece, ast.Constant) else "{}" for piece in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented | inside:
            yield node.value


def test_no_other_module_builds_a_path_of_the_store() -> None:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name == "store/paths.py" or name.startswith(tuple(OTHER_LAYOUTS)):
            continue
        # Messages and help texts name folders in sentences; a path has no spaces.
        built = [text for text in literals(ast.parse(path.read_text())) if STORE_PATH.search(text) and " " not in text]
        if built:
            found[name] = built
    assert found == {}


def test_the_test_finds_paths() -> None:
    source = """
def f(name):
    "results/x in a docstring"
    return f"experiments/{name}/record.json", "results/" + name, "a results/ sentence"
"""
    found = [text for text in literals(ast.parse(source)) if STORE_PATH.search(text) and " " not in text]
    assert found == ["experiments/{}/record.json", "results/"]


def test_the_layout() -> None:
    """Part of the documented format: other tools read these paths."""
    key = "ab" + "0" * 62
    artifact = paths.ArtifactPaths("gram", key)
    assert artifact.manifest == f"artifacts/gram/ab/{key}/manifest.json"
    assert artifact.part_name(artifact.record("tile-0-1")) == "tile-0-1"
    assert artifact.chunk("gram", (0, 12)) == f"artifacts/gram/ab/{key}/gram/c/0/12"
    assert paths.ExperimentPaths("demo").record == "experiments/demo/record.json"
    assert paths.experiment_name(paths.ExperimentPaths("demo").lease) == "demo"
    assert paths.ResultPaths("demo").table("deletion") == "results/demo/deletion.parquet"
    assert paths.data_table("d" * 64, "train") == f"data/{'d' * 64}/train.parquet"
    ledger = paths.LedgerPaths("t")
    part = paths.ledger_part(ledger.folder, "0")
    assert part == "ledger/t/part-0.parquet"
    assert ledger.is_part(part)
    assert ledger.damaged_part(part, "1") == "ledger/t/refused/part-0-1.parquet"
    assert not ledger.is_part(ledger.damaged_part(part, "1"))
    assert paths.lease_number(paths.lease_record("a/lease", 7)) == 7
