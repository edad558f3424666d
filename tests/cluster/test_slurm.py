"""The Slurm script: without Slurm, with a `srun` that runs its command here."""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest

from tests.cluster import fake_ray
from tests.cluster.files import SBATCH
from tests.experiments import ROOT


@dataclass(frozen=True)
class Allocation:
    """A folder of commands before all others on PATH, and what a job finds in its environment."""

    bin: Path
    environment: dict[str, str]

    def command(self, name: str, text: str) -> None:
        """Put a shell script on PATH."""
        path = self.bin / name
        path.write_text(f"#!/usr/bin/env bash\n{text}\n")
        path.chmod(0o755)

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(SBATCH), *arguments],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        with Allocation(self.bin, self.environment | environment).popen(*arguments) as process:
            output, _ = process.communicate(timeout=300)
        return subprocess.CompletedProcess(arguments, process.returncode, output)

    def said(self, name: str) -> list[str]:
        """The lines that a command left in its file."""
        path = self.bin / f"{name}.said"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def allocation(tmp_path: Path) -> Allocation:
    """One node of two CPUs, at loopback; srun runs its command; scontrol and ray say what they were asked."""
    token = tmp_path / "auth_token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    found = Allocation(
        tmp_path / "bin",
        {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "RAY_", "GENREP_"))}
        | {
            "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "SLURM_JOB_ID": str(_job_with_a_free_port()),
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_CPUS_PER_TASK": "2",
        },
    )
    found.bin.mkdir()
    found.command("hostname", "echo 127.0.0.1 192.0.2.1")
    found.command("srun", f'printf \'%s\\n\' "$@" > {found.bin}/srun.said\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"')
    found.command("scontrol", f'echo "$@" >> {found.bin}/scontrol.said')
    found.command("python", f'exec {sys.executable} "$@"')
    return found


