"""Paths that are something else than expected, odd names, and stores that were moved."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

import genrep_dist as gr
from genrep_dist.cli import app
from genrep_dist.config import load_experiment
from genrep_dist.config.sections import ExternalSection
from genrep_dist.errors import ConfigError, GenRepError, ProblemError, StoreError
from genrep_dist.external.formats import read_scores
from genrep_dist.external.locate import locate
from genrep_dist.filesystem import what_is_at
from genrep_dist.problems.datasets.catalogue import fetch
from genrep_dist.problems.load import load_class, load_problem
from genrep_dist.runner.export import export_problem, export_run
from genrep_dist.store import Store
from genrep_dist.tracking.database import create_database, sqlite_uri
from tests.experiments import ROOT, experiment, experiment_file

# MLflow's own models use an interface that newer versions of SQLAlchemy deprecate.
pytestmark = [
    pytest.mark.publishes,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]

FIELDS: dict[str, Any] = {"methods": ["random"], "seeds": 2, "deletion": {"fractions": [0.1]}}


def loop(path: Path) -> Path:
    path.symlink_to(path.name)
    return path


def circle(path: Path) -> Path:
    """A folder that a link inside leads back to."""
    path.mkdir()
    (path / "again").symlink_to(path)
    return path


def empty(path: Path) -> Path:
    path.touch()
    return path


def folder(path: Path) -> Path:
    (path / "inner").mkdir(parents=True)
    return path


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (folder, "a folder"),
        (circle, "a folder"),
        (empty, "an empty file"),
        (loop, "a symbolic link that leads to itself"),
        (lambda path: path, "nothing"),
        (lambda path: empty(path) / "inside", "nothing: a part of this path is a file"),
        (lambda path: path.with_name("n" * 300), "nothing that can be read"),
        (lambda path: path.with_name("null\0"), "no path: it contains a null character"),
    ],
)
def test_what_is_at_a_place_is_said(tmp_path: Path, make: Any, found: str) -> None:
    place = make(tmp_path / "place.npy")
    assert what_is_at(place).startswith(found)
    with pytest.raises(ConfigError, match=found):
        load_experiment(place)
    section = ExternalSection.model_validate({"path": str(place), "positive_raises": True})
    with pytest.raises(ConfigError, match="folder" if "folder" in found else found):
        read_scores(place, section, 0)
    if found != "an empty file":
        with pytest.raises(ConfigError, match="folder" if "folder" in found else found):
            locate("mine", section, [tmp_path], [0])


def test_a_file_that_may_not_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = experiment_file(tmp_path / "mine.yaml")
    monkeypatch.setattr(os, "access", lambda *_: False)  # as for a user without permission
    with pytest.raises(ConfigError, match="permission denied"):
        load_experiment(path)


def test_a_folder_of_experiments_names_them(tmp_path: Path) -> None:
    experiment_file(tmp_path / "mine.yaml")
    with pytest.raises(ConfigError, match=r"a folder[\s\S]*mine\.yaml"):
        load_experiment(tmp_path)


def test_a_template_of_scores_that_is_a_folder_names_the_file_in_it(tmp_path: Path) -> None:
    (tmp_path / "scores/0").mkdir(parents=True)
    np.save(tmp_path / "scores/0/mine.npy", np.zeros((2, 2)))
    section = ExternalSection.model_validate({"path": "scores/{seed}", "positive_raises": True})
    with pytest.raises(ConfigError, match=r"is a folder[\s\S]*seed 0[\s\S]*path: scores/{seed}/mine\.npy"):
        locate("mine", section, [tmp_path], [0])


@pytest.mark.parametrize(
    ("make", "message"),
    [(empty, "an empty file"), (lambda path: empty(path) / "store", "a part of this path is a file"), (loop, "leads to itself")],
)
def test_a_store_that_is_no_folder(tmp_path: Path, make: Any, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        Store(str(make(tmp_path / "store")))


@pytest.mark.parametrize("path", ["results/toy/report.html", "results/toy", "results"])
def test_a_place_in_the_store_that_something_else_has(tmp_path: Path, path: str) -> None:
    store = Store(str(tmp_path))
    place = tmp_path / path
    if place.suffix:
        folder(place)
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        empty(place)
    with pytest.raises(StoreError, match=r"something else has its place[\s\S]*(a folder|a part of this path is a file)[\s\S]*move it"):
        store.objects.put("results/toy/report.html", b"x")


def test_a_database_that_is_a_folder(tmp_path: Path) -> None:
    folder(tmp_path / "mlflow.db")
    with pytest.raises(StoreError, match="the tracking database is a folder"):
        create_database(f"sqlite:///{tmp_path / 'mlflow.db'}", lambda _: None)


@pytest.mark.parametrize("name", ["what if?", "100%41", "a%2fb"])
def test_a_database_that_mlflow_would_put_elsewhere_is_refused_before_the_work(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match=r"MLflow cannot open a database in this folder[\s\S]*tracking\.uri"):
        gr.run(experiment(**FIELDS), store=str(tmp_path / name), serial=True, search_path=[str(ROOT)])
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert not list(tmp_path.rglob("*.db"))


@pytest.mark.parametrize("source", ["/no/such/file", "no-source"])
def test_data_that_are_not_there(tmp_path: Path, source: str) -> None:
    with pytest.raises(ProblemError, match="at which there is nothing"):
        fetch("mnist", source, tmp_path)


@pytest.mark.parametrize("name", ["__main__:Mine", "__main__:Outer.Inner"])
def test_a_class_of_the_script_is_refused(name: str) -> None:
    loads: list[Callable[[], Any]] = [lambda: load_problem(name), lambda: load_class(name, {}, [], "kernel")]
    for load in loads:
        with pytest.raises(ProblemError, match=rf"a class of the script[\s\S]*my_problem:{name.rpartition(':')[2]}"):
            load()


@pytest.mark.parametrize("serial", [True, False])
def test_a_run_of_a_class_of_the_script_is_refused_without_ray_too(tmp_path: Path, serial: bool) -> None:
    with pytest.raises(ProblemError, match="a class of the script"):
        gr.run(experiment("__main__:Mine", **FIELDS), store=str(tmp_path), serial=serial)
    with pytest.raises(ProblemError, match="a class of the script"):
        gr.run(
            experiment(kernels={"rbf": {"class": "__main__:Rbf"}}, **FIELDS), store=str(tmp_path), serial=serial, search_path=[str(ROOT)]
        )


# -- one run through the command line, in a terminal of ASCII, in a folder with an odd name; then the store is moved ---------------------


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("places") / "50% of [a] #1 'größe' *"
    place.mkdir()
    path = experiment_file(place / "mine.yaml", **FIELDS)
    asked = [sys.executable, "-m", "genrep_dist", "run", str(path), "--serial", "--store", str(place / "store")]
    plain = {"PYTHONIOENCODING": "ascii", "TERM": "dumb", "LANG": "C"}
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(asked, check=False, capture_output=True, cwd=ROOT, env={**os.environ, **plain, "PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr
    assert "+/- " in done.stdout.decode("ascii")
    return place


def test_everything_is_in_the_store_that_was_named(odd: Path) -> None:
    assert {path.name for path in odd.parent.iterdir()} == {odd.name}
    assert {path.name for path in odd.iterdir()} == {"mine.yaml", "store"}
    run = gr.open_run(str(odd / "store"), "toy")
    assert run.summary()["method"].to_list() == ["random"]
    manifest = run.manifest()
    assert manifest is not None
    link = manifest["tracking"]
    client = MlflowClient(link["uri"])
    assert [entry.path for entry in client.list_artifacts(link["run_id"]) if entry.path == "report.html"] == ["report.html"]
    assert (odd / "store/mlflow.db").is_file()


def test_a_moved_store_writes_into_itself(odd: Path, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new place"
    shutil.copytree(odd / "store", old)
    first = gr.run(experiment(**FIELDS), store=str(old), serial=True, search_path=[str(ROOT)])  # the copy is used there: nothing to do
    before = first.manifest()
    assert before is not None
    assert before["tracking"]["uri"] == sqlite_uri(old / "mlflow.db")
    old.rename(new)
    old.touch()  # the old place cannot be written
    again = gr.run(experiment(**FIELDS | {"seeds": [1]}), store=str(new), serial=True, search_path=[str(ROOT)])
    client = MlflowClient(sqlite_uri(new / "mlflow.db"))
    (found,) = client.search_experiments(filter_string="name LIKE 'genrep/%'")
    assert found.artifact_location == (new / "mlflow-artifacts").as_uri()
    manifest = again.manifest()
    assert manifest is not None
    for run_id in (before["tracking"]["run_id"], manifest["tracking"]["run_id"]):
        assert client.get_run(run_id).info.artifact_uri.startswith((new / "mlflow-artifacts").as_uri())
        assert Path(client.download_artifacts(run_id, "report.html")).is_file()
    assert str(new) in manifest["tracking"]["hint"]
    assert old.stat().st_size == 0


@pytest.mark.parametrize("export", [export_run, export_problem])
def test_an_export_to_a_file_is_refused(odd: Path, tmp_path: Path, export: Any) -> None:
    with pytest.raises(StoreError, match=r"cannot be written[\s\S]*(an empty file|a part of this path is a file)"):
        list(export(gr.open_run(str(odd / "store"), "toy"), empty(tmp_path / "to")))


@pytest.mark.parametrize(
    "arguments",
    [["run", "."], ["run", "demo", "--store", "file/store"], ["report", "toy", "--store", "a\0"], ["report", "toy", "--store", "\udcc3"]],
)
def test_every_refusal_is_an_error_of_this_package(tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    empty(tmp_path / "file")
    assert isinstance(CliRunner().invoke(app, arguments).exception, GenRepError)
