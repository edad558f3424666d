"""Which process has written a record, and whether it is still there, for records of the same machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

held_tokens: set[str] = set()
"""Tokens of the leases and claims that this process holds."""


def this_process() -> dict[str, Any]:
    """Fields that identify this process among all of all machines, also after its id is used again."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "machine": machine_id(), "started": start_time(pid)}


def is_gone(record: Mapping[str, Any]) -> bool:
    """Whether the process with the fields of :func:`this_process` was one of this machine and has ended."""
    pid = record.get("pid")
    return is_of_this_machine(record) and isinstance(pid, int) and start_time(pid) != record.get("started")


def is_of_this_machine(record: Mapping[str, Any]) -> bool:
    """Whether a process with the fields of :func:`this_process` was one of this machine."""
    return bool(record.get("machine")) and record["machine"] == machine_id()


def has_let_go(record: Mapping[str, Any]) -> bool:
    """Whether the process of a record with a ``token`` has ended, or is this one and holds the token's lease or claim no more."""
    mine = this_process()
    if mine["machine"] and all(record.get(name) == mine[name] for name in ("machine", "pid", "started")):
        return record.get("token") not in held_tokens
    return is_gone(record)


def machine_id() -> str:
    """The boot id of the kernel and the namespace of process ids; empty if the system does not provide them."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def start_time(pid: int) -> str:
    """Start time of a process, in clock ticks since boot; empty if there is no such process, or it is a zombie."""
    try:
        # The process name, in brackets, may contain any character.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]
