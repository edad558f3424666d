from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from genrep_dist.errors import ProblemError
from genrep_dist.problems.checks import build_model
from genrep_dist.problems.load import load_problem, source_digest

SOURCE = """
import torch
from torch import nn
from genrep_dist import Recipe
from genrep_dist.core.losses import SquaredLoss

class Mild(SquaredLoss):
    name = "mild"
    def __init__(self, weight=1.0):
        self.weight = weight

class Net(nn.Module):
    def __init__(self, width, scale, activation):
        super().__init__()
        self.linear = nn.Linear(3, width)
        self.last = nn.Linear(width, 1)
        self.scale, self.activation, self.tags = scale, activation, {"one", "two", "three"}
        self.fixed = torch.randn(3)

    def forward(self, inputs):
        return self.last(self.activation(self.linear(inputs))) * self.scale

class Mine:
    recipe = Recipe(epochs=1, batch_size=2, learning_rate=0.1)

    def __init__(self, width=2, scale=1.0, activation="relu", loss="squared", weight=1.0, rows=4):
        self.width, self.scale, self.activation, self.rows = width, scale, getattr(torch, activation), rows
        self.loss = Mild(weight) if loss == "mild" else loss

    def model(self):
        return Net(self.width, self.scale, self.activation)

    def train_data(self):
        return torch.zeros(self.rows, 3), torch.zeros(self.rows), torch.arange(self.rows)

    test_data = train_data
"""


class Sources:
    """User's files under one module name, one folder each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0

    def digest(self, options: dict[str, Any] | None = None, source: str = SOURCE, *, declared: bool = False) -> str:
        self.count += 1
        folder = self.folder / str(self.count)
        folder.mkdir()
        (folder / "my_digested_file.py").write_bytes(source.encode())
        sys.modules.pop("my_digested_file", None)
        problem = load_problem("my_digested_file:Mine", options, [folder])
        return source_digest(problem, options if declared else None)


@pytest.fixture
def sources(tmp_path: Path) -> Iterator[Sources]:
    yield Sources(tmp_path)
    sys.modules.pop("my_digested_file", None)


def test_the_same_source_has_the_same_digest_wherever_it_lies(sources: Sources) -> None:
    assert sources.digest() == sources.digest()
    assert sources.digest() == sources.digest(source=SOURCE.replace("\n", "\r\n"))


def test_what_changes_model_or_loss_changes_the_digest(sources: Sources) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"width": 3},
        {"scale": 2.0},
        {"activation": "tanh"},
        {"loss": "logistic"},
        {"loss": "mild"},
        {"loss": "mild", "weight": 2.0},
    ]
    digests = [sources.digest(options) for options in changes]
    digests.append(sources.digest(source=SOURCE.replace("* self.scale", "* self.scale + 1")))
    assert len(set(digests)) == len(digests)


def test_options_count_when_they_are_declared(sources: Sources) -> None:
    assert sources.digest({"rows": 5}) == sources.digest({"rows": 6})
    assert sources.digest({"rows": 5}, declared=True) != sources.digest({"rows": 6}, declared=True)


def test_the_digest_is_the_same_in_every_process(sources: Sources, tmp_path: Path) -> None:
    expected = sources.digest()
    code = "from genrep_dist.problems.load import load_problem, source_digest; print(source_digest(load_problem('my_digested_file:Mine')))"
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path / "1",
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        assert done.stdout.strip() == expected


def test_a_class_without_a_file_is_refused(sources: Sources) -> None:
    sources.digest()
    problem = load_problem("my_digested_file:Mine", search_path=[sources.folder / "1"])
    (sources.folder / "1" / "my_digested_file.py").unlink()
    with pytest.raises(ProblemError, match="no source file"):
        source_digest(problem)


def test_shipped_models_have_digests_of_their_own() -> None:
    two, ten = load_problem("digits"), load_problem("digits", {"classes": None})
    assert source_digest(two) != source_digest(ten)
    assert source_digest(two) != source_digest(load_problem("mnist"))
    assert len(source_digest(two)) == 64
    assert type(build_model(two)).__name__ == "SmallCNN"


def test_options_of_a_shipped_problem_that_are_its_defaults_are_no_difference() -> None:
    def digest(**options: Any) -> str:
        return source_digest(load_problem("digits", options), options)

    assert digest() == digest(classes=[3, 8]) == digest(classes=[3, 8], train_size=250) == digest(learning_rate=None)
    assert len({digest(), digest(classes=[8, 3]), digest(train_size=240), digest(classes=[3, 8], train_size=240)}) == 3


def test_options_of_ones_own_problem_all_count(tmp_path: Path) -> None:
    """It may have been built by a function with defaults of its own."""
    (tmp_path / "spelled_out.py").write_text(SOURCE)
    assert source_digest(load_problem("spelled_out:Mine", {}, [tmp_path])) != source_digest(
        load_problem("spelled_out:Mine", {"rows": 4}, [tmp_path]), {"rows": 4}
    )
