"""A store in a bucket: the same results as in a folder, failures that cost nothing, and no secret anywhere. And what a folder syncs."""

from __future__ import annotations

import io
import json
import logging
import os
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import genrep_dist as gr
from genrep_dist import cli
from genrep_dist.errors import StoreError
from genrep_dist.store import Store, retries
from genrep_dist.store.uris import RETRIES
from tests.experiments import ROOT, experiment, experiment_file
from tests.store.s3_server import BUCKET, CuttingProxy, S3Server
from tests.toys import trainings

pytestmark = pytest.mark.publishes

SECRET = "/".join(("markerwJalrXUtnFEMI", "K7MDENG"))
"""In two pieces, so that no scan of the sources takes it for a real one."""
KEY = "ab" * 32
BLOCK = np.arange(100_000, dtype=np.float32).reshape(100, 1000)


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with S3Server.running() as running, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ACCESS_KEY_ID", "AKIAMARKER")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{running.port}")
        patch.setenv("AWS_ALLOW_HTTP", "true")
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield running


@pytest.fixture
def proxy(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[CuttingProxy]:
    """A proxy before the server, through which every new handle goes."""
    opened = CuttingProxy(server.port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{opened.port}")
    yield opened
    opened.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "PATIENCE_SECONDS", 0.0)


@dataclass
class Finished:
    """One experiment, run into a folder and into a bucket by the command line; everything that was printed or logged."""

    folder: Path
    local: gr.Run
    remote: gr.Run
    said: str

    def call(self, *arguments: str) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            result = CliRunner().invoke(cli.app, list(arguments))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        self.said += result.output
        return result.output


@pytest.fixture(scope="module")
def finished(server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    folder = tmp_path_factory.mktemp("s3")
    (folder / "counts").mkdir()
    options = {"folder": str(folder / "counts")}
    experiment_file(folder / "toy.yaml", "tests.toys:Counting", options)
    local = gr.run(experiment("tests.toys:Counting", options), store=str(folder / "store"), serial=True, search_path=[str(ROOT)])
    logged = io.StringIO()
    handler, level = logging.StreamHandler(logged), logging.root.level
    logging.root.addHandler(handler)
    logging.root.setLevel(logging.DEBUG)
    try:
        done = Finished(folder, local, local, "")
        done.call("run", "toy.yaml", "--store", f"s3://{BUCKET}/runs/", "--serial")
        done.remote = gr.open_run(f"s3://{BUCKET}/runs", "toy")
        done.said += logged.getvalue()
        yield done
    finally:
        logging.root.removeHandler(handler)
        logging.root.setLevel(level)


# -- the whole walk -----------------------------------------------------------------------------------------------------------------


def test_the_same_bytes_as_in_a_folder(finished: Finished) -> None:
    for name in ("deletion", "summary", "points"):
        path = f"results/toy/{name}.parquet"
        assert finished.remote.store.objects.get(path) == finished.local.store.objects.get(path)
    np.testing.assert_array_equal(
        finished.remote.attributions("ntk-final/tracking", 1), finished.local.attributions("ntk-final/tracking", 1)
    )


def test_the_same_files_as_in_a_folder(finished: Finished, server: S3Server) -> None:
    """Ledger parts are named by bytes that hold seconds; MLflow's files lie where the process ran."""
    root = finished.folder / "store"
    ours = {path.removeprefix("runs/") for path in server.files() if path.startswith("runs/")}
    theirs = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    for start in ("artifacts", "data", "experiments", "results"):
        assert {path for path in ours if path.startswith(start)} == {path for path in theirs if path.startswith(start)}, start
    assert {path.partition("/")[0] for path in ours} == {"artifacts", "claims", "data", "experiments", "results", "ledger"}


def test_the_commands_on_a_bucket_and_a_resumption_that_trains_nothing(finished: Finished, tmp_path: Path) -> None:
    store = f"s3://{BUCKET}/runs"
    status = json.loads(finished.call("status", "toy", "--store", store, "--json"))
    assert status["finished"]
    finished.call("export", "toy", "--store", store, "--to", str(tmp_path / "plain"))
    exported = np.load(tmp_path / "plain" / "seed-0" / "ntk-final--tracking.npy")
    np.testing.assert_array_equal(exported, finished.local.attributions("ntk-final/tracking", 0))

    deletion = finished.remote.store.objects.get("results/toy/deletion.parquet")
    count = trainings(finished.folder / "counts")
    finished.remote.store.objects.delete("results/toy/manifest.json")
    assert not json.loads(finished.call("status", "toy", "--store", store, "--json"))["finished"]
    finished.call("ledger", "compact", "toy", "--store", store)
    assert len(finished.remote.store.ledger(finished.remote.plan.keys.training).parts()) == 1
    finished.call("run", "toy.yaml", "--store", store, "--serial")
    assert trainings(finished.folder / "counts") == count > 0
    assert finished.remote.store.objects.get("results/toy/deletion.parquet") == deletion


def test_the_secret_is_nowhere(finished: Finished, server: S3Server) -> None:
    """In no object of the bucket, no file that the runs left (MLflow's included), nothing printed or logged."""
    written = {path.name: path.read_bytes() for path in finished.folder.rglob("*") if path.is_file()}
    assert any(b"SQLite" in data[:20] for data in written.values())
    for name, data in {**server.files(), **written, "said": finished.said.encode()}.items():
        assert SECRET.encode() not in data, name
        assert b"AKIAMARKER" not in data, name


# -- addresses ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uri", ["foo://bucket/x", "http://host/x", "memory://", "://x"])
def test_an_unknown_scheme_lists_what_is_supported(uri: str) -> None:
    with pytest.raises(StoreError) as caught:
        Store(uri)
    assert all(known in str(caught.value) for known in ("a folder", "file://", "s3://", "gs://", "az://"))


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://AKIAMARKER:{SECRET}@bucket/x",
        f"s3://AKIAMARKER:{SECRET}",
        f"s3://bucket/x?aws_secret_access_key={SECRET}",
        f"s3://bucket/x#{SECRET}",
        f"gs://{SECRET}@bucket",
        f"foo://key:{SECRET}@bucket/x",
    ],
)
def test_an_address_with_credentials_is_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(StoreError) as caught:
        Store(uri)
    assert "marker" not in "".join(traceback.format_exception(caught.value)).lower().replace("akiamarker", "marker")


