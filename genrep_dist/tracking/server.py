"""Addresses of tracking servers and databases, and a check that a server answers before the tracking library spends minutes on retries."""

from __future__ import annotations

import http.client
import shlex
import urllib.error
import urllib.request
from urllib.parse import urlsplit, urlunsplit

from genrep_dist.errors import StoreError
from genrep_dist.redaction import redact

TIMEOUT_SECONDS = 5.0


def check_server(tracking_uri: str, *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
    """Raise StoreError if ``tracking_uri`` is an http(s) address and nothing answers there. Any HTTP status counts as an answer."""
    if not is_server(tracking_uri):
        return
    try:
        with urllib.request.urlopen(f"{without_user(tracking_uri).rstrip('/')}/health", timeout=timeout_seconds):  # noqa: S310 - http(s)
            return
    except urllib.error.HTTPError as answer:
        answer.close()  # any status is an answer; the first real request shows whether it is the right server
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise StoreError(
            "the tracking server does not answer",
            where=redact(tracking_uri),
            expected=f"an answer within {timeout_seconds:g} s",
            # A password that is not quoted ends up in such a text.
            got=type(error).__name__ if "@" in tracking_uri else str(error),
            remedy="start it, or correct tracking.uri; the results are in the store, and running again only publishes them",
        ) from error


def is_server(tracking_uri: str) -> bool:
    return urlsplit(tracking_uri).scheme in ("http", "https")


def tracking_hint(tracking_uri: str, experiment_id: str, run_id: str) -> str:
    """How to open a published run, one line."""
    page = f"#/experiments/{experiment_id}/runs/{run_id}"
    if is_server(tracking_uri):
        return redact(f"{without_user(tracking_uri).rstrip('/')}/{page}")
    return f"mlflow ui --backend-store-uri {shlex.quote(redact(without_user(tracking_uri)))}, then http://127.0.0.1:5000/{page}"


def without_user(uri: str) -> str:
    """``uri`` without user name and password, for a request without them."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
