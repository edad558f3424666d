"""Where a store may lie: what its URI may say, how its bucket is opened, and what a refusal of the bucket means.

Credentials never pass through here: obstore takes them from the environment or from the provider (the role of the machine, pod or
job). A URI that carries any is refused, and no message repeats what a server or obstore said beyond a status and an error code, since
both may quote tokens and signed URLs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from obstore.exceptions import BaseError
from obstore.store import ObjectStore, from_url

from genrep_dist.errors import StoreError
from genrep_dist.store.disk import free_text

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL where they are needed)",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to a key file",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME, and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_KEY",
}
"""Schemes of buckets that may be a store, and what gives access to them."""

PATIENT: RetryConfig = {
    "max_retries": 10,
    "retry_timeout": timedelta(minutes=3),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=15), "base": 2},
}
"""While work runs: answers of 500 and above (SlowDown is a 503) and lost connections are tried again after 0.1, 0.2, 0.4 ... 15
seconds, with jitter, at most 10 times and for 3 minutes."""
IMPATIENT: RetryConfig = {
    "max_retries": 2,
    "retry_timeout": timedelta(seconds=10),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=1), "base": 2},
}
"""While somebody waits for a plan."""

_NO_CREDENTIALS = re.compile(r"169\.254\.169\.254|metadata\.google\.internal|/latest/(api/token|meta-data)")
"""Addresses that are asked for a role when the environment has no credentials."""

_NO_BUCKET = re.compile(r"<Code>(NoSuchBucket|ContainerNotFound)</Code>|The specified bucket does not exist")


def parse_uri(uri: str) -> Path | str:
    """A folder of this machine, or a bucket's URL without a slash at its end.

    Raises StoreError for another scheme, for a URL without a bucket, and for one that carries credentials or options.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme == "file":
        return Path(rest if separator else uri).expanduser().resolve()
    if scheme not in CREDENTIALS:
        raise StoreError(
            "a store cannot lie at such an address",
            where="--store",
            expected="a folder, file://, " + ", ".join(f"{known}://bucket/prefix" for known in CREDENTIALS),
            got=f"{scheme}://...",
        )
    # A secret key may hold a slash, so that all of the rest is looked at, and nothing of it is shown.
    if re.search(r"[@?#]", rest) or ":" in rest.partition("/")[0]:
        raise StoreError(
            "a store's address must not carry credentials or options",
            where="--store",
            expected=f"{scheme}://bucket/prefix, without any of @ ? # and without a colon in the bucket",
            got="an address that has one of them; it is not repeated here",
            remedy=CREDENTIALS[scheme],
        )
    if not rest.partition("/")[0]:
        raise StoreError("this address names no bucket", where="--store", expected=f"{scheme}://bucket/prefix", got=uri)
    return uri.rstrip("/")


def open_bucket(url: str, retries: RetryConfig = PATIENT) -> ObjectStore:
    """A handle on ``url``, of a scheme in CREDENTIALS. Asks nothing of the network; StoreError when settings are missing."""
    patient = retries is PATIENT
    options: ClientConfig = {
        "connect_timeout": "5s",
        # A block of 64 MiB has to pass within this.
        "timeout": "3min" if patient else "10s",
        # Given options hide what obstore would read of the environment.
        "allow_http": any(os.environ.get(f"{name}_ALLOW_HTTP", "").lower() in ("true", "1") for name in ("AWS", "GOOGLE", "AZURE")),
    }
    if patient:
        options["read_timeout"] = "30s"
    with explained(url):
        return from_url(url, client_options=options, retry_config=retries)


@contextmanager
def explained(uri: str, path: str = "") -> Iterator[None]:
    """Turn what obstore raises inside into StoreError, and a missing object into FileNotFoundError; both without secrets.

    The original error is not chained: its text has whole answers and signed URLs.
    """
    try:
        yield
    except (BaseError, FileNotFoundError) as error:
        where = f"{uri}/{path}".rstrip("/")
        if isinstance(error, FileNotFoundError) and not _NO_BUCKET.search(str(error)):
            raise FileNotFoundError(where) from None
        raise _refusal(str(error), uri, where) from None


def _refusal(text: str, uri: str, where: str) -> StoreError:
    scheme, _, rest = uri.partition("://")
    reason = _reason(text)
    if scheme not in CREDENTIALS:
        return StoreError(
            "the store's disk refuses",
            where=where,
            got=f"{reason}; {free_text(Path(uri))}",
            remedy="check the disk, its free space and permissions, and run the same command again: only what is missing is computed",
        )
    bucket = rest.partition("/")[0]
    if _NO_CREDENTIALS.search(text):
        return StoreError(f"no credentials for the bucket {bucket} were found", where=where, got=reason, remedy=CREDENTIALS[scheme])
    if reason.startswith(("401", "403")) or reason.endswith(("ExpiredToken", "InvalidToken")):
        return StoreError(
            f"the bucket {bucket} refuses access",
            where=where,
            expected="credentials that may list, read, write and delete there",
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


def _reason(text: str) -> str:
    """Status and error code of a server's answer, or what obstore says of a connection; never an answer's body, never a URL."""
    status = re.search(r"status code: (\d{3}[^:\n]*)", text)
    code = re.search(r"<Code>(\w+)</Code>", text)
    if status is not None:
        return status[1].strip() + (f", {code[1]}" if code is not None else "")
    return re.sub(r"\S+://\S+", "(a URL)", text.partition("\n")[0].rpartition(" - ")[2])[:300]
