"""A bucket that is busy, fails, or loses a connection in the middle of an answer: reads and idempotent writes are tried again."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import obstore
import pytest
from obstore.exceptions import BaseError

from genrep_dist.errors import StoreError
from genrep_dist.store import Store, retries
from genrep_dist.store.objects import Objects

PAGE = 20
Operation = Callable[[Objects], None]


class Bucket:
    """A bucket of S3, as far as this package uses one. ``faults`` are those of the next answers: "cut", "drop" or a status."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: list[str] = []
        self.always = ""
        self.requests: list[str] = []

    def fault(self, request: str) -> str:
        self.requests.append(request)
        return self.always or (self.faults.pop(0) if self.faults else "")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    bucket: Bucket

    def log_message(self, *arguments: object) -> None:
        pass

    def answer(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.bucket.fault(f"{self.command} {url.path}")
        if fault.isdigit():
            self.send(int(fault), b"<Error><Code>SlowDown</Code></Error>")
            return
        if fault == "drop":  # before anything is done
            self.close_connection = True
            return
        self.send(*self.respond(url.path.removeprefix("/bucket/"), parse_qs(url.query, keep_blank_values=True), body), cut=fault == "cut")

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = answer  # noqa: N815 - names of the base class

    def respond(self, path: str, query: dict[str, list[str]], body: bytes) -> tuple[int, bytes]:
        files, path = self.bucket.files, unquote(path)
        if "list-type" in query:
            return 200, self.listing(query["prefix"][0], query.get("start-after", [""])[0], query.get("continuation-token", [""])[0])
        if "delete" in query:
            found = re.findall("<Key>(.*?)</Key>", body.decode())
            for key in found:
                files.pop(key, None)
            deleted = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in found)
            return 200, f"<DeleteResult>{deleted}</DeleteResult>".encode()
        if self.command == "PUT":
            source = self.headers.get("x-amz-copy-source")
            if self.headers.get("If-None-Match") and path in files:
                return 412, b"<Error><Code>PreconditionFailed</Code></Error>"
            files[path] = files[unquote(source).removeprefix("bucket/").removeprefix("/bucket/")] if source else body
            return 200, b"<CopyObjectResult><ETag>x</ETag></CopyObjectResult>"
        if self.command == "DELETE":
            files.pop(path, None)
            return 204, b""
        return (200, files[path]) if path in files else (404, b"<Error><Code>NoSuchKey</Code></Error>")

    def listing(self, prefix: str, after: str, token: str) -> bytes:
        names = [name for name in sorted(self.bucket.files) if name.startswith(prefix) and name > max(after, token)]
        page = names[:PAGE]
        stamp = "<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>x</ETag><Size>1</Size>"
        items = "".join(f"<Contents><Key>{name}</Key>{stamp}</Contents>" for name in page)
        more = f"<NextContinuationToken>{page[-1]}</NextContinuationToken>" if len(names) > PAGE else ""
        return f"<ListBucketResult><IsTruncated>{str(bool(more)).lower()}</IsTruncated>{more}{items}</ListBucketResult>".encode()

    def send(self, status: int, body: bytes, *, cut: bool = False) -> None:
        self.send_response(status)
        self.send_header("ETag", '"x"')
        self.send_header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = self.close_connection or cut


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    opened = Bucket()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BucketHandler", (Handler,), {"bucket": opened}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    settings = {"ACCESS_KEY_ID": "t", "SECRET_ACCESS_KEY": "t", "REGION": "us-east-1", "ALLOW_HTTP": "true"}
    for name, value in {**settings, "ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.001)
    yield opened
    server.shutdown()
    server.server_close()
    thread.join()


def filled(place: Objects, bucket: Bucket) -> None:
    bucket.files |= {f"x/many/{number:03d}": b"1" for number in range(3 * PAGE)} | {"x/one": bytes(range(200)), "x/old": b"old"}


def put(place: Objects) -> None:
    place.put("new", b"new")
    assert place.get("new") == b"new"


def create(place: Objects) -> None:
    assert place.create("new", b"new")
    assert not place.create("old", b"new")
    assert place.get("old") == b"old"


def delete(place: Objects) -> None:
    place.delete("one")
    assert not place.exists("one")


def move(place: Objects) -> None:
    place.move("one", "other")
    assert place.list("")[-2:] == ["old", "other"]


def delete_folder(place: Objects) -> None:
    place.delete_folder("many")
    assert place.list("many") == []


def get(place: Objects) -> None:
    assert place.get("one") == bytes(range(200))


def exists(place: Objects) -> None:
    assert place.exists("one")
    assert not place.exists("none")


def list_all(place: Objects) -> None:
    assert place.list("many") == [f"many/{number:03d}" for number in range(3 * PAGE)]


def read_array(place: Objects) -> None:
    del place
    Store("s3://bucket/x").artifact("features", "ab" * 32).declared_chunks("values")


OPERATIONS = [get, exists, list_all, put, create, delete, move, delete_folder]


@pytest.mark.parametrize("fault", ["cut", "drop", "503", "500", "429"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_ends_well_when_the_bucket_does(bucket: Bucket, operation: Operation, fault: str) -> None:
    """obstore alone gives up after three requests, and at once when an answer is cut off."""
    place = Objects("s3://bucket/x")
    filled(place, bucket)
    bucket.faults = [fault] * 2 if fault != "cut" else [fault] * 5
    operation(place)


def test_more_faults_than_obstore_retries(bucket: Bucket) -> None:
    place = Objects("s3://bucket/x")
    bucket.faults = ["503"] * 5
    place.put("a", b"1")
    assert bucket.files == {"x/a": b"1"}


def test_a_listing_goes_on_where_it_was_cut(bucket: Bucket) -> None:
    place = Objects("s3://bucket/x")
    filled(place, bucket)
    bucket.faults = ["", "cut", "", "cut", "cut"]
    assert len(place.list("many")) == 3 * PAGE
    assert len(bucket.requests) <= 8


def test_arrays_too(bucket: Bucket) -> None:
    values = np.arange(60, dtype=np.float32).reshape(6, 10)
    artifact = Store("s3://bucket/x").artifact("features", "ab" * 32)
    bucket.faults = ["cut"] * 3
    artifact.create("values", values.shape, (3, 10), "float32", ("row", "column"))
    for start in (0, 3):
        bucket.faults = ["503"] * 4 + ["cut"]
        artifact.write_part(f"rows-{start}", "values", (start, 0), values[start : start + 3])
    artifact.commit({}, ["rows-0", "rows-3"])
    bucket.faults = ["cut"] * 6
    np.testing.assert_array_equal(artifact.read("values"), values)
    assert not bucket.faults


@pytest.mark.parametrize("operation", [get, list_all, put, delete_folder, read_array])
def test_patience_counts_once_an_operation(bucket: Bucket, monkeypatch: pytest.MonkeyPatch, operation: Operation) -> None:
    monkeypatch.setattr(retries, "PATIENCE_SECONDS", 1.0)
    place = Objects("s3://bucket/x")
    filled(place, bucket)
    bucket.always = "503"
    began = time.monotonic()
    with pytest.raises(StoreError, match="503"):
        operation(place)
    assert 0.9 < time.monotonic() - began < 5.0


@pytest.mark.parametrize("status", ["403", "400", "301", "501"])
def test_what_does_not_pass_is_not_tried_again(bucket: Bucket, status: str) -> None:
    bucket.always = status
    began = time.monotonic()
    with pytest.raises(StoreError):
        Objects("s3://bucket/x").put("a", b"1")
    assert len(bucket.requests) <= 3
    assert time.monotonic() - began < 2.0


def test_pauses_grow_to_their_limit_and_are_not_in_step(monkeypatch: pytest.MonkeyPatch, bucket: Bucket) -> None:
    """By a clock of the test: patience ends after three minutes, at fifteen seconds' distance at most."""
    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.2)
    error = None
    bucket.always = "503"
    try:
        obstore.get(Objects("s3://bucket/x").backend, "a")
    except BaseError as caught:
        error = caught
    assert error is not None
    series = []
    for _ in range(2):
        now = [0.0]
        waits = []
        with monkeypatch.context() as patch, suppress(BaseError):
            patch.setattr(time, "monotonic", partial(now.__getitem__, 0))
            pauses = retries._Pauses()
            while True:
                waits.append(pauses.after(error))
                now[0] += waits[-1]
        assert now[0] == pytest.approx(180)
        assert 0.1 <= waits[0] <= 0.2
        assert 7 < max(waits) <= 15
        assert len(waits) < 40
        series.append(waits)
    assert series[0][:6] != series[1][:6]
