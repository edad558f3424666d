"""What every command has: how much it says, where, its exit codes, and completion in shells."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from genrep_dist.cli.display import clock_text, hours_text
from genrep_dist.cli.progress import ProgressBars, ProgressLines, times_text
from genrep_dist.cli.status import wait_for_record
from genrep_dist.runner.pace import MIN_EVENTS, Pace
from genrep_dist.runner.progress import ProgressCounter
from genrep_dist.store import Store
from tests.cli.calls import FEW, Genrep, files_below
from tests.experiments import ROOT, experiment_file


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return experiment_file(tmp_path / "toy.yaml", **FEW)


def test_quiet_prints_the_table_and_the_log_has_the_rest(genrep: Genrep, toy: Path, tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    ended = genrep("run", toy, "--store", tmp_path / "store", "--quiet", "--log-file", log)
    assert ended.code == 0
    assert "units" not in ended.output
    assert "preparing" not in ended.output
    assert "ntk-final/target" in ended.output
    lines = log.read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in lines)
    text = "\n".join(lines)
    assert re.search(r"about \d+ s of work: it is done in this process; --ray", text)
    assert "starting Ray" not in text
    for words in ("started: genrep run", "preparing ...", "train: 0 of 2 units", "retrain: ", "publishing ..."):
        assert words in text

    again = genrep("run", toy, "--serial", "--store", tmp_path / "store", "--json", "--log-file", log)
    assert {row["method"] for row in again.json()["metrics"]} == set(FEW["methods"]), "progress is not on stdout"
    assert "nothing was computed" in again.error
    assert log.read_text().startswith(text), "the log is appended to"
    listed = genrep("report", "toy", "--store", tmp_path / "store", "--json").json()
    assert listed["metrics"] == again.json()["metrics"]
    assert any(path.endswith("/report.html") for path in listed["files"])


def test_an_error_is_logged_with_its_traceback_and_printed_without(genrep: Genrep, tmp_path: Path) -> None:
    log = tmp_path / "errors.log"
    for option, shown in (("--log-file", False), ("--verbose", True)):
        ended = genrep("run", tmp_path / "no.yaml", option, *([log] if option == "--log-file" else []))
        assert ended.code == 1
        assert "error: no such experiment" in ended.error
        assert ("Traceback" in ended.error) is shown
    assert "Traceback" in log.read_text()
    assert "error: no such experiment" in log.read_text()
    assert genrep("run", tmp_path / "no.yaml").error.count("\n") < 10, "one error's options are not the next one's"


def test_a_dry_run_computes_nothing(genrep: Genrep, toy: Path, tmp_path: Path) -> None:
    ended = genrep("run", toy, "--store", tmp_path / "store", "--dry-run", "--json")
    assert ended.json()["experiment"] == "toy"
    assert files_below(tmp_path / "store") == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_declared_gpu_that_is_not_here_is_refused_before_any_work(
    genrep: Genrep, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [toy, "--store", tmp_path / "store", "--set", "resources.device=cuda"]
    for command, *options in (("run",), ("run", "--serial"), ("run", "--ray"), ("plan",)):
        ended = genrep(command, *arguments, *options)
        assert ended.code == 1
        assert re.search(r"error: no CUDA device here\s+where: resources.device", ended.error)
        assert "train:" not in ended.output + ended.error
    # The nodes of a cluster have their own devices. How fast they are cannot be measured here.
    nodes = [{"CPU": 8.0, "GPU": 2.0, "memory": 2.0**36}]
    monkeypatch.setattr("genrep_dist.executors.ray_executor.cluster_nodes", lambda address: nodes)
    planned = genrep("plan", *arguments, "--address", "auto", "--json").json()
    assert planned["cost"] is None
    assert planned["workers"] == 2


def test_exit_codes_are_those_of_the_help(genrep: Genrep, tmp_path: Path) -> None:
    helped = genrep("--help")
    assert "Exit codes: 0 success; 1 an error" in helped.output
    assert (helped.code, genrep("list", "--store", tmp_path).code) == (0, 0)
    assert genrep("status", "x", "--store", tmp_path).code == 1
    assert genrep("run").code == 2
    assert genrep("list", "-q", "-v", "--store", tmp_path).code == 2
    assert genrep("run", "smoke", "--serial", "--address", "auto").code == 2
    assert genrep("run", "smoke", "--serial", "--ray").code == 2


def test_light_commands_import_no_torch(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    calls = [["--version"], ["completion", "bash"], ["list", "--store", "store"], ["du", "--store", "store"], ["gc", "--help"]]
    code = (
        "import sys; from typer.testing import CliRunner; from genrep_dist.cli import app\n"
        f"for call in {calls}: assert CliRunner().invoke(app, call).exit_code == 0, call\n"
        "print([m for m in ('torch', 'ray', 'mlflow', 'sklearn') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    assert ended.stdout.strip() == "[]"


def test_a_shell_completes_commands_options_and_names(tmp_path: Path) -> None:
    bash, command = shutil.which("bash"), Path(sys.executable).with_name("genrep")
    if bash is None or not command.exists():
        pytest.skip("needs bash, and the console script beside the interpreter")
    (tmp_path / "store/experiments/trial").mkdir(parents=True)
    (tmp_path / "store/experiments/trial/record.json").touch()
    (tmp_path / "mine.yaml").touch()
    script = (
        "source <(genrep completion bash)\n"
        'words() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _genrep_completion; echo "${COMPREPLY[*]}"; }\n'
        "words genrep rep; words genrep run --retr; words genrep status t; words genrep run mi"
    )
    environment = {**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([bash, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    assert ended.stdout.split("\n")[:3] == ["report", "--retry-failed", "trial"]
    assert "mine.yaml" in ended.stdout
    assert "mislabel" in ended.stdout


def test_watching_waits_for_a_run_that_has_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, waits = Store(str(tmp_path)), []

    def begin(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            store.objects.put_json("experiments/soon/record.json", {})

    monkeypatch.setattr("genrep_dist.cli.status.time.sleep", begin)
    console = Console(file=io.StringIO(), width=160)
    wait_for_record(console, str(tmp_path), "soon", 0.5)
    wait_for_record(console, str(tmp_path), "soon", 0.5)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == f"waiting for soon to begin in {tmp_path}; Ctrl-C ends this\n"
    assert waits == [0.5] * 3


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_rate_forgets_a_slow_start() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert (pace.rate, pace.seconds_left(5)) == (0.0, None)
    clock.now += 30  # until the workers have started
    for _ in range(10):
        pace.add(1)
        clock.now += 1
    assert pace.rate == pytest.approx(10 / 39)
    for _ in range(120):
        pace.add(1)
        clock.now += 1
    assert pace.rate == pytest.approx(1, rel=0.02)
    assert pace.seconds_left(60) == pytest.approx(60, rel=0.03)
    clock.now += 10
    assert pace.seconds_left(60) == pytest.approx(50, rel=0.05), "time goes on between two units"


def test_the_rate_of_long_units_is_of_several() -> None:
    clock = Clock()
    pace = Pace(clock)
    for _ in range(2 * MIN_EVENTS):
        clock.now += 300
        pace.add(2)
    assert pace.rate == pytest.approx(2 / 300)
    assert pace.elapsed == 2 * MIN_EVENTS * 300


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (20.4, "0:20"), (130, "2:10"), (3599.6, "1:00:00"), (3675, "1:01:15"), (90_000, "25:00:00")]
)
def test_times_are_written_as_on_a_clock(seconds: float, text: str) -> None:
    assert clock_text(seconds) == text
    assert times_text(20, seconds or None) == ("elapsed 0:20" if not seconds else f"elapsed 0:20, ETA {text}")


@pytest.mark.parametrize(
    ("hours", "text"), [(6.5e-8, "under 0.01"), (0.0, "under 0.01"), (0.0123, "0.012"), (0.5, "0.5"), (1234.56, "1,234.6")]
)
def test_hours_have_no_exponent(hours: float, text: str) -> None:
    assert hours_text(hours) == text


def test_steps_and_stages_at_a_terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("genrep_dist.cli.progress.time.monotonic", clock)
    console = Console(file=io.StringIO(), width=80, force_terminal=True, _environ={"TERM": "xterm"})
    with ProgressBars(console) as bars:
        counter = ProgressCounter(bars)
        counter.step("starting Ray")
        counter.stage("retrain", 123_456, 100_000)
        clock.now += 100
        counter.advance(3_456, {})
        counter.step("publishing")
    assert isinstance(console.file, io.StringIO)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue()).splitlines()
    last = [line.rstrip() for line in shown[-3:]]
    assert [line[:12].rstrip() for line in last] == ["starting Ray", "retrain", "publishing"]
    assert "103456/123456" in last[1]
    assert last[1].endswith("34.6/s elapsed 0:00, ETA 9:39")
    assert "ETA" not in last[0] + last[2]
    assert all(len(line) <= 80 and "…" not in line for line in last)


def test_lines_of_a_log_have_elapsed_time_and_eta(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    clock = Clock()
    monkeypatch.setattr("genrep_dist.cli.progress.time.monotonic", clock)
    lines = ProgressLines(write=written.append)
    lines.step("preparing")
    lines.step("starting Ray")
    clock.now += 5.25
    lines.stage("retrain", 100, 10)
    for _ in range(9):
        clock.now += 4
        lines.advance(10, {"seconds": 1.0})
    assert written[:4] == ["preparing ...", "starting Ray ...", "starting Ray: done, elapsed 5.2 s", "retrain: 10 of 100 units done before"]
    assert re.fullmatch(r"retrain: 40 of 100 units, 2\.5/s, elapsed 0:12, ETA 0:24", written[4])
    assert re.fullmatch(r"retrain: 100 of 100 units, 2\.5/s, elapsed 0:36", written[-1])
    assert len(written) == 7, "a line every ten seconds"


def test_every_table_has_json(genrep: Genrep) -> None:
    listed = genrep("data", "list", "--json").json()
    assert {"name", "what", "source", "cached", "path"} == set(listed[0])
    (method,) = genrep("methods", "tracincp", "--json").json()
    assert "TracInCP" in method["source"]
