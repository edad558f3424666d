"""The manifests against the fields of KubeRay's CRDs that they use, and what the fields must say."""

from __future__ import annotations

import copy
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from referencing import Registry, Resource

from genrep_dist.config import load_experiment
from tests.cluster.files import CLUSTER, RAYCLUSTER, RAYJOB, cluster_spec, load, pod_specs

HERE = Path(__file__).parent
BOTH = pytest.mark.parametrize("path", [RAYJOB, RAYCLUSTER], ids=lambda path: path.stem)


def mistakes(fields: dict[str, Any]) -> list[str]:
    """What the schema of the manifest's kind has against it."""
    schemas = {path.name: json.loads(path.read_text()) for path in HERE.glob("*.schema.json")}
    registry: Registry[Any] = Registry().with_resources((name, Resource.from_contents(schema)) for name, schema in schemas.items())
    validator = Draft202012Validator(schemas[f"{fields['kind'].lower()}.schema.json"], registry=registry)
    return [f"{'/'.join(map(str, error.path))}: {error.message}" for error in validator.iter_errors(fields)]


@BOTH
def test_a_manifest_has_the_fields_of_its_kind(path: Path) -> None:
    assert mistakes(load(path)) == []


def _misspelled(job: dict[str, Any]) -> None:
    job["spec"]["backOffLimit"] = job["spec"].pop("backoffLimit")


def _number_as_start_parameter(job: dict[str, Any]) -> None:
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0


def _time_to_live_without_shutdown(job: dict[str, Any]) -> None:
    job["spec"]["shutdownAfterJobFinishes"] = False


def _root(job: dict[str, Any]) -> None:
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["securityContext"]["runAsUser"] = 0


def _password(job: dict[str, Any]) -> None:
    worker = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    worker["envFrom"].append({"secret": {"name": "genrep"}})


@pytest.mark.parametrize("harm", [_misspelled, _number_as_start_parameter, _time_to_live_without_shutdown, _root, _password])
def test_the_schema_finds_mistakes(harm: Callable[[dict[str, Any]], None]) -> None:
    job = copy.deepcopy(load(RAYJOB))
    harm(job)
    assert mistakes(job)


@BOTH
def test_the_cluster_asks_for_a_token_scales_and_keeps_work_off_the_head(path: Path) -> None:
    spec = cluster_spec(path)
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"]
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in spec["workerGroupSpecs"]:
        assert 1 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"], "a run counts GPUs when it begins"


@BOTH
def test_all_pods_mount_the_store_and_workers_have_gpus(path: Path) -> None:
    (claim,) = yaml.safe_load_all((CLUSTER / "kuberay/store.yaml").read_text())
    assert claim["kind"] == "PersistentVolumeClaim"
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"], "head and workers mount it at once"
    head, *workers = pod_specs(path)
    for pod in (head, *workers):
        assert pod["volumes"] == [{"name": "shared", "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}}]
        assert pod["containers"][0]["volumeMounts"] == [{"name": "shared", "mountPath": "/shared"}]
    for pod in workers:
        assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert pod["automountServiceAccountToken"] is False
        assert "genrep-mlflow" not in json.dumps(pod), "only the driver logs"


@BOTH
def test_requests_are_limits(path: Path) -> None:
    """Ray takes a pod's limits for what it has: memory that is not reserved would be counted twice."""
    for pod in pod_specs(path):
        resources = pod["containers"][0]["resources"]
        assert resources["requests"] == resources["limits"]


def test_both_manifests_describe_the_same_cluster() -> None:
    assert cluster_spec(RAYJOB) == cluster_spec(RAYCLUSTER)


def test_a_job_cleans_up_tries_again_and_runs_an_experiment_that_exists() -> None:
    spec = load(RAYJOB)["spec"]
    assert spec["shutdownAfterJobFinishes"]
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["backoffLimit"] > 0
    python, unbuffered, script, experiment, option, store, *sets = shlex.split(spec["entrypoint"])
    assert (python, unbuffered, script) == ("python", "-u", "/opt/genrep/jobs/evaluate.py")
    assert (option, store) == ("--store", "/shared/store")
    assert sets[::2] == ["--set"] * (len(sets) // 2)
    resources = load_experiment(experiment, overrides=sets[1::2]).resources
    assert resources.device == "cuda"
    cpus = int(pod_specs(RAYJOB)[1]["containers"][0]["resources"]["limits"]["cpu"])
    assert resources.num_gpus is not None
    assert resources.num_gpus * cpus == 1, "as many workers on a pod's GPU as it has CPUs"
