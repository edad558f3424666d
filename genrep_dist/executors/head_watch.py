"""Detects the loss of a Ray cluster's head. Ray may then end the driver's process without saying what to do."""

from __future__ import annotations

import os
import socket
import threading
import time

from genrep_dist.errors import GenRepError
from genrep_dist.provenance import resume_command

POLL_SECONDS = 0.5
RENEW_SECONDS = 30.0
"""A new connection is opened this often. The head itself closes an idle connection after two minutes."""

GRACE_SECONDS = 5.0
"""Ray is given this time to notice a lost head itself while a driver attaches."""


class HeadWatch:
    """Keeps a connection to ``address`` open and writes one message to stderr when the head closes it or stops listening.

    This also detects a head that restarts at the same address, which has lost the cluster's state unless that is stored externally.
    A thread writes the message immediately: Ray may end the process from a thread of its own, without an exception or a handler.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="genrep head", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.is_set():
            if not self._is_alive():
                self._head_is_gone()
                return

    def _head_is_gone(self) -> None:
        os.write(2, self._message().encode())

    def _is_alive(self) -> bool:
        """Open one connection; whether it stayed open for RENEW_SECONDS, or until :meth:`close`."""
        host, _, port = self.address.rpartition(":")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=30) as connection:
                connection.setblocking(False)
                since = time.monotonic()
                while time.monotonic() - since < RENEW_SECONDS and not self._stop.wait(POLL_SECONDS):
                    try:
                        if not connection.recv(4096):
                            return False
                    except BlockingIOError:
                        continue
        except OSError:
            return False
        return True

    def _message(self) -> str:
        return (
            f"error: the head of the Ray cluster is gone\n  where: {self.address}\n"
            "  what to do: if its state is stored externally (Redis) and it restarts, this run continues. Otherwise Ray ends this driver "
            "after at most RAY_gcs_rpc_server_reconnect_timeout_s (60) seconds. Committed results are kept: start a cluster and run the "
            f"same command there to continue: {resume_command()}\n"
        )


class AttachWatch(HeadWatch):
    """Watches the head while this driver attaches to it. Ray would wait for minutes for a lost head, in code that nothing interrupts.

    If Ray has not raised an error some seconds after the loss, ``error`` is written and the process ends with exit code 1. Nothing is lost:
    a driver that attaches has computed nothing yet.
    """

    def __init__(self, address: str, error: GenRepError) -> None:
        self._error = error
        super().__init__(address)

    def _head_is_gone(self) -> None:
        if not self._stop.wait(GRACE_SECONDS):
            os.write(2, f"error: {self._error}\n".encode(errors="replace"))
            os._exit(1)
