from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import zlib
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

import polars as pl
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType

from genrep_dist.errors import NonFiniteError, StoreError
from genrep_dist.tracking.charts import MAX_TAG, SHARED_VIEW, shared_view
from genrep_dist.tracking.mlflow_tracker import ARCHIVED, COMPLETE, METHOD, TrackingLink, publish
from genrep_dist.tracking.publication import Measurement, Publication, method_runs
from tests.tracking.examples import METHODS, publication

WRITES = (
    "create_experiment",
    "create_run",
    "delete_run",
    "log_batch",
    "log_artifacts",
    "log_inputs",
    "set_experiment_tag",
    "set_terminated",
    "set_tag",
    "delete_tag",
)


def runs_of(place: dict[str, Any], link: TrackingLink, view: int = ViewType.ACTIVE_ONLY) -> list[Run]:
    return list(MlflowClient(tracking_uri=place["tracking_uri"]).search_runs([link.experiment_id], run_view_type=view))


def contents(place: dict[str, Any], link: TrackingLink) -> dict[str, Any]:
    """All that a reader can see of an experiment, without ids and times."""
    client = MlflowClient(tracking_uri=place["tracking_uri"])
    seen: dict[str, Any] = {}
    for run in runs_of(place, link):
        history = {
            name: sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)) for name in sorted(run.data.metrics)
        }
        tags = {name: without_ids(value) for name, value in run.data.tags.items() if name != "mlflow.parentRunId"}
        # It covers the description, whose links hold ids.
        tags.pop("genrep.content_digest" if "genrep.method" not in tags else "", None)
        is_child = run.data.tags.get("mlflow.parentRunId") == link.run_id
        name = f"{'child' if is_child else 'parent'} {run.info.run_name} {sum(run.info.run_name in key for key in seen)}"
        seen[name] = (run.info.status, tags, dict(run.data.params), history, files_below(client, run.info.run_id))
    return seen


def shared_view_of(place: dict[str, Any], link: TrackingLink) -> dict[str, Any]:
    """The view that links to the page of runs name."""
    tags = MlflowClient(tracking_uri=place["tracking_uri"]).get_experiment(link.experiment_id).tags
    form, _, content = tags[f"{SHARED_VIEW}{link.run_id}"].partition(";")
    assert form == "deflate"
    found: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(content)))
    return found


def without_ids(text: str) -> str:
    return re.sub(r"\b[0-9a-f]{32}\b", "run", unquote(text))


def files_below(client: MlflowClient, run_id: str, folder: str | None = None) -> list[str]:
    found = []
    for entry in client.list_artifacts(run_id, folder):
        found += files_below(client, run_id, entry.path) if entry.is_dir else [entry.path]
    return sorted(found)


def test_a_database_that_was_deleted_is_made_again_in_the_same_process(fresh: Path, place: dict[str, Any], tmp_path: Path) -> None:
    first = publish(publication(), **place)
    shutil.rmtree(tmp_path / "artifacts")
    (tmp_path / "mlflow.db").unlink()
    shutil.copyfile(fresh, tmp_path / "mlflow.db")
    again = publish(publication(), **place)
    assert again.run_id != first.run_id
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        known = {run for (run,) in database.execute("SELECT run_uuid FROM runs")}
    assert {again.run_id, *again.runs.values()} <= known
    assert files_below(MlflowClient(tracking_uri=place["tracking_uri"]), again.run_id)


def test_what_was_published_can_be_read_back(place: dict[str, Any]) -> None:
    made = publication(signs=("negative", "positive"))
    link = publish(made, **place)
    client = MlflowClient(tracking_uri=place["tracking_uri"])
    assert client.get_experiment(link.experiment_id).name == "genrep/digits"

    parent = client.get_run(link.run_id)
    assert parent.info.run_name == "demo"
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["genrep.plan_digest"] == made.plan_digest
    assert parent.data.tags["genrep.version"] == "0.1.0"
    assert parent.data.params == {"recipe.epochs": "20", "seeds": "3"}
    assert parent.data.metrics == {"test_accuracy": 0.9}
    assert (parent.info.start_time, parent.info.end_time) == (made.began, made.ended)
    assert files_below(client, link.run_id) == ["config.yaml", "figures/curves.png", "report.html"]
    assert Path(client.download_artifacts(link.run_id, "report.html")).read_bytes() == b"<p>report</p>"

    assert list(link.runs) == [label.name for label in METHODS]
    for expected in method_runs(made):
        run = client.get_run(link.runs[expected.method])
        assert run.data.tags["mlflow.parentRunId"] == link.run_id
        assert run.info.status == "FINISHED"
        assert expected.tags.items() <= run.data.tags.items()
        for name in {m.name for m in expected.measurements}:
            logged = {(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)}
            assert logged == {(m.step, m.value) for m in expected.measurements if m.name == name}
        assert run.data.metrics.keys() == {m.name for m in expected.measurements}
        assert run.data.params == expected.parameters
        assert (run.info.start_time, run.info.end_time) == (made.began, made.ended)
        assert files_below(client, run.info.run_id) == ["scores.csv"]
        assert run.inputs is not None
        (used,) = run.inputs.dataset_inputs
        assert (used.dataset.name, used.dataset.digest, used.tags[0].value) == ("digits train", "0" * 32, "train")
    assert len(runs_of(place, link)) == 1 + len(METHODS)


