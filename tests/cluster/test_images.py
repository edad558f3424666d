"""One image, one version of Ray, everywhere; and what the Dockerfile must keep."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.cluster.files import CLUSTER, LAUNCHERS, RAYCLUSTER, RAYJOB, cluster_spec, image, load, pins, pod_specs, project
from tests.experiments import ROOT

DOCKERFILE = (CLUSTER / "Dockerfile").read_text()
INSTRUCTIONS = re.findall(r"^([A-Z]+) ((?:.*\\\n)*.*)$", DOCKERFILE, flags=re.MULTILINE)


@pytest.mark.parametrize("path", [RAYJOB, RAYCLUSTER], ids=lambda path: path.stem)
def test_manifests_name_the_image_and_its_ray(path: Path) -> None:
    assert {pod["containers"][0]["image"] for pod in pod_specs(path)} == {image()}
    assert cluster_spec(path)["rayVersion"] == pins()["ray"]


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.stem)
def test_launchers_name_the_image(path: Path) -> None:
    assert load(path)["docker"]["image"] == image()


def test_no_other_tag_stands_anywhere() -> None:
    documents = [*CLUSTER.rglob("*"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    tags = {tag for path in documents if path.is_file() for tag in re.findall(r"genrep-dist:[0-9][\w.-]*\w", path.read_text())}
    assert tags == {image()}


def test_every_dependency_is_pinned_within_its_range() -> None:
    for line in project()["dependencies"]:
        requirement = Requirement(line)
        pin = pins().get(canonicalize_name(requirement.name))
        assert pin is not None, f"constraints.txt does not pin {requirement.name}"
        assert requirement.specifier.contains(pin), f"{pin} is not {line}"


def test_the_image_has_the_python_of_the_pins_and_no_root() -> None:
    assert [what for name, what in INSTRUCTIONS if name == "FROM"] == ["python:3.11-slim"]
    users = [what for name, what in INSTRUCTIONS if name == "USER"]
    assert users == ["1000:1000"], "a number: runAsNonRoot cannot tell what a name is"
    assert "--uid 1000" in DOCKERFILE
    after = INSTRUCTIONS[[name for name, _ in INSTRUCTIONS].index("USER") :]
    assert {name for name, _ in after} <= {"USER", "WORKDIR", "CMD"}


def test_everything_is_installed_with_the_constraints() -> None:
    installs = [command for name, what in INSTRUCTIONS if name == "RUN" for command in re.split(r"&&|;", what) if "pip install" in command]
    assert len(installs) == 2
    assert all("-c constraints.txt" in command for command in installs)


def test_nothing_secret_goes_into_the_image() -> None:
    declared = " ".join(what for name, what in INSTRUCTIONS if name in {"ARG", "ENV"})
    assert not re.search(r"TOKEN|SECRET|PASSWORD|INDEX_URL", declared)
    assert "RAY_AUTH_MODE=token" in declared


def test_what_is_copied_is_there_and_sent_to_the_builder() -> None:
    ignored = (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines()
    sent = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert "*" in ignored
    copied = {source.rstrip("/") for name, what in INSTRUCTIONS if name == "COPY" for source in shlex.split(what)[:-1]}
    assert copied == sent
    assert all((ROOT / source).exists() for source in copied)
    # What the build of the wheel reads besides the package: pyproject.toml names it.
    assert {"README.md", "LICENSE", "jobs", "pyproject.toml", "constraints.txt", "genrep_dist"} == copied
