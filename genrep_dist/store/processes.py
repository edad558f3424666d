"""Processes that hold something in a store: who they are, and whether one of this machine is gone."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

held_tokens: set[str] = set()
"""Tokens of the leases and claims that this process holds."""


def this_process() -> dict[str, Any]:
    """What a record says about the process that wrote it. It also has the ``token`` of what the process holds."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "machine": machine_id(), "started": start_time(pid)}


def is_gone(record: dict[str, Any]) -> bool:
    """Whether the process of a ``record`` was one of this machine that does not hold its lease or claim any more."""
    machine, pid = record.get("machine"), record.get("pid")
    if not machine or machine != machine_id() or not isinstance(pid, int):
        return False
    if pid == os.getpid() and record.get("started") == start_time(pid):
        return record.get("token") not in held_tokens
    return start_time(pid) != record.get("started")


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
