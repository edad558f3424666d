"""A Ray cluster of several nodes on this machine, in processes of its own, every one of which a test may kill.

Run as a program, this file is the cluster: ``ray.cluster_utils.Cluster``, told by lines on its input and answering by lines of JSON.
:class:`Nodes` is the test's handle on it, so that the process of the tests never holds a connection that dies with what is killed.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from tests.experiments import ROOT

OBJECT_STORE_BYTES = 80 * 2**20
BUSY = ("ray::run_unit", "ray::Worker.run")
"""Ray writes into a worker's title what it is at: a task's function, or an actor's method."""


class Nodes:
    """``environment`` is what a driver needs to attach, ``address`` where. The head has no CPUs: work runs on the other nodes."""

    def __init__(self, server: subprocess.Popen[str], environment: dict[str, str], folder: Path) -> None:
        self._server, self.environment, self._folder = server, environment, folder
        self._tell({})

    @classmethod
    @contextmanager
    def running(cls, cpus: Sequence[int] = (1, 1), **settings: str) -> Iterator[Nodes]:
        """A head and a node for each of ``cpus``; ``settings`` are Ray's own, without the ``RAY_`` before their names."""
        # A short name: Ray puts sockets below it, whose paths must be short.
        folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_TMPDIR": str(folder),
            "OMP_NUM_THREADS": "1",
            **{f"RAY_{name}": value for name, value in settings.items()},
        }
        command = [sys.executable, "-m", "tests.faults.nodes", *map(str, cpus)]
        log = (folder / "cluster.log").open("wb")
        server = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
        log.close()
        try:
            yield cls(server, environment, folder)
        finally:
            _end(server)
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def address(self) -> str:
        return str(self._state["address"])

    @property
    def raylets(self) -> list[int]:
        """Process ids, the head's first, of the nodes that were not taken away."""
        return [int(pid) for pid in self._state["raylets"]]

    def add(self, cpus: int = 1) -> None:
        self._tell({"add": cpus})

    def kill_node(self, raylet: int) -> None:
        """SIGKILL to a node's raylet and, with it, to everything that the node runs."""
        processes = [psutil.Process(raylet), *psutil.Process(raylet).children(recursive=True)]
        for process in processes:
            process.kill()
        self._tell({"forget": raylet})

    def kill_gcs(self) -> None:
        os.kill(int(self._state["gcs"]), signal.SIGKILL)

    def restart_gcs(self) -> None:
        """Start the head's GCS again, at the same address. It keeps nothing: that would take a Redis outside of the cluster."""
        self._tell({"restart": "gcs"})

    def busy(self, raylets: Sequence[int] | None = None) -> list[psutil.Process]:
        """Workers, of these nodes or of all, that have a unit in hand at this moment."""
        found = []
        for raylet in self.raylets if raylets is None else raylets:
            try:
                children = psutil.Process(raylet).children(recursive=True)
            except psutil.NoSuchProcess:
                continue
            found += [child for child in children if _title(child).startswith(BUSY)]
        return found

    def _tell(self, what: dict[str, Any]) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(what) + "\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        assert answer, (self._folder / "cluster.log").read_text()[-3000:]
        self._state = json.loads(answer)


def wait_until(condition: Any, seconds: float = 60.0, every: float = 0.01) -> Any:
    """What ``condition()`` gives once it is true; AssertionError when it does not become so."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(every)
    raise AssertionError(f"{condition} did not come true in {seconds} s")


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _end(server: subprocess.Popen[str]) -> None:
    """Everything that the cluster has started; it may be too hurt to end itself."""
    try:
        processes = psutil.Process(server.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        processes = []
    for process in (*processes, psutil.Process(server.pid)):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    server.communicate()
    psutil.wait_procs(processes, timeout=10)


def main(cpus: Sequence[int]) -> None:
    from ray.cluster_utils import Cluster

    common: dict[str, Any] = {"object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **common}, shutdown_at_exit=False)
    nodes = [cluster.head_node, *(cluster.add_node(num_cpus=count, wait=False, **common) for count in cpus)]
    cluster.wait_for_nodes()
    for line in sys.stdin:
        told = json.loads(line)
        if "add" in told:
            nodes.append(cluster.add_node(num_cpus=told["add"], **common))
        if "forget" in told:
            nodes = [node for node in nodes if _pid(node, "raylet") != told["forget"]]
        if "restart" in told:
            cluster.head_node.kill_gcs_server(check_alive=False)
            cluster.head_node.start_gcs_server()
        state = {"address": cluster.address, "gcs": _pid(nodes[0], "gcs_server"), "raylets": [_pid(node, "raylet") for node in nodes]}
        sys.stdout.write(json.dumps(state) + "\n")
        sys.stdout.flush()


def _pid(node: Any, name: str) -> int:
    return int(node.all_processes[name][0].process.pid)


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]])