def test_the_experiments_description_says_what_was_found_and_links_the_curves(place: dict[str, Any]) -> None:
    link = publish(publication(signs=("negative", "positive"), description="**ntk** is best.\n\nHow sure."), **place)
    note = MlflowClient(tracking_uri=place["tracking_uri"]).get_run(link.run_id).data.tags["mlflow.note.content"]
    assert note.startswith("**ntk** is best.\n\nCompare: [charts of all methods](#/experiments/")
    for view in ("charts of all methods", "table"):
        (page,) = re.findall(rf"\[{view}\]\(#/experiments/{link.experiment_id}/runs\?(.*?)\)", note)
        asked = dict(parse_qsl(page))
        assert asked["viewStateShareKey"] == link.run_id
        shown = shared_view_of(place, link)
        # Sorted by a metric, runs are listed one by one, and not folded under their parents.
        assert shown["orderByKey"] == "metrics.`auc_del_negative`"
        found = MlflowClient(tracking_uri=place["tracking_uri"]).search_runs([link.experiment_id], shown["searchFilter"])
        assert {run.info.run_id for run in found} == set(link.runs.values())
    assert note.endswith("\n\nHow sure.")
    for name in ("del_negative", "del_positive"):
        (query,) = re.findall(rf"\[{name}\]\(#/metric\?(.*?)\)", note)
        asked = {key: json.loads(value) for key, value in parse_qsl(query) if key != "x_axis"}
        assert asked == {
            "runs": list(link.runs.values()),
            "metric": name,
            "experiments": [link.experiment_id],
            "plot_metric_keys": [name],
        }


def test_charts_begin_with_the_main_metric_its_interval_and_the_curves(place: dict[str, Any]) -> None:
    shown = shared_view_of(place, publish(publication(signs=("negative", "positive")), **place))
    metric = "auc_del_negative"
    charts = [(chart["type"], chart["metricKey"]) for chart in shown["compareRunCharts"]]
    assert charts == [
        *(("BAR", f"{metric}{end}") for end in ("", "_ci95_low", "_ci95_high")),
        *(("LINE", name) for name in ("del_negative", "del_positive")),
        ("PARALLEL", metric),
        ("BAR", "retrainings"),
        *(("BAR", f"auc_del_positive{end}") for end in ("", "_ci95_low", "_ci95_high")),
    ]
    assert shown["selectedColumns"][:3] == [f"metrics.`{metric}{end}`" for end in ("", "_ci95_low", "_ci95_high")]


def test_a_view_with_too_many_charts_fits_into_its_tag() -> None:
    (child, *_) = method_runs(publication())
    names = [hashlib.sha256(bytes([number])).hexdigest() for number in range(200)]
    many = [Measurement(f"{name}{end}", 0.0) for name in names for end in ("", "_ci95_low", "_ci95_high")]
    value = shared_view([replace(child, measurements=(*child.measurements, *many))], "")
    assert len(value) <= MAX_TAG


def test_publishing_twice_adds_nothing(place: dict[str, Any]) -> None:
    first = publish(publication(), **place)
    before = [run.to_dictionary() for run in runs_of(place, first, ViewType.ALL)]
    second = publish(publication(), **place)
    assert second == first
    assert [run.to_dictionary() for run in runs_of(place, first, ViewType.ALL)] == before


