"""The scripts of jobs/ beside evaluate.py, run in this process on a small store."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

import genrep_dist as gr
from genrep_dist.config import load_experiment
from jobs import explain, sensitivity, sweep
from tests.experiments import ROOT, experiment_file
from tests.toys import trainings

METHODS = ["ntk-final/target", "random"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jobs")
    for name, methods in (("one", METHODS), ("two", [*METHODS, "last-layer-final/target"])):
        experiment_file(folder / f"{name}.yaml", "tests.toys:Counting", {"folder": str(folder)}, name=name, methods=methods, seeds=1)
    return folder


def test_a_sweep_shares_one_store_and_goes_on_after_a_failure(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    options = ["--serial", "--store", str(place / "store")]
    files = [str(place / name) for name in ("one.yaml", "missing.yaml", "two.yaml")]
    assert sweep.main([*files, *options]) == 1
    said = capsys.readouterr()
    assert f"2 of 3 experiments are done; failed: {files[1]}" in said.out
    assert "missing.yaml" in said.err
    shared = trainings(place)
    one, two = (gr.open_run(str(place / "store"), name) for name in ("one", "two"))
    costs = [run.costs()["unique"] for run in (one, two)]
    assert shared < 1 + sum(costs), "the ledger is one: equal sets are trained once"
    assert sweep.main([files[0], files[2], *options]) == 0
    assert trainings(place) == shared
    assert sweep.main([]) == 1


def test_an_explanation_of_other_points(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    store = str(place / "store")
    before = trainings(place)
    np.save(place / "new.npy", np.zeros((3, 5), "f"))
    explain.main(["one", "ntk-final/target", "--store", store, "--inputs", str(place / "new.npy"), "--to", str(place / "phi.npz")])
    assert "phi 40 x 3, ntk-final/target, seed 0" in capsys.readouterr().out
    run = gr.open_run(store, "one")
    found = np.load(place / "phi.npz", allow_pickle=False)
    np.testing.assert_array_equal(found["phi"], run.explain("ntk-final/target", 0, inputs=np.zeros((3, 5), "f")))
    np.testing.assert_array_equal(found["train_ids"], run.train_ids(0))
    ids = [str(sample) for sample in run.test_ids(0)]
    explain.main(["one", "random", "--store", store, "--test-ids", *ids, "--to", str(place / "random.npz")])
    np.testing.assert_array_equal(np.load(place / "random.npz")["phi"], run.attributions("random", 0))
    assert trainings(place) == before


def test_a_report_is_written_again(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    page = place / "store/results/one/report.html"
    page.unlink()
    monkeypatch.setattr("sys.argv", ["jobs/report.py", "one", "--store", str(place / "store")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "jobs/report.py"), run_name="__main__")
    assert ended.value.code == 0
    assert page.exists()
    assert "report.html" in capsys.readouterr().out


@pytest.mark.parametrize("vary", sensitivity.SETUPS)
def test_set_ups_of_the_sensitivity_are_experiments_that_differ(vary: str) -> None:
    _, setups = sensitivity.SETUPS[vary]
    own = load_experiment(sensitivity.EXPERIMENT)
    found = {title: load_experiment(sensitivity.EXPERIMENT, list(changes)) for title, changes in setups.items()}
    assert [title for title in setups if found[title] == own] == [title for title, changes in setups.items() if not changes]
    assert len({one.model_dump_json() for one in found.values()}) == len(setups) > 1
