"""An S3 server that the tests start, which can be told to fail; and a proxy before it that cuts connections."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import obstore
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from obstore.store import S3Store
from werkzeug.serving import make_server

BUCKET = "bucket"
REGION = "us-east-1"
START = Callable[..., Any]


class S3Server:
    """moto's S3, on a port of this machine. ``fail_next`` makes it refuse; ``requests`` are methods and seconds, as they came."""

    def __init__(self) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._failures: list[tuple[str, str]] = []
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.port = self._server.server_port
        self.requests: list[tuple[str, float]] = []

    def fail_next(self, times: int, status: str, code: str, more: str = "") -> None:
        """Answer the next requests with an error; ``more`` is XML beside its code."""
        body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>as told</Message>{more}</Error>'
        self._failures = [(status, body)] * times

    def bucket(self, name: str = BUCKET) -> S3Store:
        """The test's own handle on a bucket."""
        return S3Store(
            name,
            endpoint=f"http://127.0.0.1:{self.port}",
            region=REGION,
            access_key_id="test",
            secret_access_key="test",
            client_options={"allow_http": True},
        )

    def environment(self) -> dict[str, str]:
        """What a process needs to find this server, and no other."""
        return {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": REGION,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ALLOW_HTTP": "true",
            "NO_PROXY": "127.0.0.1",
        }

    def files(self) -> dict[str, bytes]:
        """All objects of the bucket."""
        bucket = self.bucket()
        paths = [str(item["path"]) for batch in obstore.list(bucket) for item in batch]
        return {path: bytes(obstore.get(bucket, path).bytes()) for path in paths}

    def _answer(self, environ: dict[str, Any], start_response: START) -> Iterable[bytes]:
        self.requests.append((environ["REQUEST_METHOD"], time.monotonic()))
        if not self._failures:
            answer: Iterable[bytes] = self._moto(environ, start_response)
            return answer
        status, body = self._failures.pop()
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body.encode()]

    def _put(self, path: str) -> None:
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(f"PUT /{path} HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n".encode())
            assert b" 200 " in connection.recv(1000)

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[S3Server]:
        """A server with one empty bucket."""
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        server = cls()
        server._thread.start()
        try:
            server._put(BUCKET)
            yield server
        finally:
            server._server.shutdown()
            server._thread.join()
            server._server.server_close()


class CuttingProxy:
    """Passes bytes on to ``port``, and cuts a connection once it has sent ``cut_after`` bytes; the first ``cuts`` such connections."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.cut_after, self.cuts, self.cut = 0, 0, 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            threading.Thread(target=self._pass_on, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._pass_on, args=(server, client, False), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, upwards: bool) -> None:
        passed = 0
        try:
            while data := source.recv(2**16):
                if upwards and self.cut < self.cuts and passed + len(data) > self.cut_after:
                    self.cut += 1
                    target.sendall(data[: self.cut_after - passed])
                    break
                passed += len(data)
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
            finally:
                end.close()