def _job_with_a_free_port() -> int:
    for job in range(os.getpid(), os.getpid() + 1000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", 20000 + job % 10000)) != 0:
                return job
    raise AssertionError("no port is free")


def test_the_script_is_sound() -> None:
    subprocess.run(["bash", "-n", str(SBATCH)], check=True)
    lines = SBATCH.read_text().splitlines()
    directives = [number for number, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert all(line.startswith("#") for line in lines[: directives[-1]]), "Slurm reads directives only before the first command"
    assert {"#SBATCH --requeue", "#SBATCH --open-mode=append", "#SBATCH --signal=B:USR1@120"} <= set(lines)


def test_shellcheck_has_nothing_against_it() -> None:
    shellcheck = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    result = subprocess.run([shellcheck, str(SBATCH)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_srun_and_ray_know_what_they_are_given(allocation: Allocation) -> None:
    from ray.scripts.scripts import start

    said = f'printf \'%s\\n\' "$@" > {allocation.bin}/ray.said; echo "$GENREP_RESUME_COMMAND" > {allocation.bin}/resume.said'
    allocation.command("ray", said)
    allocation.run("my experiment.yaml", "--store", "/shared/store")
    step = allocation.said("srun")
    assert step[: step.index("ray")] == ["--nodes=1", "--ntasks=1", "--cpus-per-task=2", "--kill-on-bad-exit=1"]
    given = allocation.said("ray")
    address = f"127.0.0.1:{20000 + int(allocation.environment['SLURM_JOB_ID']) % 10000}"
    assert given[:5] == ["symmetric-run", "--address", address, "--min-nodes", "1"]
    separator = given.index("--")
    known = {option for parameter in start.params for option in parameter.opts}
    assert {option for option in given[5:separator] if option.startswith("--")} <= known
    assert given[-3:] == ["my experiment.yaml", "--store", "/shared/store"], "arguments arrive as they were given"
    (resume,) = allocation.said("resume")
    assert shlex.split(resume) == ["sbatch", "cluster/slurm/genrep.sbatch", "my experiment.yaml", "--store", "/shared/store"]


@pytest.mark.parametrize(("ray", "code"), [("exit 0", 1), ("exit 3", 3)])
def test_only_the_drivers_success_is_success(allocation: Allocation, ray: str, code: int) -> None:
    """symmetric-run ends with 0 where Ray could not be started."""
    allocation.command("ray", ray)
    result = allocation.run("smoke", "--store", "/nowhere")
    assert result.returncode == code, result.stdout
    assert ("did not succeed" in result.stdout) == (code == 1)


def test_before_its_time_is_over_the_job_goes_back_into_the_queue(allocation: Allocation) -> None:
    assert _signalled(allocation) == [f"requeue {allocation.environment['SLURM_JOB_ID']}"]


def test_a_job_does_not_go_back_for_ever(allocation: Allocation) -> None:
    again = allocation.environment | {"SLURM_RESTART_COUNT": "2", "GENREP_MOST_RESTARTS": "2"}
    assert _signalled(Allocation(allocation.bin, again)) == []


def _signalled(allocation: Allocation) -> list[str]:
    """Send the signal that Slurm sends, end the step as Slurm would, and return what scontrol was asked for."""
    allocation.command("ray", f"touch {allocation.bin}/began\nexec sleep 60")
    allocation.command("scontrol", f'echo "$@" >> {allocation.bin}/scontrol.said\nkill -TERM "$(cat {allocation.bin}/step)"')
    allocation.command("srun", f'echo $$ > {allocation.bin}/step\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"')
    with allocation.popen("smoke", "--store", "/nowhere") as job:
        for _ in range(200):
            if (allocation.bin / "began").exists():
                break
            time.sleep(0.05)
        job.send_signal(signal.SIGUSR1)
        output, _ = job.communicate(timeout=30)
    assert job.returncode == 128 + signal.SIGTERM, output
    return allocation.said("scontrol")


def test_a_token_is_asked_for_and_must_be_private(allocation: Allocation, tmp_path: Path) -> None:
    allocation.command("ray", f"touch {allocation.bin}/ray.said")
    missing = allocation.run("smoke", RAY_AUTH_TOKEN_PATH=str(tmp_path / "none"))
    assert missing.returncode == 1
    assert "no token" in missing.stdout
    (tmp_path / "auth_token").chmod(0o640)
    open_to_all = allocation.run("smoke")
    assert open_to_all.returncode == 1
    assert "others can read" in open_to_all.stdout
    assert not (allocation.bin / "ray.said").exists()


@pytest.fixture
def real_ray(allocation: Allocation) -> Iterator[Allocation]:
    """The allocation with a real Ray, of which nothing is left afterwards."""
    job = allocation.environment["SLURM_JOB_ID"]
    mark = f"{job}-{secrets.token_hex(4)}"
    allocation.command("ray", f'exec {sys.executable} {fake_ray.__file__} {mark} "$@"')
    try:
        yield allocation
        for _ in range(100):  # what was ended is not gone at once
            if not fake_ray.marked(mark):
                break
            time.sleep(0.1)
        else:
            raise AssertionError(f"the script left a Ray behind: {fake_ray.marked(mark)}")
    finally:
        fake_ray.stop(mark)
        shutil.rmtree(f"/tmp/ray-{job}", ignore_errors=True)


@pytest.mark.ray
def test_an_experiment_runs_to_its_end(real_ray: Allocation, tmp_path: Path) -> None:
    store = tmp_path / "store"
    result = real_ray.run("smoke", "--store", str(store), "--set", "seeds=1", "--set", "test_points=1")
    assert result.returncode == 0, result.stdout
    assert "Running command on head node" in result.stdout, "symmetric-run's own words: it was the real one"
    summary = pl.read_parquet(store / "results/smoke/summary.parquet")
    assert summary["method"].to_list() == ["ntk-final/tracking", "ntk-final/surrogate", "tracincp", "random"]
    assert summary["num_seeds"].to_list() == [1] * 4
