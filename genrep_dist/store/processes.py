"""Which process has written a record, and whether it is still there, for records of the same machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def this_process() -> dict[str, Any]:
    """Fields that identify this process among all of all machines, also after its id is used again."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "machine": machine(), "started": start_time(pid)}


def is_gone(record: Mapping[str, Any]) -> bool:
    """Whether the process with the fields of :func:`this_process` was one of this machine and has ended."""
    pid = record.get("pid")
    return (
        bool(record.get("machine")) and record["machine"] == machine() and isinstance(pid, int) and start_time(pid) != record.get("started")
    )


def machine() -> str:
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
