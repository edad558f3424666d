"""Ctrl-C at a terminal: the whole sentence with the command that resumes, below the bars."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.experiments import ROOT, experiment_file


def test_ctrl_c_prints_what_is_kept_and_the_command_that_resumes(tmp_path: Path) -> None:
    toy = experiment_file(tmp_path / "toy.yaml", methods=["ntk-final/target", "random"], seeds=2000)
    command = [sys.executable, "-m", "genrep_dist", "run", str(toy), "--serial", "--force", "--store", str(tmp_path / "store")]
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    output, deadline, stopped = "", time.monotonic() + 120, False
    while time.monotonic() < deadline:
        if not select.select([ours], [], [], 0.2)[0]:
            continue
        try:
            read = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not read:
            break
        output += read.decode(errors="replace")
        if not stopped and re.search(r"[1-9]\d*/2000", output):
            process.send_signal(signal.SIGINT)
            stopped = True
    os.close(ours)
    assert process.wait(timeout=30) == 130, output[-2000:]
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output).replace("\r\n", "\n")
    found = re.search(r"^stopped by SIGINT; done and kept: train (\d+) of 2,000\nto resume: (.*)$", plain, re.MULTILINE)
    assert found is not None, plain[-2000:]
    assert int(found[1]) > 0
    assert found[2] == " ".join(command)
    assert "preparing" in plain
    assert re.search(r"train .* elapsed 0:\d\d, ETA \d", plain)
    assert "Traceback" not in plain
