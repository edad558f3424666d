"""The experiments after published comparisons, and the page that jobs/reproduce.py makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genrep_dist.config import load_experiment
from genrep_dist.problems.datasets.cache import write_to_cache
from genrep_dist.problems.datasets.concrete_files import TABLE
from genrep_dist.runner.run import run
from genrep_dist.store import Store
from genrep_dist.workflow.prepare import prepare
from jobs import reproduce
from tests.problems.idx_files import idx_bytes, small_mnist
from tests.problems.test_concrete import rows_of_the_same_form


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Made-up rows in the form of both data sets."""
    folder = tmp_path_factory.mktemp("cache")
    files = {name: idx_bytes(array) for name, array in small_mnist().items()}
    write_to_cache("mnist", files, "made up", folder)
    write_to_cache("concrete", {TABLE: rows_of_the_same_form(200).encode()}, "made up", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENREP_DATA", str(folder))
        yield folder


SMALL = {
    "dattri-mnist-lr": ["problem.options.train_size=50", "problem.options.test_size=20", "test_points=3"],
    "dattri-mnist-mlp": ["problem.options.train_size=50", "problem.options.test_size=20", "test_points=3"],
    "kronfluence-concrete": ["test_points=2"],
}


@pytest.mark.parametrize("one", reproduce.REPRODUCTIONS, ids=lambda one: one.name)
def test_the_experiments_validate_and_plan(one: reproduce.Reproduction, tmp_path: Path) -> None:
    experiment = load_experiment(f"reproduce/{one.name}", SMALL[one.name])
    plan = prepare(experiment, Store(str(tmp_path / "store"))).plan
    assert plan.retrainings_at_most > 0
    known = {*experiment.methods, *one.peers}
    assert {row.method for row in one.rows} <= known
    if one.name == "kronfluence-concrete":
        assert plan.keys.epochs * (927 // plan.keys.recipe["batch_size"]) == 1120
        assert plan.shape.num_parameters == 34_305
    else:
        assert plan.shape.num_parameters == {"dattri-mnist-lr": 7_850, "dattri-mnist-mlp": 109_386}[one.name]


def test_the_page_without_runs_invents_nothing() -> None:
    page = reproduce.document({})
    rows = [line for line in page.splitlines() if line.startswith("| ") and "published" not in line]
    assert len(rows) == sum(len(one.rows) for one in reproduce.REPRODUCTIONS)
    assert all(row.endswith("| - | - | - | not run |") for row in rows)


def test_what_is_measured_is_what_is_published(tmp_path: Path) -> None:
    changes = ["recipe.epochs=2", "recipe.batch_size=8", "recipe.drop_last=false", "seeds=2", "deletion.counts=[0,5]", "test_points=2"]
    small = load_experiment("reproduce/kronfluence-concrete", [*changes, "loo={samples: 4}", "lds={subsets: 3}"])
    found = run(small, str(tmp_path / "store"), serial=True)
    method = "ntk-final/target"
    rows = found.deletion().filter(method=method, num_removed=5).sort("seed").collect()
    np.testing.assert_allclose(reproduce.squared_error(5)(found, method), 2 * rows["score_retrained"].to_numpy())
    original = found.test_outputs(0)[found.plan.keys.test_positions(0), 0]
    real = found.test.targets[found.plan.keys.test_positions(0), 0].numpy()
    assert reproduce.squared_error(0)(found, "random")[0] == pytest.approx(((original - real) ** 2).mean(), rel=1e-5)
    values = found.points().filter(metric="lds", method=method).sort("seed").collect()["value"].to_numpy()
    np.testing.assert_allclose(reproduce.lds(found, method), values)
    assert (np.abs(reproduce.loo(found, method)) <= 1).all()
    page = reproduce.document({"kronfluence-concrete": found}, "A test.")
    assert "A test." in page
    assert "| undecided |" in page, "two networks decide nothing"
    assert page.count("not run") > 10


def test_unknown_names_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        reproduce.main(["dattri"])
    assert "dattri-mnist-lr" in capsys.readouterr().err
