"""A password in an address is shown nowhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

import genrep_dist as gr
from genrep_dist.cli.main import app
from genrep_dist.errors import ConfigError, GenRepError
from genrep_dist.redaction import redact
from genrep_dist.runner.track import tracking_uri
from genrep_dist.store import Store
from genrep_dist.tracking.server import tracking_hint
from genrep_dist.workflow.prepare import prepare
from tests.experiments import ROOT, experiment_file
from tests.security.conftest import FIELDS, MODULE

MARKER = "WORDmarker"
ADDRESS = f"http://me:{MARKER}@127.0.0.1:9"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"to {ADDRESS}/x, now", "to http://***@127.0.0.1:9/x, now"),
        (f"postgresql+psycopg2://u:{MARKER}@db:5432/mlflow", "postgresql+psycopg2://***@db:5432/mlflow"),
        (f"http://{MARKER}@host", "http://***@host"),
        (f"http://me:{MARKER}/a@b@host/path", "http://***@host/path"),
        (f"https://host/?user=me&access_token={MARKER}&x=1", "https://host/?user=me&access_token=***&x=1"),
        (f"'{ADDRESS}' and 'http://u:{MARKER}@b'", "'http://***@127.0.0.1:9' and 'http://***@b'"),
        ("s3://bucket/path@v2 and http://host:80/a@b", "s3://bucket/path@v2 and http://host:80/a@b"),
        ("me@host: no address", "me@host: no address"),
    ],
)
def test_redact(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_errors_hide_passwords() -> None:
    error = GenRepError(f"at {ADDRESS}", where=ADDRESS, expected=ADDRESS, got=ADDRESS, remedy=ADDRESS)
    assert MARKER not in str(error) + repr(error) + repr(vars(error))
    with pytest.raises(ConfigError) as refused:
        gr.load_experiment("smoke", overrides=[f"tracking.uri=[{ADDRESS}"])
    assert MARKER not in str(refused.value)
    assert MARKER not in tracking_hint(f"{ADDRESS}/?token={MARKER}", "1", "2")


def test_no_command_and_no_file_shows_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address reaches the tracker, and nothing else."""
    (tmp_path / "secret_problem.py").write_text(MODULE)
    file = experiment_file(tmp_path / "experiment.yaml", "secret_problem:OwnProblem", **FIELDS)
    reached = []

    def reach(*arguments: Any, **_options: Any) -> SimpleNamespace:
        uri = tracking_uri(arguments[-1], Store(str(tmp_path / "store")))[0]
        reached.append(uri)
        return SimpleNamespace(tracking_uri=uri, experiment_id="1", run_id="2", hint=tracking_hint(uri, "1", "2"))

    monkeypatch.setattr("genrep_dist.runner.track.track", reach)
    there, store = ["--set", f"tracking.uri={ADDRESS}"], ["--store", str(tmp_path / "store")]
    shown = ""
    for arguments in (
        ["plan", str(file), "--no-probe", *there, *store],
        ["run", str(file), "--serial", *there, *store],
        ["run", str(file), "--serial", *there, *store],
        ["status", "toy", *store],
        ["status", "toy", "--json", *store],
        ["report", "toy", *store],
        ["doctor", "toy", "--json", *store],
        ["export", "toy", "--to", str(tmp_path / "to"), *store],
        ["export", "problem", str(file), "--to", str(tmp_path / "to"), "--serial", *there, *store],
        ["ledger", "compact", "toy", *store],
    ):
        found = CliRunner().invoke(app, arguments)
        assert found.exit_code == 0, (arguments, found.output, found.exception)
        shown += found.output
    assert reached == [ADDRESS]
    assert MARKER not in shown
    for path in [*(tmp_path / "store").rglob("*"), *(tmp_path / "to").rglob("*")]:
        assert not path.is_file() or MARKER.encode() not in path.read_bytes(), path
    loaded = gr.load_experiment(file, overrides=[f"tracking.uri={ADDRESS}"])
    prepared = prepare(loaded, Store(str(tmp_path / "store")), [str(tmp_path)])
    assert MARKER not in repr(loaded)
    assert MARKER not in repr(prepared.job.experiment.tracking.uri)


def test_the_line_that_resumes(tmp_path: Path) -> None:
    file = experiment_file(tmp_path / "experiment.yaml", "tests.toys:Blobs", **FIELDS)
    log = tmp_path / "log"
    with log.open("w") as out:
        command = [sys.executable, "-m", "genrep_dist", "run", str(file), "--serial", "--store", str(tmp_path / "store")]
        process = subprocess.Popen(
            [*command, "--set", f"tracking.uri={ADDRESS}", "--set", "seeds=40"],
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        until = time.monotonic() + 60
        while "train" not in log.read_text() and time.monotonic() < until:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    assert "to resume:" in log.read_text()
    assert "http://***@127.0.0.1:9" in log.read_text()
    assert MARKER not in log.read_text()
