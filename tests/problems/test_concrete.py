from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from genrep_dist.errors import ProblemError
from genrep_dist.problems.datasets.catalogue import available, fetch
from genrep_dist.problems.datasets.concrete_files import parse_table
from genrep_dist.problems.load import load_datasets, load_problem

ROWS = 40


def rows_of_the_same_form(count: int = ROWS) -> str:
    """Made up, in the form of UCI's file: numbers with white space between, and no line end after the last row."""
    generator = np.random.default_rng(0)
    table = generator.uniform(1, 500, size=(count, 9)).round(2)
    table[:, 7] = generator.integers(1, 365, size=count)
    table[:, 1] = 0.0  # a constant column
    return "\n".join(" \t".join(f"{value:g}" for value in row) for row in table)


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GENREP_DATA", str(tmp_path / "cache"))
    path = tmp_path / "concrete.data"
    path.write_text(rows_of_the_same_form())
    return path


def test_a_table_is_fetched_from_a_file_or_its_folder(table: Path) -> None:
    assert not available("concrete")
    folder = fetch("concrete", str(table.parent))
    assert available("concrete")
    assert (folder / "concrete.data").read_bytes() == table.read_bytes()
    assert fetch("concrete", str(table)) == folder


def test_the_problem_is_a_standardized_regression(table: Path) -> None:
    fetch("concrete", str(table))
    problem = load_problem("concrete")
    train, test = load_datasets(problem)
    assert train.inputs.shape == (36, 8)
    assert (train.targets.shape, test.targets.shape) == ((36, 1), (4, 1))
    assert sorted([*train.ids.tolist(), *test.ids.tolist()]) == list(range(ROWS))
    torch.testing.assert_close(train.inputs.mean(dim=0), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(train.targets.std(correction=0), torch.tensor(1.0))
    raw = parse_table(table.read_bytes(), "")
    strength = raw[train.ids, 8]
    torch.testing.assert_close(
        train.targets[:, 0].double(), torch.from_numpy((strength - strength.mean()) / strength.std()), atol=1e-5, rtol=0
    )
    assert problem.model()(train.inputs).shape == (36, 1)
    other, _ = load_datasets(load_problem("concrete", {"split_seed": 1}))
    assert other.ids.tolist() != train.ids.tolist()


NINE = "1 2 3 4 5 6 7 8 9"


@pytest.mark.parametrize("text", ["", "1 2 3", NINE, "a,b\n1,2", f"1 2 3 4 5 6 7 8 nan\n{NINE}", f"{NINE}\n1 2 3 4 5 6 7 8 x", "\xff"])
def test_what_is_no_such_table_is_refused(table: Path, text: str) -> None:
    table.write_bytes(text.encode("latin-1"))
    with pytest.raises(ProblemError, match="not the table"):
        fetch("concrete", str(table))
    assert not available("concrete")


def test_there_is_no_source_but_a_path(table: Path) -> None:
    for source in (None, "package", str(table) + "x"):
        with pytest.raises(ProblemError) as refused:
            fetch("concrete", source)
        assert "--from concrete.data" in str(refused.value)
    with pytest.raises(ProblemError, match="split_seed"):
        load_problem("concrete", {"split_seed": -1})