def test_an_address_without_a_bucket() -> None:
    with pytest.raises(StoreError, match="names no bucket"):
        Store("s3:///prefix")


# -- access, asked before work ------------------------------------------------------------------------------------------------------


def test_access_is_proved_with_few_requests_and_leaves_nothing(server: S3Server) -> None:
    files = server.files()
    before = len(server.requests)
    Store(f"s3://{BUCKET}/fresh").objects.check_access()
    assert [method for method, _ in server.requests[before:]] in (["GET", "PUT", "DELETE"], ["GET", "PUT", "POST"])
    assert server.files() == files


def test_a_missing_bucket_is_named(server: S3Server) -> None:
    absent = Store("s3://absent/runs")
    for ask in (absent.objects.check_access, lambda: absent.objects.put("a", b"1"), lambda: absent.objects.list("a")):
        with pytest.raises(StoreError, match=r"there is no bucket absent[\s\S]*404[\s\S]*create it"):
            ask()


@pytest.mark.parametrize(("status", "code"), [("403 Forbidden", "InvalidAccessKeyId"), ("400 Bad Request", "ExpiredToken")])
def test_bad_credentials_are_told_without_repeating_them(server: S3Server, status: str, code: str) -> None:
    server.fail_next(1, status, code, f"<AWSAccessKeyId>AKIAMARKER</AWSAccessKeyId><Token-0>{SECRET}</Token-0>")
    with pytest.raises(StoreError, match=f"bucket {BUCKET} [\\s\\S]*{code}") as caught:
        Store(f"s3://{BUCKET}/runs").objects.check_access()
    shown = "".join(traceback.format_exception(caught.value))
    assert "marker" not in shown.lower()
    assert "AWS_ACCESS_KEY_ID" in caught.value.remedy