class Interruption(BaseException):
    """Like a kill: nothing of the program catches it."""


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let MLflow's client die instead of its ``after``-th write."""
    count = iter(range(10**6))

    def wrap(name: str) -> None:
        original = getattr(MlflowClient, name)

        def write(self: MlflowClient, *args: Any, **kwargs: Any) -> Any:
            if next(count) == after:
                raise Interruption
            return original(self, *args, **kwargs)

        monkeypatch.setattr(MlflowClient, name, write)

    for name in WRITES:
        wrap(name)


def test_interrupted_anywhere_and_published_again_equals_undisturbed(fresh: Path, tmp_path: Path) -> None:
    def new_place(name: str) -> dict[str, Any]:
        folder = tmp_path / name
        folder.mkdir()
        shutil.copyfile(fresh, folder / "mlflow.db")
        return {"tracking_uri": f"sqlite:///{folder / 'mlflow.db'}", "artifact_location": (folder / "artifacts").as_uri()}

    made = publication()
    undisturbed = new_place("undisturbed")
    expected = contents(undisturbed, publish(made, **undisturbed))
    assert len(expected) == 3
    interrupted = 0
    for after in range(100):
        place = new_place(f"after-{after}")
        with pytest.MonkeyPatch.context() as patch:
            interrupt(patch, after)
            try:
                publish(made, **place)
            except Interruption:
                interrupted += 1
            else:
                break
        assert contents(place, publish(made, **place)) == expected
    assert interrupted > 4 * len(METHODS)


def test_a_complete_child_is_left_and_an_incomplete_one_is_written_anew(place: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, 2 + 7 + 6)  # experiment, parent, the whole first child, and the second one up to its completion
        with pytest.raises(Interruption):
            publish(publication(), **place)
    client = MlflowClient(tracking_uri=place["tracking_uri"])
    experiment = client.get_experiment_by_name("genrep/digits")
    assert experiment is not None
    before = {run.data.tags[METHOD]: run for run in client.search_runs([experiment.experiment_id]) if METHOD in run.data.tags}
    assert [COMPLETE in before[label.name].data.tags for label in METHODS] == [True, False]
    link = publish(publication(), **place)
    assert link.runs[METHODS[0].name] == before[METHODS[0].name].info.run_id
    assert link.runs[METHODS[1].name] != before[METHODS[1].name].info.run_id
    deleted = runs_of(place, link, ViewType.DELETED_ONLY)
    assert [run.info.run_id for run in deleted] == [before[METHODS[1].name].info.run_id]


def test_changed_numbers_replace_the_old_ones(place: dict[str, Any]) -> None:
    first = publish(publication(), **place)
    changed = publication(spread=0.9)
    second = publish(changed, **place)
    assert second.run_id == first.run_id
    assert not set(first.runs.values()) & set(second.runs.values())
    active = {run.info.run_id for run in runs_of(place, second)}
    assert active == {second.run_id, *second.runs.values()}


def test_changed_files_are_replaced_and_the_children_stay(place: dict[str, Any]) -> None:
    first = publish(publication(), **place)
    second = publish(publication(artifacts={"report.html": b"new"}, parameters={"seeds": "4", "more": "5"}), **place)
    assert second == first
    client = MlflowClient(tracking_uri=place["tracking_uri"])
    assert Path(client.download_artifacts(first.run_id, "report.html")).read_bytes() == b"new"
    assert client.get_run(first.run_id).data.params == {"recipe.epochs": "20", "seeds": "3", "more": "5"}
    assert client.get_run(first.run_id).data.tags[COMPLETE] == "true"


def test_another_plan_is_another_run_beside(place: dict[str, Any]) -> None:
    first, second = publish(publication(), **place), publish(publication(plan_digest="fedcba"), **place)
    assert first.experiment_id == second.experiment_id
    assert first.run_id != second.run_id
    assert not set(first.runs.values()) & set(second.runs.values())


def test_a_run_that_replaces_another_of_its_name_archives_it(place: dict[str, Any]) -> None:
    first, other = publish(publication(), **place), publish(publication(experiment="other", plan_digest="00"), **place)
    second = publish(publication(plan_digest="fedcba"), **place)
    client = MlflowClient(tracking_uri=place["tracking_uri"])
    for link, archived in ((first, "true"), (other, "false"), (second, "false")):
        assert {client.get_run(run_id).data.tags[ARCHIVED] for run_id in (link.run_id, *link.runs.values())} == {archived}
    again = publish(publication(), **place)
    assert again == first
    assert {run.info.run_name: run.data.tags[ARCHIVED] for run in runs_of(place, first) if run.info.run_id in (first.run_id, second.run_id)}
    tags = {run_id: client.get_run(run_id).data.tags[ARCHIVED] for run_id in (first.run_id, second.run_id, first.runs["random"])}
    assert tags == {first.run_id: "false", second.run_id: "true", first.runs["random"]: "false"}


