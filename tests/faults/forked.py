"""Drivers that start at once: they are forked from a process that has the imports."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from genrep_dist import cli
from tests.publication import publish_tables_only

CONTEXT = multiprocessing.get_context("forkserver")
# torch's optimizers import torch._dynamo when the first one is made.
CONTEXT.set_forkserver_preload(["torch._dynamo", "zarr", "matplotlib.figure", "genrep_dist.runner.run", "tests.faults.forked"])


class ForkedDriver:
    """``genrep`` with these arguments, in a process group of its own. Its output goes to the file ``output``."""

    def __init__(self, *arguments: str | Path, output: Path) -> None:
        self._output = output
        output.write_text("")
        self._process: BaseProcess = CONTEXT.Process(target=_drive, args=([str(argument) for argument in arguments], str(output)))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def runs(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        """SIGKILL to its process group."""
        os.killpg(self.pid, signal.SIGKILL)
        self._process.join()

    def finish(self, seconds: float = 300.0) -> None:
        """Wait for its end, which must be a success."""
        self._process.join(seconds)
        assert self._process.exitcode == 0, f"exit code {self._process.exitcode}: {self._output.read_text()[-5000:]}"


def _drive(arguments: list[str], output: str) -> None:
    os.setsid()
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    for number in (1, 2):
        os.dup2(file, number)
    publish_tables_only(pytest.MonkeyPatch())
    sys.argv = ["genrep", *arguments]
    cli.main()
