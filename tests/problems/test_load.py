from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from genrep_dist.errors import ConfigError, ProblemError
from genrep_dist.problems.datasets.digits import Digits
from genrep_dist.problems.load import SHIPPED, load_datasets, load_problem, num_outputs
from genrep_dist.problems.protocol import Problem
from genrep_dist.training.optimizers import identity_gap_reasons

USERS_OWN = """
import torch
from torch import nn
from genrep_dist import Recipe
from {helper} import WIDTH

class Mine:
    loss = "squared"
    recipe = Recipe(epochs=1, batch_size=2, learning_rate=0.1)

    def __init__(self, rows: int = 4, *, shift: float = 0.0):
        if rows < 1:
            raise ValueError("no rows")
        self.rows, self.shift = rows, shift

    def model(self):
        return nn.Linear(WIDTH, 1)

    def train_data(self):
        return torch.zeros(self.rows, WIDTH), torch.zeros(self.rows) + self.shift, torch.arange(self.rows)

    test_data = train_data

    class Inner:
        pass

    broken = 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with a user's module that imports another one beside it; what was imported is forgotten afterwards."""
    before = dict(sys.modules)
    helper = "helper_beside_mine"
    (tmp_path / f"{helper}.py").write_text("WIDTH = 3\n")
    (tmp_path / "my_problem_file.py").write_text(USERS_OWN.format(helper=helper))
    yield tmp_path
    for name in set(sys.modules) - set(before):
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_shipped_problems_are_problems(name: str) -> None:
    problem = load_problem(name)
    assert isinstance(problem, Problem)
    if name != "concrete":  # as published, with weight decay
        assert identity_gap_reasons(problem.recipe) == []


def test_options_reach_the_class() -> None:
    problem = load_problem("digits", {"classes": None, "train_size": 100})
    assert isinstance(problem, Digits)
    assert problem.loss == "softmax"
    data, _ = load_datasets(problem)
    assert num_outputs(problem.model(), data) == 10


def test_a_users_own_problem_is_found_on_the_search_path(folder: Path) -> None:
    path = list(sys.path)
    problem = load_problem("my_problem_file:Mine", {"rows": 6, "shift": 0.5}, [str(folder)])
    data, test = load_datasets(problem)
    assert data.inputs.shape == (6, 3)
    assert torch.equal(test.targets, torch.full((6,), 0.5))
    assert sys.path == path
    assert type(load_problem("my_problem_file:Mine", search_path=[folder])) is type(problem)


def test_a_users_own_problem_is_found_in_the_current_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert load_problem("my_problem_file:Mine").loss == "squared"


def test_a_file_in_a_package_is_found(folder: Path) -> None:
    (folder / "my_package_of_problems").mkdir()
    (folder / "my_package_of_problems" / "deep.py").write_text(USERS_OWN.format(helper="helper_beside_mine"))
    assert load_problem("my_package_of_problems.deep:Mine", search_path=[folder]).loss == "squared"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digts", "did you mean digits"),
        ("nothing", "concrete, or module:Class"),
        ("my_problem_file:", "module:Class"),
        ("my/problem_file.py:Mine", "module:Class"),
        ("no_such_file:Mine", "no_such_file.py in one of"),
        ("my_problem_file:Yours", "one of Mine"),
        ("my_problem_file:Mine.broken", "no such class"),
        ("my_problem_file:Mine.Inner", "without model, train_data, test_data, loss, recipe"),
    ],
)
def test_names_that_lead_nowhere_are_refused(folder: Path, name: str, message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        load_problem(name, search_path=[folder])


def test_unknown_and_impossible_options_are_refused(folder: Path) -> None:
    with pytest.raises(ProblemError, match="did you mean shift"):
        load_problem("my_problem_file:Mine", {"shift_by": 1}, [folder])
    with pytest.raises(ProblemError, match=r"ValueError: no rows \(in .*my_problem_file\.py, line 13\)"):
        load_problem("my_problem_file:Mine", {"rows": 0}, [folder])
    with pytest.raises(ProblemError, match="some of rows, shift"):
        load_problem("my_problem_file:Mine", {"a": 1}, [folder])


def test_the_users_faults_are_told_with_their_line(folder: Path) -> None:
    (folder / "my_faulty_file.py").write_text("import torch\n\nx = 1 / 0\n")
    with pytest.raises(ProblemError, match=r"ZeroDivisionError.*my_faulty_file\.py, line 3"):
        load_problem("my_faulty_file:Mine", search_path=[folder])
    (folder / "my_needy_file.py").write_text("import a_library_that_is_not_there\n")
    with pytest.raises(ProblemError, match=r"cannot be imported(.|\n)*a_library_that_is_not_there"):
        load_problem("my_needy_file:Mine", search_path=[folder])


def test_errors_of_the_package_pass_through(folder: Path) -> None:
    (folder / "my_own_error.py").write_text(
        "from genrep_dist.errors import ConfigError\n\nclass Mine:\n    def __init__(self):\n        raise ConfigError('as it is')\n"
    )
    with pytest.raises(ConfigError, match=r"^as it is$"):
        load_problem("my_own_error:Mine", search_path=[folder])


def test_a_file_named_like_a_loaded_module_is_refused(folder: Path) -> None:
    (folder / "json.py").write_text("class Mine: pass\n")
    with pytest.raises(ProblemError, match="already loaded"):
        load_problem("json:Mine", search_path=[folder])


def test_loading_leaves_the_generators_alone() -> None:
    state = torch.random.get_rng_state()
    load_datasets(load_problem("digits"))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_importing_the_loader_imports_no_heavy_library() -> None:
    code = (
        "import sys, genrep_dist.problems.load, genrep_dist.problems.datasets.catalogue; "
        "from genrep_dist.problems.datasets import cifar, digits, mnist, texts; "
        "print([name for name in ('tokenizers', 'PIL', 'sklearn', 'ray', 'mlflow', 'zarr', 'polars', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_data_command_needs_no_torch() -> None:
    code = "import sys, genrep_dist.problems.datasets.catalogue; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