def test_runs_that_a_user_deleted_are_published_again(place: dict[str, Any]) -> None:
    first = publish(publication(), **place)
    MlflowClient(tracking_uri=place["tracking_uri"]).delete_run(first.run_id)
    assert publish(publication(), **place).run_id != first.run_id


def test_a_deleted_experiment_is_not_revived_silently(place: dict[str, Any]) -> None:
    link = publish(publication(), **place)
    MlflowClient(tracking_uri=place["tracking_uri"]).delete_experiment(link.experiment_id)
    with pytest.raises(StoreError, match="mlflow gc"):
        publish(publication(), **place)


def test_an_experiment_that_another_driver_makes_meanwhile_is_used(place: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    first = publish(publication(), **place)
    lookup = MlflowClient.get_experiment_by_name
    answers = iter([None])
    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", lambda self, name: next(answers, lookup(self, name)))
    assert publish(publication(), **place) == first


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="MLflow refused"):
        publish(publication(), tracking_uri=f"sqlite:///{tmp_path / 'file' / 'mlflow.db'}")


def test_many_numbers_go_in_several_batches(place: dict[str, Any]) -> None:
    made = publication()
    many = pl.DataFrame({"metric": "auc_del_negative", "method": "random", "seed": range(2500), "value": 0.5})
    link = publish(publication(seed_means=many, parameters={f"p{n}": "v" for n in range(250)}), **place)
    client = MlflowClient(tracking_uri=place["tracking_uri"])
    assert len(client.get_metric_history(link.runs["random"], "auc_del_negative_by_seed")) == 2500
    assert len(client.get_run(link.run_id).data.params) == 250
    assert len(made.methods) == len(link.runs)


def test_nothing_is_written_when_a_number_is_none(tmp_path: Path) -> None:
    made = publication()
    spoilt = publication(metrics=made.metrics.with_columns(mean=pl.lit(float("inf"))))
    with pytest.raises(NonFiniteError):
        publish(spoilt, tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert list(tmp_path.iterdir()) == []


def test_what_mlflow_refuses_is_an_error_that_says_where(place: dict[str, Any]) -> None:
    with pytest.raises(StoreError, match=r"MLflow refused the publication[\s\S]*mlflow\.db[\s\S]*run again"):
        publish(publication(tags={"bad [tag]": "x"}), **place)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("hello, I am no database at all, and rather long for one line of text")
    with pytest.raises(StoreError, match="MLflow refused"):
        publish(publication(), tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")


def test_a_wrong_address_is_refused_at_once() -> None:
    with pytest.raises(StoreError, match="does not answer"):
        publish(publication(), tracking_uri="http://user:secret@127.0.0.1:9")


def test_loggers_are_as_before(place: dict[str, Any]) -> None:
    logger = logging.getLogger("mlflow")
    before = logger.level
    publish(publication(), **place)
    assert logger.level == before


def test_the_hint_names_the_run(place: dict[str, Any]) -> None:
    link = publish(publication(), **place)
    assert link.hint.startswith(f"mlflow ui --backend-store-uri {place['tracking_uri']}")
    assert link.hint.endswith(f"#/experiments/{link.experiment_id}/runs/{link.run_id}")


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "first_contact.py"
    path.write_text(
        "import sys\n"
        "from genrep_dist.tracking.mlflow_tracker import publish\n"
        "from mlflow.telemetry import get_telemetry_client\n"
        "from tests.tracking.examples import publication\n"
        "publish(publication(), tracking_uri=sys.argv[1], artifact_location=sys.argv[2])\n"
        "assert get_telemetry_client() is None\n"
    )
    return path


def test_first_contact_is_silent_and_without_warnings_or_telemetry(script: Path, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_") and name not in ("CI", "DO_NOT_TRACK")
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), f"sqlite:///{tmp_path / 'db' / 'mlflow.db'}", (tmp_path / "files").as_uri()],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["db", "files", "first_contact.py"]


def test_importing_the_rooms_around_imports_no_mlflow() -> None:
    code = "import sys, genrep_dist.tracking.publication, genrep_dist.tracking.server; sys.exit('mlflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_publication_is_frozen() -> None:
    made: Publication = publication()
    with pytest.raises(AttributeError):
        made.problem = "other"  # type: ignore[misc]