@pytest.mark.usefixtures("server")
def test_no_credentials_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")  # a machine that has no role
    with pytest.raises(StoreError, match=rf"no credentials for the bucket {BUCKET}[\s\S]*AWS_ACCESS_KEY_ID"):
        Store(f"s3://{BUCKET}/runs").objects.check_access()


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_plan_names_the_missing_bucket(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.chdir(tmp_path)
    experiment_file(tmp_path / "toy.yaml")
    result = CliRunner().invoke(cli.app, [command, "toy.yaml", "--store", "s3://absent/runs"])
    assert isinstance(result.exception, StoreError)
    assert "there is no bucket absent" in str(result.exception)


# -- failures -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "code"), [("500 Internal Server Error", "InternalError"), ("503 Slow Down", "SlowDown")])
def test_servers_errors_are_tried_again_with_growing_pauses(server: S3Server, status: str, code: str) -> None:
    place = Store(f"s3://{BUCKET}/slow").objects
    before = len(server.requests)
    server.fail_next(3, status, code)
    place.put("a", b"1")
    times = [second for _, second in server.requests[before:]]
    assert len(times) == 4
    assert min(np.diff(times)) > 0.09
    server.fail_next(2, status, code)
    assert place.get("a") == b"1"
    server.fail_next(2, status, code)
    assert place.list("") == ["a"]


def test_patience_ends_before_credentials_do() -> None:
    """obstore neither signs nor authorises again while it retries: five minutes are its bound."""
    assert retries.PATIENCE_SECONDS == 180
    assert RETRIES["retry_timeout"].total_seconds() <= 10


@pytest.mark.usefixtures("impatient")
def test_when_patience_ends_the_bucket_is_named(server: S3Server) -> None:
    place = Store(f"s3://{BUCKET}/slow").objects
    server.fail_next(3, "503 Slow Down", "SlowDown")
    with pytest.raises(StoreError, match=rf"bucket {BUCKET} cannot be reached[\s\S]*503[\s\S]*SlowDown[\s\S]*run the same command again"):
        place.put("a", b"1")


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("size", [300_000, 12 * 2**20], ids=["one request", "several parts"])
def test_a_put_that_is_cut_off_leaves_what_was_there(server: S3Server, proxy: CuttingProxy, size: int) -> None:
    place = Store(f"s3://{BUCKET}/cut-{size}").objects
    place.put("a", b"old")
    files = server.files()
    proxy.cut_after, proxy.cuts = min(size // 2, 3 * 2**20), 1000
    for path in ("a", "b"):
        with pytest.raises(StoreError, match=f"bucket {BUCKET} cannot be reached"):
            place.put(path, bytes(size))
    assert proxy.cut >= 2 * (1 + RETRIES["max_retries"])
    assert server.files() == files
    proxy.cuts = 0
    place.put("a", bytes(size))
    assert place.get("a") == bytes(size)


def test_a_connection_that_is_lost_once_is_made_again(proxy: CuttingProxy) -> None:
    place = Store(f"s3://{BUCKET}/once").objects
    proxy.cut_after, proxy.cuts = 100_000, 1
    place.put("a", BLOCK.tobytes())
    assert proxy.cut == 1
    assert place.get("a") == BLOCK.tobytes()


@pytest.mark.usefixtures("impatient")
def test_a_block_that_is_cut_off_is_neither_recorded_nor_committed(proxy: CuttingProxy) -> None:
    artifact = Store(f"s3://{BUCKET}/block").artifact("features", KEY)
    artifact.create("features", BLOCK.shape, BLOCK.shape, "float32", ("train", "feature"))
    proxy.cut_after, proxy.cuts = 100_000, 1000
    with pytest.raises(StoreError, match="cannot be reached"):
        artifact.write_part("rows-0", "features", (0, 0), BLOCK)
    proxy.cuts = 0
    assert artifact.parts_done() == set()
    with pytest.raises(StoreError, match="1 missing"):
        artifact.commit({}, ["rows-0"])
    artifact.write_part("rows-0", "features", (0, 0), BLOCK)
    artifact.commit({}, ["rows-0"])
    np.testing.assert_array_equal(artifact.read("features"), BLOCK)
