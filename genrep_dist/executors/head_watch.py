"""A watch on the head of a Ray cluster. When it goes Ray may end the driver's process without a word on what to do."""

from __future__ import annotations

import os
import socket
import threading
import time

from genrep_dist.provenance import resume_command

POLL_SECONDS = 0.5
RENEW_SECONDS = 30.0
"""A connection that says nothing is closed by the head itself after two minutes; so long none is kept."""


class HeadWatch:
    """Keeps a connection to ``address`` and says so on stderr, once, when the other end closes it or nothing listens there any more.

    A head that is started again at the same address is noticed, too: it has forgotten the cluster unless it keeps its memory outside.
    It has to be said at once, from a thread: what follows may be the end of the process in one of Ray's own threads, where no exception
    is raised and no handler runs.
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
        while not self._over.is_set():
            if not self._stays():
                os.write(2, self._text().encode())
                return

    def _stays(self) -> bool:
        """Whether one connection could be opened, and stayed open for its time or until this watch is over."""
        host, _, port = self.address.rpartition(":")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=30) as connection:
                connection.setblocking(False)
                since = time.monotonic()
                while time.monotonic() - since < RENEW_SECONDS and not self._over.wait(POLL_SECONDS):
                    try:
                        if not connection.recv(4096):
                            return False
                    except BlockingIOError:
                        continue
        except OSError:
            return False
        return True

    def _text(self) -> str:
        return (
            f"error: the head of the Ray cluster has gone\n  where: {self.address}\n"
            "  what to do: if it keeps its memory outside (Redis) and comes back, this run goes on. Otherwise Ray ends this driver, at the "
            "latest after RAY_gcs_rpc_server_reconnect_timeout_s (60). What is committed is kept: start a cluster, and run the same "
            f"command there, which goes on from here: {resume_command()}\n"
        )
