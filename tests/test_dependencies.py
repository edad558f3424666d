"""The versions of dependencies: pins of everything, and lower bounds for everything."""

from __future__ import annotations

import runpy
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.experiments import ROOT


def script(name: str) -> dict[str, Any]:
    return runpy.run_path(str(ROOT / ".ci" / name))


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    return {str(canonicalize_name(name)): version for name, version in (line.split("==") for line in lines)}


def test_everything_that_an_installation_takes_is_pinned() -> None:
    """What is required here, on this platform, has its version in constraints.txt: two installations are equal."""
    required = script("pin_versions.py")["required"]("genrep-dist", ("dev", "text"))
    found = {str(canonicalize_name(name)): version.partition("+")[0] for name, version in required.items()}
    assert len(found) > 150
    assert {name: version for name, version in found.items() if pins().get(name) != version} == {}


def test_what_is_not_installed_is_named() -> None:
    with pytest.raises(LookupError, match="no-such-package-of-ours is required and not installed"):
        script("pin_versions.py")["required"]("no-such-package-of-ours", ())


def test_every_dependency_has_a_lower_bound_that_the_pins_keep() -> None:
    lowest = script("lowest_versions.py")["lowest_versions"]((ROOT / "pyproject.toml").read_text())
    assert "zarr==3.1.6" in lowest
    for name, version in (line.split("==") for line in lowest):
        assert Version(pins()[str(canonicalize_name(name))]) in SpecifierSet(f">={version}")


@pytest.mark.parametrize("dependency", ["zarr", "zarr<4", "zarr~=3.1", "zarr==3.1.6"])
def test_a_dependency_without_a_lower_bound_is_refused(dependency: str) -> None:
    with pytest.raises(ValueError, match="no lower bound: zarr"):
        script("lowest_versions.py")["lowest_versions"](f'[project]\ndependencies = ["numpy>=2.0", "{dependency}"]\n')
