"""Store URIs: parsing, opening buckets, and translating their errors.

Credentials are never handled here: obstore reads them from the environment or from the cloud provider. A URI with credentials is
refused. Error messages contain only a status and an error code, since a server's answer may quote tokens and signed URLs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from obstore.exceptions import BaseError
from obstore.store import ObjectStore, from_url

from genrep_dist.errors import StoreError
from genrep_dist.filesystem import FOLDER, what_is_at
from genrep_dist.provenance import in_ray
from genrep_dist.store.disk import free_space

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL if needed)",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to a key file",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME, and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_KEY",
}
"""The supported bucket schemes, and how to provide credentials for each."""

RETRIES: RetryConfig = {
    "max_retries": 2,
    "retry_timeout": timedelta(seconds=10),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=1), "base": 2},
}
"""Of a single request, such as one of the parts of a large file. :mod:`genrep_dist.store.retries` repeats whole operations."""

_NO_CREDENTIALS = re.compile(r"169\.254\.169\.254|metadata\.google\.internal|/latest/(api/token|meta-data)")
"""Cloud metadata services, which obstore queries when the environment has no credentials."""

_SOMETHING_ELSE = re.compile(r"Is a directory|Not a directory|symbolic links|system loop")

_NO_BUCKET = re.compile(r"<Code>(NoSuchBucket|ContainerNotFound)</Code>|The specified bucket does not exist")


def parse_uri(uri: str) -> Path | str:
    """A local folder, or a bucket's URL without a trailing slash.

    StoreError for an unknown scheme, for a URL without a bucket, and for a URL with credentials or options.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme == "file":
        return _local_folder(unquote(rest) if separator else uri)
    if scheme not in CREDENTIALS:
        raise StoreError(
            "the scheme of the store's address is not supported",
            where="--store",
            expected="a folder, file://, " + ", ".join(f"{known}://bucket/prefix" for known in CREDENTIALS),
            got=f"{scheme}://...",
        )
    # A secret key may contain a slash, so the whole rest is checked, and none of it is shown.
    if re.search(r"[@?#]", rest) or ":" in rest.partition("/")[0]:
        raise StoreError(
            "a store's address must not contain credentials or options",
            where="--store",
            expected=f"{scheme}://bucket/prefix, without any of @ ? # and without a colon in the bucket",
            got="an address with one of these characters (not shown, since it may contain a secret)",
            remedy=CREDENTIALS[scheme],
        )
    if not rest.partition("/")[0]:
        raise StoreError("the address names no bucket", where="--store", expected=f"{scheme}://bucket/prefix", got=uri)
    return uri.rstrip("/")


def _local_folder(name: str) -> Path:
    try:
        name.encode()  # Parquet and Zarr take paths in UTF-8 only
    except UnicodeEncodeError as error:
        raise StoreError(
            "the name of the store's folder is not UTF-8",
            where="--store",
            expected="a name in UTF-8, and a locale of UTF-8",
            got=ascii(name),
            remedy="set LC_ALL=C.UTF-8, or choose another --store",
        ) from error
    if in_ray() and not Path(name).expanduser().is_absolute():
        raise StoreError(
            "a relative --store in a Ray job would be a temporary folder of the cluster, which is deleted with the results",
            where="--store",
            expected="an absolute path that all nodes see, or a bucket (s3://, gs://, az://)",
            got=name,
            remedy="give the job --store /shared/store, or --store s3://bucket/prefix",
        )
    try:
        return Path(name).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise StoreError(
            "the store's folder cannot be used",
            where="--store",
            expected="a folder, existing or new",
            got=f"{name!r}: {what_is_at(name)}" if what_is_at(name) != FOLDER else f"{name!r}: {error}",
            remedy="choose another --store",
        ) from error


def open_bucket(url: str, *, is_waited_for: bool = False) -> ObjectStore:
    """A handle for ``url``, whose scheme is in CREDENTIALS. Sends no request. StoreError if settings are missing.

    ``is_waited_for``: whether a user waits for the answers, which then have to come within seconds.
    """
    options: ClientConfig = {
        "connect_timeout": "5s",
        # A block of 64 MiB must be transferred within this time.
        "timeout": "10s" if is_waited_for else "3min",
        # Explicit client options replace those that obstore reads from the environment.
        "allow_http": any(os.environ.get(f"{name}_ALLOW_HTTP", "").lower() in ("true", "1") for name in ("AWS", "GOOGLE", "AZURE")),
    }
    if not is_waited_for:
        options["read_timeout"] = "30s"
    with translated_errors(url):
        return from_url(url, client_options=options, retry_config=RETRIES)


@contextmanager
def translated_errors(uri: str, path: str = "") -> Iterator[None]:
    """Turns obstore's exceptions into StoreError, and a missing object into FileNotFoundError.

    The original exception is not chained: its text contains full server answers and signed URLs.
    """
    try:
        yield
    except (BaseError, FileNotFoundError) as error:
        where = f"{uri}/{path}".rstrip("/")
        if isinstance(error, FileNotFoundError) and not _NO_BUCKET.search(str(error)):
            raise FileNotFoundError(where) from None
        raise _store_error(str(error), uri, where) from None


def _store_error(text: str, uri: str, where: str) -> StoreError:
    scheme, _, rest = uri.partition("://")
    reason = failure_reason(text)
    if scheme not in CREDENTIALS and _SOMETHING_ELSE.search(reason):
        return StoreError(
            "something else is where the store has a file or a folder",
            where=where,
            expected="files and folders, and no links in a circle",
            got=f"{what_is_at(where)}: {reason}",
            remedy="move it out of the store and run the same command again: only what is missing is computed",
        )
    if scheme not in CREDENTIALS:
        return StoreError(
            "the store's disk reports an error",
            where=where,
            got=f"{reason}; {free_space(Path(uri))}",
            remedy="check the disk, its free space and permissions, and run the same command again: only what is missing is computed",
        )
    bucket = rest.partition("/")[0]
    if _NO_CREDENTIALS.search(text):
        return StoreError(f"no credentials for the bucket {bucket} were found", where=where, got=reason, remedy=CREDENTIALS[scheme])
    if reason.startswith(("401", "403")) or reason.endswith(("ExpiredToken", "InvalidToken")):
        return StoreError(
            f"the bucket {bucket} refuses access",
            where=where,
            expected="credentials with permission to list, read, write and delete",
            got=reason,
            remedy=CREDENTIALS[scheme],
        )
    if reason.startswith("404"):
        return StoreError(
            f"there is no bucket {bucket}", where=where, got=reason, remedy="create it, or correct --store, the region or the endpoint"
        )
    return StoreError(
        f"the bucket {bucket} cannot be reached or used",
        where=where,
        got=reason,
        remedy="check the network, the region and the endpoint, and run the same command again: only what is missing is computed",
    )


def failure_reason(text: str) -> str:
    """Status and error code of a server's answer, or obstore's text about the connection, without an answer's body and without URLs."""
    status = re.search(r"status code: (\d{3}[^:\n]*)", text)
    code = re.search(r"<Code>(\w+)</Code>", text)
    if status is not None:
        return status[1].strip() + (f", {code[1]}" if code is not None else "")
    return re.sub(r"\S+://\S+", "(a URL)", text.partition("\n")[0].rpartition(" - ")[2])[:300]
