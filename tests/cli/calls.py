"""Calls of the command line in this process, as the console script makes them."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from genrep_dist import cli
from tests.experiments import ROOT

FEW: dict[str, Any] = {"methods": ["ntk-final/target", "random"], "deletion": {"fractions": [0.0, 0.1]}}
SLOWER: dict[str, Any] = {"recipe": {"learning_rate": 0.05}}


@dataclass
class Ended:
    code: int
    output: str
    error: str

    def json(self) -> Any:
        return json.loads(self.output)


class Genrep:
    """Runs commands from the repository's root, where the toy problems are."""

    def __init__(self, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._patch, self._capsys = patch, capsys
        patch.chdir(ROOT)

    def __call__(self, *arguments: object) -> Ended:
        self._capsys.readouterr()
        self._patch.setattr(sys, "argv", ["genrep", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        said = self._capsys.readouterr()
        return Ended(code, said.out, said.err)


def files_below(folder: Path) -> dict[str, int]:
    """Size of each file by its path below the folder."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
