"""A watch on the head of a Ray cluster. When it is gone for good Ray ends the driver's process without a word on what to do."""

from __future__ import annotations

import os
import socket
import threading

from genrep_dist.provenance import resume_command

POLL_SECONDS = 0.5
SILENT_SECONDS = 2.0
RAY_GIVES_UP = "RAY_gcs_rpc_server_reconnect_timeout_s"


class HeadWatch:
    """Tries, from a thread of its own, whether anything listens at ``address``; says so on stderr, once, when nothing does.

    It has to be said before Ray gives up, which after a minute ends the process from its own threads: no exception is raised, and
    no handler runs.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="genrep head", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        silent = 0.0
        while not self._over.wait(POLL_SECONDS):
            silent = 0.0 if self._answers() else silent + POLL_SECONDS
            if silent >= SILENT_SECONDS:
                os.write(2, self._text().encode())
                return

    def _answers(self) -> bool:
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except OSError:
            return False
        return True

    def _text(self) -> str:
        seconds = os.environ.get(RAY_GIVES_UP, "60")
        return (
            f"error: the head of the Ray cluster does not answer any more\n  where: {self.address}\n"
            f"  what to do: if it stays away, Ray ends this driver after {seconds} seconds. What is committed is kept: start a cluster, "
            f"and run the same command there, which goes on from here: {resume_command()}\n"
        )
