"""Scripts of `jobs/`: errors are one message, and a stop says what is kept and how to go on."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from genrep_dist.cli.script import output_file, output_folder
from genrep_dist.errors import ConfigError
from tests.experiments import ROOT, experiment_file
from tests.toys import trainings

SCRIPT = """
import sys
import genrep_dist as gr
from genrep_dist.cli.script import run_script
run_script(lambda: gr.run(sys.argv[1], sys.argv[2], serial=True))
"""


def test_a_stopped_script_says_how_to_go_on_and_does_so(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{SCRIPT}")
    options = {"folder": str(tmp_path)}
    file = experiment_file(tmp_path / "toy.yaml", "tests.toys:Counting", options, methods=["ntk-final/target", "random"], seeds=2)
    (tmp_path / "slow").touch()
    command = [sys.executable, str(script), str(file), str(tmp_path / "store")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while trainings(tmp_path) < 1:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert errors.startswith("SIGTERM: stopping"), errors
    assert f"to resume: {' '.join(command)}" in errors
    assert "Traceback" not in errors
    (tmp_path / "slow").unlink()
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_an_error_of_a_script_is_one_message(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{SCRIPT}")
    done = subprocess.run([sys.executable, str(script), "nothing", str(tmp_path)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no such experiment")
    assert "Traceback" not in done.stderr


def test_a_place_that_cannot_be_written_to_is_refused_before_the_work(tmp_path: Path) -> None:
    assert output_folder(tmp_path / "a" / "b").is_dir()
    assert output_file(tmp_path / "c" / "results.md").parent.is_dir()
    (tmp_path / "file").touch()
    for make, place in ((output_folder, "file"), (output_folder, "file/below"), (output_file, "a"), (output_file, "file/below.md")):
        with pytest.raises(ConfigError, match="the results cannot be written") as error:
            make(tmp_path / place)
        assert "what to do: choose another place" in str(error.value)


def test_the_scripts_refuse_such_a_place_first(tmp_path: Path) -> None:
    for name, arguments in {"table1": ["mnist"], "sensitivity": ["size"], "reproduce": []}.items():
        place = tmp_path / ("folder" if name == "reproduce" else "file")
        place.mkdir() if name == "reproduce" else place.touch()
        command = [sys.executable, f"jobs/{name}.py", *arguments, "--to", str(place), "--store", str(tmp_path / "store")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 1, done.stderr
        assert done.stderr.startswith("error: the results cannot be written"), done.stderr
    assert not (tmp_path / "store").exists()
