"""The counts of a run, its signs of life in the store, and what `genrep status` makes of them."""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import shutil
import time
import tracemalloc
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from rich.console import Console
from typer.testing import CliRunner

import genrep_dist as gr
from genrep_dist import cli
from genrep_dist.cli.progress import ProgressLines
from genrep_dist.cli.status import show_status, status_record, status_text
from genrep_dist.errors import GenRepError, ProblemError, StoreError, UnitError
from genrep_dist.executors.base import Outcome
from genrep_dist.executors.serial import SerialExecutor
from genrep_dist.runner.heartbeat import MAX_HISTORY, Heartbeat, History, RunState, as_metrics, read_state
from genrep_dist.runner.progress import NoProgress, ProgressCounter
from genrep_dist.runner.stage_runner import StageRunner, Workers
from genrep_dist.store import Store
from genrep_dist.store.sealed import seal_json
from genrep_dist.units import Retraining, Unit
from genrep_dist.workflow.context import Job
from genrep_dist.workflow.prepare import prepare
from genrep_dist.workflow.retrain import RetrainUnit
from genrep_dist.workflow.status import StageStatus
from genrep_dist.workflow.train import TrainUnit
from tests.experiments import ROOT, experiment
from tests.publication import publish_tables_only

pytestmark = pytest.mark.publishes

TASK = RetrainUnit(0, tuple(Retraining(str(index), 0, "same", (index,)) for index in range(5)))


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def told() -> tuple[ProgressCounter, Clock]:
    """A tally of ten trainings, of which three were done before; then two tasks of five models, one of which failed."""
    clock = Clock()
    tally = ProgressCounter(clock=clock)
    tally.stage("train", 10, 3)
    tally.unit_started(TrainUnit(0))
    tally.unit_started(TrainUnit(1))
    clock.now += 4
    tally.unit_ended(Outcome(TrainUnit(0), {}, 1))
    tally.stage("retrain", 40, 20)
    for _ in range(3):
        tally.unit_started(TASK)
    clock.now += 2
    tally.unit_ended(Outcome(TASK, {"models": 5.0}, 3))
    tally.unit_ended(Outcome.failed(TASK, 4, ProblemError("it diverged")))
    return tally, clock


def test_counts_are_of_models_and_rates_of_this_run() -> None:
    tally, _ = told()
    train, retrain = tally.counts["train"], tally.counts["retrain"]
    assert (train.done, train.total, train.before, train.running, train.left) == (4, 10, 3, 1, 6)
    assert train.rate == 1 / 4
    assert train.seconds_left == 24
    assert (retrain.done, retrain.running, retrain.failed, retrain.rate, retrain.seconds_left) == (25, 5, 5, 2.5, 6)
    assert tally.failures.as_dict() == {"by_kind": {"ProblemError": 1}, "named": [TASK.label], "retried": 5}
    assert tally.summary() == "done and kept: train 4 of 10, retrain 25 of 40"
    assert ProgressCounter().summary() == "done and kept: nothing yet"
    flat = as_metrics(tally.snapshot())
    assert flat["system/progress.retrain.units_per_second"] == 2.5
    assert flat["system/progress.failures.ProblemError"] == 1
    tally.unit_split(Outcome.failed(TASK, 4, ProblemError("it diverged")))
    assert retrain.failed == 0
    assert tally.failures.as_dict() == {"by_kind": {}, "named": [], "retried": 5}
    assert json.loads(json.dumps(tally.snapshot())) == tally.snapshot()


def test_a_tally_asks_whether_to_go_on() -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    tally, _ = told()
    tally.check = stop
    with pytest.raises(KeyboardInterrupt):
        tally.unit_started(TASK)
    with pytest.raises(KeyboardInterrupt):
        tally.unit_ended(Outcome(TASK, {}, 1))
    with pytest.raises(KeyboardInterrupt):
        tally.stage("train", 1, 0)


