from __future__ import annotations

import os
from pathlib import Path

import pytest

from genrep_dist.config import Experiment, load_experiment
from genrep_dist.runner.dry_run import dry_run, dry_run_of
from genrep_dist.store import Store
from genrep_dist.workflow import known_plans
from genrep_dist.workflow.known_plans import KnownPlan
from genrep_dist.workflow.prepare import PreparedExperiment, prepare
from tests.experiments import ROOT, experiment


@pytest.fixture(scope="module")
def smoke() -> Experiment:
    return load_experiment("smoke")


@pytest.fixture(scope="module")
def prepared(smoke: Experiment, tmp_path_factory: pytest.TempPathFactory) -> PreparedExperiment:
    return prepare(smoke, Store(tmp_path_factory.mktemp("store")))


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is kept, there are no files of data sets, and no GPU, whatever this machine has."""
    monkeypatch.setenv("GENREP_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("GENREP_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(known_plans, "may_have_gpu", lambda: False)


def kept() -> list[Path]:
    return list((Path(os.environ["GENREP_STATE"]) / known_plans.FOLDER).glob("*.json"))


def test_a_kept_plan_is_the_one_that_was_made(smoke: Experiment, prepared: PreparedExperiment) -> None:
    assert KnownPlan(smoke).read() is None
    KnownPlan(smoke).keep(prepared)
    plan = KnownPlan(smoke).read()
    assert plan == prepared.plan
    assert plan is not None
    assert dry_run_of(plan, prepared.store).plain() == dry_run(prepared, probe=False).plain()


def test_what_a_plan_follows_from_is_in_its_key(
    smoke: Experiment, prepared: PreparedExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    KnownPlan(smoke).keep(prepared)
    assert KnownPlan(load_experiment("smoke", ["seeds=7"])).read() is None
    assert KnownPlan(load_experiment("smoke", ["resources.memory_budget=3GiB"])).read() is None
    for function in ("genrep_dist.workflow.known_plans.installation_digest", "platform.node"):
        with monkeypatch.context() as patch:
            patch.setattr(function, lambda: "another")
            assert KnownPlan(smoke).read() is None
    assert KnownPlan(smoke).read() is not None
    file = tmp_path / "data" / "mnist" / "manifest.json"
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    before = KnownPlan(smoke)
    assert before.read() is None
    before.keep(prepared)
    assert KnownPlan(smoke).read() is not None
    file.write_text("{ }")
    assert KnownPlan(smoke).read() is None


def test_damaged_plans_are_made_again(smoke: Experiment, prepared: PreparedExperiment) -> None:
    KnownPlan(smoke).keep(prepared)
    (file,) = kept()
    file.write_bytes(file.read_bytes().replace(b"num_parameters", b"num_parameterz"))
    assert KnownPlan(smoke).read() is None
    for content in (b"", b"{}", b"[]"):
        file.write_bytes(content)
        assert KnownPlan(smoke).read() is None
    KnownPlan(smoke).keep(prepared)
    assert KnownPlan(smoke).read() == prepared.plan


def test_plans_that_depend_on_more_than_can_be_verified_are_not_kept(
    smoke: Experiment, prepared: PreparedExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = experiment()
    KnownPlan(toy).keep(prepare(toy, Store(tmp_path / "store"), [str(ROOT)]))
    KnownPlan(load_experiment("smoke", ["problem={name: mnist, options: {folder: /data}}"])).keep(prepared)
    monkeypatch.setattr(known_plans, "may_have_gpu", lambda: True)
    KnownPlan(smoke).keep(prepared)
    assert kept() == []


def test_a_folder_that_cannot_be_written_stops_no_plan(smoke: Experiment, prepared: PreparedExperiment, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    KnownPlan(smoke).keep(prepared)
    assert KnownPlan(smoke).read() is None


def test_few_plans_are_kept(smoke: Experiment, prepared: PreparedExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_plans, "NUM_KEPT", 2)
    for number in range(4):
        monkeypatch.setattr("platform.node", lambda number=number: f"machine {number}")
        KnownPlan(smoke).keep(prepared)
        assert KnownPlan(smoke).read() is not None
    assert len(kept()) == 2
