"""`ray` for the Slurm test: the real one, kept away from all other Rays of this machine.

`ray symmetric-run` refuses a machine on which any Ray runs, and in the end it stops all that it finds. Here it finds only its own:
what `start` brings up carries a mark in its environment, and `stop` ends what carries that mark.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import psutil

MARK = "GENREP_TEST_RAY"


def marked(mark: str) -> list[psutil.Process]:
    """The processes that carry the mark, and their children: some write their title over their environment."""
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found |= {process, *process.children(recursive=True)}
        except psutil.Error:
            continue
    return sorted(found, key=lambda process: process.pid)


def stop(mark: str) -> None:
    """End what carries the mark: politely, then not."""
    processes = marked(mark)
    for process in processes:
        try:
            process.terminate()
        except psutil.NoSuchProcess:
            continue
    for process in psutil.wait_procs(processes, timeout=10)[1]:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def start(arguments: list[str], mark: str) -> None:
    """The real `ray start`, without a dashboard, its agent on a port that is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    real = str(Path(sys.executable).parent / "ray")
    more = ["--include-dashboard=false", f"--dashboard-agent-listen-port={port}"]
    os.execve(real, [real, "start", *arguments, *more], os.environ | {MARK: mark})


def symmetric_run(arguments: list[str]) -> None:
    """The real one, which does not look for other Rays."""
    from ray.scripts import symmetric_run as module

    module.check_ray_already_started = lambda: False
    sys.argv = ["ray", "symmetric-run", *arguments]  # it reads them from here
    module.symmetric_run.main(args=arguments)


if __name__ == "__main__":
    _, own_mark, command, *given = sys.argv
    if command == "start":
        start(given, own_mark)
    elif command == "stop":
        stop(own_mark)
    else:
        symmetric_run(given)
