"""A user's files, written to a folder and imported from it."""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from genrep_dist.problems.digests import Identity, problem_identity
from genrep_dist.problems.load import load_problem

HEAD = """
import functools, itertools, json, pathlib, random, time
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from genrep_dist import Dataset, Recipe
"""
NET = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 1)

    def forward(self, x):
        return self.a(x)
"""
PROBLEM = """
class Problem:
    loss, recipe = "logistic", Recipe(epochs=2, batch_size=8, learning_rate=0.1)

    def model(self):
        return Net()

    def train_data(self, seed=0):
        x = torch.randn(24, 4, generator=torch.Generator().manual_seed(seed))
        return Dataset(x, (x[:, 0] > 0).float(), torch.arange(24))

    def test_data(self):
        return self.train_data(1)
"""
_numbers = itertools.count()


class Folder:
    """A folder of a user's files. Their modules have names of their own in each test: `{m}` in a text is the problem's."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, f"my_problem_{next(_numbers)}"

    def write(self, text: str, name: str = "{m}") -> Path:
        path = self.path / f"{name.format(m=self.name)}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("{m}", self.name))
        return path

    def load(self) -> Any:
        return load_problem(f"{self.name}:Problem", search_path=[self.path])

    def identity(self, *, fresh: bool = True) -> Identity:
        """As a process would compute it that has not imported the files yet."""
        if fresh:
            self.forget()
        return problem_identity(self.load(), {}, f"{self.name}:Problem")

    def forget(self) -> None:
        for name in [name for name in sys.modules if name.startswith(self.name)]:
            del sys.modules[name]
        importlib.invalidate_caches()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    monkeypatch.chdir(tmp_path)
    found = Folder(tmp_path)
    yield found
    found.forget()
