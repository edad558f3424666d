"""A head that goes while a driver attaches: Ray waits for it in code that nothing interrupts, and the process ends with our error."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import pytest

ATTACHING = """
import sys, time
from genrep_dist.executors import head_watch
from genrep_dist.executors.cluster_address import unreachable

head_watch.POLL_SECONDS, head_watch.GRACE_SECONDS = 0.05, 0.5
watch = head_watch.AttachWatch(sys.argv[1], unreachable(sys.argv[1], "--address", "its head went away while this driver attached"))
print("attaching", flush=True)
time.sleep(float(sys.argv[2]))
watch.close()
print("attached")
"""


@pytest.mark.parametrize("ray_notices", [False, True], ids=["Ray waits for minutes", "Ray raises an error itself"])
def test_a_head_that_goes_while_a_driver_attaches(ray_notices: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        command = [sys.executable, "-c", ATTACHING, address, "1.0" if ray_notices else "60"]
        driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert driver.stdout is not None
        assert driver.stdout.readline() == "attaching\n"
        connection, _ = listener.accept()
        if ray_notices:
            time.sleep(0.75)
        connection.close()
    began = time.monotonic()
    said, complaint = driver.communicate(timeout=30)
    assert time.monotonic() - began < 10
    if ray_notices:
        assert (driver.returncode, said, complaint) == (0, "attached\n", "")
        return
    assert driver.returncode == 1
    assert complaint.startswith("error: no Ray cluster can be reached\n  where: --address\n")
    assert f"{address}: its head went away while this driver attached" in complaint
    assert "what to do: start a cluster there" in complaint


def test_the_limits_are_below_ten_seconds() -> None:
    from genrep_dist.executors import head_watch

    assert head_watch.POLL_SECONDS + head_watch.GRACE_SECONDS < 10
