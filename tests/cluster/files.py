"""What stands in cluster/, and the versions that it must name."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

from tests.experiments import ROOT

CLUSTER = ROOT / "cluster"
RAYJOB, RAYCLUSTER = CLUSTER / "kuberay/rayjob.yaml", CLUSTER / "kuberay/raycluster.yaml"
LAUNCHERS = [CLUSTER / "launcher/aws.yaml", CLUSTER / "launcher/on-premise.yaml"]
SBATCH = CLUSTER / "slurm/genrep.sbatch"


def load(path: Path) -> dict[str, Any]:
    """The one YAML document of a file."""
    fields: dict[str, Any] = yaml.safe_load(path.read_text())
    return fields


def cluster_spec(path: Path) -> dict[str, Any]:
    """The RayCluster's spec of either manifest."""
    spec: dict[str, Any] = load(path)["spec"]
    return dict(spec.get("rayClusterSpec", spec))


def pod_specs(path: Path) -> list[dict[str, Any]]:
    """The pods of a manifest, the head's first."""
    spec = cluster_spec(path)
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def project() -> dict[str, Any]:
    """The table ``project`` of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def pins() -> dict[str, str]:
    """Distribution (lower case, hyphens) -> version, of constraints.txt."""
    lines = re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in lines}


def image() -> str:
    """The image that every file must name."""
    return f"genrep-dist:{project()['version']}-ray{pins()['ray']}"