def test_a_heartbeat_writes_now_and_then_and_at_the_end(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    tally, _ = told()
    seen: list[Mapping[str, Any]] = []
    assert read_state(store, "toy") is None
    with Heartbeat(tally, store, "toy", [seen.append], seconds=0.02):
        first = read_state(store, "toy")
        assert first is not None
        assert first.state == "running"
        assert first.record["stages"]["retrain"]["done"] == 25
        tally.unit_ended(Outcome(TASK, {"models": 5.0}, 1))
        deadline = time.monotonic() + 20
        while first.record["stages"]["retrain"]["done"] != 30:
            assert time.monotonic() < deadline
            first = read_state(store, "toy")
            assert first is not None
    last = read_state(store, "toy")
    assert last is not None
    assert (last.state, last.record["error"]) == ("finished", "")
    assert seen[0]["stages"].keys() == {"train", "retrain"}


@pytest.mark.parametrize(
    ("error", "state", "said"),
    [
        (KeyboardInterrupt(), "stopped", ""),
        (UnitError("all units failed", got="a token"), "failed", "UnitError: all units failed"),
        (RuntimeError("a secret"), "failed", "RuntimeError"),
    ],
)
def test_how_a_run_ended(tmp_path: Path, error: BaseException, state: str, said: str) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(type(error)), Heartbeat(ProgressCounter(), store, "toy"):
        raise error
    last = read_state(store, "toy")
    assert last is not None
    assert (last.state, last.record["error"]) == (state, said)


def test_a_run_that_gives_no_sign_is_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    with Heartbeat(ProgressCounter(), store, "toy"):
        record = store.objects.get_json("experiments/toy/progress.json")
    store.objects.put_json("experiments/toy/progress.json", record)  # as if it had not said that it ends
    now = time.time()
    monkeypatch.setattr("genrep_dist.runner.heartbeat.WATCH_SECONDS", 0.2)
    for jump in (30, 120, -3600):  # of the clock of this machine
        monkeypatch.setattr("genrep_dist.runner.heartbeat.time.time", lambda jump=jump: now + jump)
        assert read_state(store, "toy").state == "running"  # type: ignore[union-attr]
    os.utime(tmp_path / "experiments/toy/progress.json", (0, time.time() - 120))
    assert read_state(store, "toy").state == "dead"  # type: ignore[union-attr]


def test_a_run_that_beats_is_alive_however_clocks_jump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By days, forwards and backwards, at every look; and steps of its metrics do not decrease."""
    store, real, chance = Store(str(tmp_path)), time.time, random.Random(0)
    monkeypatch.setattr("genrep_dist.runner.heartbeat.time.time", lambda: real() + chance.uniform(-1e6, 1e6))
    with Heartbeat(told()[0], store, "toy", seconds=0.05) as heartbeat:
        for _ in range(5):
            state = read_state(store, "toy")
            assert state is not None
            assert state.state == "running"
        found = heartbeat.history().measurements
    steps, stamps = [step for *_, step, _ in found], [stamp for *_, stamp in found]
    assert min(steps) == 0
    assert steps == sorted(steps)
    assert stamps == sorted(stamps)


def test_a_process_of_this_machine_that_has_ended_is_dead_at_once(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with Heartbeat(ProgressCounter(), store, "toy"):
        record = store.objects.get_json("experiments/toy/progress.json")
    store.objects.put_json("experiments/toy/progress.json", {**record, "started": "1"})
    state = read_state(store, "toy")
    assert state is not None
    assert (state.record["state"], state.state) == ("running", "dead")


def test_a_damaged_record_of_progress_says_nothing(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.objects.put("experiments/toy/progress.json", b'{"state": ')
    assert read_state(store, "toy") is None


def test_a_long_history_is_thinned_and_keeps_its_course() -> None:
    history = History()
    for beat in range(5000):
        history.add(5.0 * beat, 1e9 + 5 * beat, {"done": float(beat), "constant": 1.0})
    found = history.measurements()
    done = [(step, value) for name, value, step, _ in found if name == "done"]
    assert MAX_HISTORY / 2 <= len(done) <= MAX_HISTORY
    assert all(step == 5 * value for step, value in done)
    assert done[0] == (0, 0.0)
    assert done[-1][1] > 4900
    assert [value for name, value, _, _ in found if name == "constant"] == [1.0]


def rendered(state: RunState) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(status_text("toy", [StageStatus("train", 10, 4), StageStatus("retrain", 40, 25)], state, ["a note"]))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_what_status_shows() -> None:
    tally, _ = told()
    record = {**tally.snapshot(), "host": "[red]node", "pid": 7, "began": 0.0, "written": 0.0, "state": "running", "error": ""}
    text = rendered(RunState(record, 3.0))
    assert [cell.strip() for line in text.splitlines() if "retrain" in line and "│" in line for cell in line.split("│")[1:-1]] == [
        "retrain", "25", "40", "62 %", "5", "15", "2.5/s", "6 s",
    ]  # fmt: skip
    assert "running: process 7 on [red]node, last heartbeat 3 s ago" in text
    assert f"1 ProblemError; the first: {TASK.label}" in text
    assert "a note" in text
    assert "columns running" not in text
    assert "tuning, 1 of 2: a = 3. The columns running" in rendered(RunState({**record, "part": "tuning, 1 of 2: a = 3"}, 3.0))
    dead = rendered(RunState(record, 3000.0))
    assert "dead, or unable to reach the store" in dead
    assert "2.5/s" not in dead


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # MLflow's own models, with a newer SQLAlchemy
def test_status_of_a_run_from_its_store_alone_and_watched_to_its_end(tmp_path: Path) -> None:
    """The driver is watched from inside: when its first units end, somebody asks for the status."""
    said: list[dict[str, Any]] = []

    class Asks(NoProgress):
        def advance(self, units: int, statistics: Mapping[str, float]) -> None:
            del units, statistics
            if len(said) == 3:
                return
            said.append(json.loads(CliRunner().invoke(cli.app, ["status", "toy", "--store", str(tmp_path), "--json"]).output))

    fields: dict[str, Any] = {"methods": ["ntk-final/target", "random"], "seeds": 1, "deletion": {"fractions": [0.0, 0.1]}}
    fields["tracking"] = {"progress": True, "system_metrics": True}
    run = gr.run(experiment(**fields), store=str(tmp_path), executor=SerialExecutor(0), progress=Asks(), search_path=[str(ROOT)])
    assert {look["last_run"]["state"] for look in said} == {"running"}
    watched = CliRunner().invoke(cli.app, ["status", "toy", "--store", str(tmp_path), "--watch", "--every", "0.1"]).output
    assert "ended 0 s ago (process" in watched
    assert "finished: results are published" in watched

    manifest = run.manifest()
    assert manifest is not None
    link = manifest["tracking"]
    client = MlflowClient(tracking_uri=link["uri"])
    published = client.get_run(link["run_id"])
    assert published.data.metrics["system/progress.retrain.done"] == run.costs()["unique"]
    assert 0 < published.data.metrics["system/system_memory_usage_percentage"] <= 100
    assert manifest["times"] == {"began": published.info.start_time, "ended": published.info.end_time}
    assert client.get_run(link["run_id"]).data.tags["genrep.git_commit"] == manifest["provenance"]["git_commit"]


def test_lines_in_a_log_have_no_control_codes() -> None:
    console = Console(file=io.StringIO(), width=160)
    with ProgressLines(console) as lines:
        lines.stage("retrain", 100, 10)
        lines.advance(90, {})
        lines.message("warning: [bold]not bold")
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert text.splitlines()[0] == "retrain: 10 of 100 units done before"
    assert "[bold]not bold" in text
    assert not any(ord(character) < 32 and character != "\n" for character in text)


class Immediate(SerialExecutor):
    """Every unit ends at once, well."""

    def run(self, job: Job, units: Iterable[Unit], *, actors: bool = False) -> Generator[Outcome, None, None]:
        del job, actors
        for unit in units:
            yield Outcome(unit, {"models": 1.0}, 1)


def test_the_driver_holds_no_unit_that_is_not_in_flight(tmp_path: Path) -> None:
    """Five thousand retrainings without a hundred removed samples each: as objects some 5 MB, of which the walk keeps none."""
    prepared = prepare(experiment(), Store(str(tmp_path)), [str(ROOT)])
    tally, most = ProgressCounter(), 0
    runner = StageRunner(prepared, tally, Workers(prepared.plan.experiment, executor=Immediate(0)))
    count = 5_000
    tally.stage("retrain", count, 0)

    def units() -> Iterator[RetrainUnit]:
        nonlocal most
        for index in range(count):
            most = max(most, tally.counts["retrain"].running)
            yield RetrainUnit(0, (Retraining(f"{index:064x}", 0, "same", tuple(range(index, index + 100))),))

    runner._work(itertools.islice(units(), 100), actors=False)  # whatever is loaded once
    tracemalloc.start()
    runner._work(itertools.islice(units(), count - 100), actors=False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert tally.counts["retrain"].done == count
    assert most <= 1
    assert peak < 1_000_000


def other_machine(store: Store) -> dict[str, Any]:
    """The record of a run that goes on somewhere else."""
    with Heartbeat(ProgressCounter(), store, "toy"):
        record: dict[str, Any] = store.objects.get_json("experiments/toy/progress.json")
    return {**record, "machine": "another", "host": "another"}


def test_the_age_of_a_run_elsewhere_is_that_of_the_stores_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine's clock and the other one's say, and at once."""
    store, path = Store(str(tmp_path)), tmp_path / "experiments/toy/progress.json"
    record = other_machine(store)
    monkeypatch.setattr("genrep_dist.runner.heartbeat.time.sleep", lambda _: pytest.fail("it is watched"))
    for written in (0.0, time.time(), 4e9):
        store.objects.put_json("experiments/toy/progress.json", {**record, "written": written})
        assert read_state(store, "toy").state == "running"  # type: ignore[union-attr]
        os.utime(path, (0, time.time() - 61))
        state = read_state(store, "toy")
        assert state is not None
        assert (state.state, round(state.silent_seconds)) == ("dead", 61)
    assert not [name for name in store.objects.list("") if "access" in name]


def test_in_a_store_that_cannot_be_written_the_wall_clock_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    store.objects.put_json("experiments/toy/progress.json", {**other_machine(store), "written": time.time() - 100})

    def refused() -> float:
        raise StoreError("read only")

    monkeypatch.setattr(store.objects, "now", refused)
    monkeypatch.setattr("genrep_dist.runner.heartbeat.WATCH_SECONDS", 0.1)
    assert read_state(store, "toy").state == "dead"  # type: ignore[union-attr]


def broken(value: Any, depth: int) -> Iterator[Any]:
    """The value without one of its fields, or with one of another type, at every place down to ``depth``."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield {name: kept for name, kept in value.items() if name != key}
            for other in (None, "text", [3], float("inf"), *(broken(inner, depth - 1) if depth > 1 else ())):
                yield {**value, key: other}
    elif isinstance(value, list):
        yield from ([other] for one in value[:1] for other in (None, "text", {}, *broken(one, depth)))


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a finished run with a stopping rule, and with units in quarantine."""
    folder = tmp_path_factory.mktemp("observed")
    stop = {"half_width": 100.0, "min_seeds": 2, "max_seeds": 2}
    fields: dict[str, Any] = {"methods": ["random"], "deletion": {"fractions": [0.0, 0.1]}}
    declared = {name: value for name, value in experiment(**fields).model_dump(exclude_unset=True).items() if name != "seeds"}
    with pytest.MonkeyPatch.context() as patch:
        publish_tables_only(patch)
        gr.run(gr.Experiment.model_validate({**declared, "stop": stop}), store=str(folder), serial=True, search_path=[str(ROOT)])
    entry = {"unit": "a unit", "samples": "samples", "sample_ids": [1, 2], "attempts": 3, "error": "CrashError"}
    Store(str(folder)).objects.put_json("experiments/toy/quarantine.json", {"a": entry})
    return folder


@pytest.mark.parametrize(("name", "depth"), [("progress", 3), ("quarantine", 3), ("record", 1), ("choices", 3), ("manifest", 1)])
def test_no_record_ends_in_a_traceback(observed: Path, tmp_path: Path, name: str, depth: int) -> None:
    """Each field of each file that `genrep status` reads is missing, or of another type, under a checksum that fits."""
    folder = tmp_path / "store"
    shutil.copytree(observed, folder)
    store, console = Store(str(folder)), Console(file=io.StringIO())
    path = "experiments/toy/record.json" if name == "choices" else f"experiments/toy/{name}.json"
    if name == "manifest":
        (path,) = store.objects.list("experiments/toy/publications")
    elif name == "quarantine":
        store.objects.delete("results/toy/manifest.json")
    whole = store.objects.get_json(path)
    if name == "progress":  # the counts of all stages are alike
        whole["stages"] = {"train": whole["stages"]["train"]}
    changes = [{**whole, "choices": one} for one in broken(whole["choices"], depth)] if name == "choices" else broken(whole, depth)
    refused, tried = [], 0
    for changed in [None, [], "text", 3, *changes]:
        store.objects.put(path, seal_json(changed))
        for show in (lambda: status_record(str(folder), "toy"), lambda: show_status(console, str(folder), "toy")):
            tried += 1
            try:
                show()
            except GenRepError as error:
                refused.append(str(error))
    assert tried > 20
    assert len(refused) < tried
    assert all("toy" in text for text in refused)
    store.objects.put_json(path, whole)
    assert status_record(str(folder), "toy")["experiment"] == "toy"
