from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from genrep_dist.provenance import in_job, installation_digest, provenance, resume_command

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.test"]
    return subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(JOB, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert provenance() == {"submission_id": "none", "git_commit": "unknown"}
    git(tmp_path, "init", "--quiet")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "--quiet", "--message", "a")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert provenance()["git_commit"] == commit
    (tmp_path / "a").write_text("2")
    assert provenance()["git_commit"] == f"{commit}-dirty"


@pytest.mark.parametrize("broken", ["", "{", "[]", "{}", '{"metadata": 3}', '{"metadata": null}'])
def test_what_is_no_description_of_a_job(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    monkeypatch.setenv(JOB, broken)
    assert not in_job()
    assert provenance()["submission_id"] == "none"


def test_a_job_has_its_submission_and_the_commit_that_was_submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(JOB, json.dumps({"metadata": {"job_submission_id": "raysubmit_1", "git_commit": "abc"}}))
    assert in_job()
    assert provenance() == {"submission_id": "raysubmit_1", "git_commit": "abc"}


def test_the_command_that_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(JOB, raising=False)
    monkeypatch.chdir(tmp_path)
    assert resume_command(["/venv/bin/python", "/venv/bin/genrep", "run", "a b", "--serial"]) == "genrep run 'a b' --serial"
    assert resume_command(["/venv/bin/python", "-m", "genrep_dist", "run", "x"]) == "/venv/bin/python -m genrep_dist run x"
    monkeypatch.setenv(JOB, json.dumps({"metadata": {"job_submission_id": "raysubmit_1"}}))
    started = ["/venv/bin/python", "-u", "jobs/evaluate.py", "demo", "--store", "s3://b/p"]
    assert resume_command(started) == "ray job submit --working-dir . -- python -u jobs/evaluate.py demo --store s3://b/p"
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/runtime_env.yaml").touch()
    monkeypatch.setenv("GENREP_RESUME_COMMAND", "sbatch x.sbatch demo ")
    assert resume_command(started) == "sbatch x.sbatch demo"
    monkeypatch.delenv("GENREP_RESUME_COMMAND")
    assert resume_command(started).startswith("ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python -u ")


def test_the_digest_of_the_installation_is_that_of_a_new_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a module has extended the search path, as setuptools does with the folder of its own packages, and where none has."""

    def of_a_new_process() -> str:
        code = "from genrep_dist.provenance import installation_digest; print(installation_digest())"
        return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "their_package-1.0.dist-info").mkdir()
    before = of_a_new_process()
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        assert installation_digest() == before
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    assert installation_digest() == of_a_new_process() != before
