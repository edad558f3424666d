"""Where results came from: for the reader alone. It changes no number and no key."""

from __future__ import annotations

import functools
import getpass
import hashlib
import json
import os
import platform
import shlex
import site
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from genrep_dist.redaction import redact

UNKNOWN = "unknown"
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray for the entry point of a submitted job: its metadata, `job_submission_id` among them."""


def package_version() -> str:
    """The version of this package; "unknown" if it is not installed."""
    try:
        return version("genrep-dist")
    except PackageNotFoundError:  # run from its sources
        return UNKNOWN


def installation_digest() -> str:
    """sha256 of the version of Python, the names and versions of all installed packages, and the files of this one.

    What is computed from equal inputs is equal where this digest is. It is read in some hundredths of a second, and imports nothing.
    A process that has changed ``sys.path``, as the import of setuptools does, has the digest of a new process.
    """
    folders = site.getsitepackages()
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    if path := os.environ.get("PYTHONPATH"):
        folders += path.split(os.pathsep)
    installed: set[str] = set()
    for folder in folders:
        with suppress(OSError):  # it need not exist
            installed |= {name for name in os.listdir(folder or ".") if name.endswith(".dist-info")}
    return hashlib.sha256(repr((sys.version, sorted(installed), _files_digest())).encode()).hexdigest()


@functools.cache
def _files_digest() -> str:
    """sha256 of the names and contents of this package's files."""
    found = hashlib.sha256()
    package = Path(__file__).parent
    for path in sorted(path for path in package.rglob("*") if "__pycache__" not in path.parts and path.is_file()):
        found.update(repr((path.relative_to(package).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest())).encode())
    return found.hexdigest()


def provenance() -> dict[str, str]:
    """``submission_id`` of the Ray job ("none" outside one) and ``git_commit`` of the working directory.

    A job's working directory is a copy without `.git`: there the commit is what was submitted as the metadata `git_commit`. The
    commit ends in "-dirty" when tracked files were changed; it is "unknown" where there is none.
    """
    metadata = _job_metadata()
    return {"submission_id": metadata.get("job_submission_id", "none"), "git_commit": metadata.get("git_commit") or _git_commit()}


def user_name() -> str:
    """The user of this process; "unknown" where the machine has no name for it."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return UNKNOWN


def program_name() -> str:
    """The file name of the program that this process runs: "genrep", or that of a script."""
    name = Path(sys.argv[0]).name if sys.argv else ""
    return "genrep" if name in ("", "-c", "-m", "__main__.py") else name


def in_job() -> bool:
    """Whether this process is the entry point of a submitted Ray job."""
    return "job_submission_id" in _job_metadata()


def in_ray() -> bool:
    """Whether this process is the entry point of a submitted Ray job, or a worker of Ray."""
    return in_job() or bool(os.environ.get("RAY_JOB_ID"))


RUNTIME_ENV = "jobs/runtime_env.yaml"


def resume_command(started_as: Sequence[str] = ()) -> str:
    """The command, for a shell, that goes on with what this process does; ``started_as``: its own, by default as Python knows it.

    Passwords in addresses are hidden. Of a submitted job it is the submission: with the same `--address` (or RAY_API_SERVER_ADDRESS) as
    before. What starts runs in another way, as a batch system does, says how in GENREP_RESUME_COMMAND.
    """
    if told := os.environ.get("GENREP_RESUME_COMMAND"):
        return redact(told.strip())
    python, *arguments = map(redact, started_as or sys.orig_argv)
    if in_job():
        environment = ["--runtime-env", RUNTIME_ENV] if Path(RUNTIME_ENV).exists() else []
        return shlex.join(["ray", "job", "submit", "--working-dir", ".", *environment, "--", Path(python).name, *arguments])
    if arguments and Path(arguments[0]).name == "genrep":
        return shlex.join(["genrep", *arguments[1:]])
    return shlex.join([python, *arguments])


def _job_metadata() -> dict[str, str]:
    try:
        metadata = json.loads(os.environ[_JOB])["metadata"]
        return {str(key): redact(str(value)) for key, value in metadata.items()}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _git_commit() -> str:
    # The hash alone, even where a tag is near.
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return UNKNOWN
    return found.stdout.strip() if found.returncode == 0 and found.stdout.strip() else UNKNOWN


def processor_name() -> str:
    """The name of this machine's processor, or of its architecture where the system does not tell."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
