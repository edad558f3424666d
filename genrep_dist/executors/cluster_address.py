"""Whether a Ray cluster answers at an address. This takes seconds; Ray itself tries for minutes, and gives no reason."""

from __future__ import annotations

import os
import socket
import threading

from genrep_dist.errors import ConfigError

CONNECT_SECONDS = 4.0
ANSWER_SECONDS = 3.0
LIMIT_SECONDS = 8.0
"""For everything, also the look-up of a host name, which has no time limit of its own."""

# Ray speaks gRPC, which is HTTP/2: both sides begin with a SETTINGS frame (type 4), the client's after this text.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_HEADER_BYTES = 9
_SETTINGS = 4


def declared_address(address: str | None) -> tuple[str, str | None]:
    """Where the address of a cluster was declared, and the address: ``address``, or RAY_ADDRESS, which Ray prefers to "auto"."""
    declared = os.environ.get("RAY_ADDRESS") if address in (None, "auto") else None
    return ("RAY_ADDRESS", declared) if declared else ("--address", address)


def check_form(address: str | None) -> None:
    """Raise ConfigError if what was declared is no address at all. Nothing is contacted."""
    where, wanted = declared_address(address)
    if wanted not in (None, "auto", "local"):
        parse_endpoint(str(wanted), where)


def parse_endpoint(address: str, where: str) -> tuple[str, int]:
    """Host and port of ``host:port`` or ``ray://host:port``. ConfigError for anything else."""
    scheme, separator, rest = address.partition("://")
    host, colon, port = (rest if separator else scheme).rpartition(":")
    if (separator and scheme != "ray") or not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        raise unreachable(address, where, "not an address of this form")
    return host.strip("[]"), int(port)


def check_cluster(address: str, where: str) -> tuple[str, int]:
    """Raise ConfigError if no Ray cluster answers at ``address`` within LIMIT_SECONDS; its host and port. ``where`` it was declared."""
    host, port = parse_endpoint(address, where)
    faults: list[str] = []
    thread = threading.Thread(target=lambda: faults.append(_fault(host, port)), name="genrep address", daemon=True)
    thread.start()
    thread.join(LIMIT_SECONDS)
    fault = faults[0] if faults else f"no answer within {LIMIT_SECONDS:g} seconds"
    if fault:
        raise unreachable(address, where, fault)
    return host, port


def _fault(host: str, port: int) -> str:
    """Why there is no Ray cluster; empty if one answers."""
    try:
        with socket.create_connection((host, port), timeout=CONNECT_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
                return ""  # such a server waits for a handshake
            connection.settimeout(ANSWER_SECONDS)
            connection.sendall(_PREFACE)
            answer = connection.recv(_HEADER_BYTES, socket.MSG_WAITALL)
    except TimeoutError:
        return "the host or the process there does not answer"
    except (OSError, UnicodeError) as error:
        return str(error)
    if len(answer) == _HEADER_BYTES and answer[3] == _SETTINGS:
        return ""
    return "another service listens there" if answer else "what listens there closes the connection"


def unreachable(address: str, where: str, fault: str) -> ConfigError:
    """The error of a cluster at ``address`` that cannot be used; ``where`` the address was declared, and why."""
    return ConfigError(
        "no Ray cluster can be reached",
        where=where,
        expected="the address of a running cluster: host:port (by default port 6379), ray://host:port or auto",
        got=f"{address}: {fault}",
        remedy="start a cluster there (ray start --head), or omit the address to work on this machine",
    )
