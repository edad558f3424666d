"""The sections of an experiment file that change where and how work runs, and no number."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from genrep_dist.config.section import Section
from genrep_dist.config.stages import STAGES

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_bytes(text: object) -> object:
    """'512MiB', '2 GiB', '1e9' or a number -> bytes. Anything that is not text is returned as it is, for pydantic to check.

    pydantic.ByteSize is not used: it refuses '1e9' (which YAML reads as text) and reads '1e+9' as 1e18 bytes.
    """
    if not isinstance(text, str):
        return text
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError("a number of bytes such as 512MiB, 2GiB or 1000000000")
    return int(float(match[1]) * _UNITS[match[2].upper()])


Bytes = Annotated[int, BeforeValidator(parse_bytes, json_schema_input_type=int | str), Field(gt=0)]


class StageResources(Section):
    """Resources of the workers of one stage. Fields that are left out take the experiment's value."""

    num_cpus: float | None = Field(None, gt=0, allow_inf_nan=False)
    num_gpus: float | None = Field(None, ge=0, allow_inf_nan=False)
    memory: Bytes | None = None
    workers: int | None = Field(None, ge=1)
    min_workers: int | None = Field(None, ge=1)


class ResourcesSection(Section):
    """Where and how work runs. Changes no result; last bits of some scores follow a small memory_budget."""

    workers: int | None = Field(
        None, ge=1, description="Number of worker processes. Default: as many as the cluster or machine has room for."
    )
    memory_budget: Bytes = Field(2 * 2**30, description="Bytes of arrays that one process may hold, for example 512MiB.")
    features: Literal["auto", "store", "stream"] = Field(
        "auto",
        description="store: keep per-sample gradients in the store; stream: compute them where they are used; auto: store those that a "
        "gram needs, unless GPUs recompute them faster than a disk reads them.",
    )
    retries: int = Field(3, ge=0, description="How often a failed unit of work is retried.")
    task_seconds: float = Field(5.0, gt=0, description="Approximate duration of one task of retrainings.")
    unit_timeout: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Seconds that one unit of work, or one model of a task of retrainings, may take. Then it has failed, and is not "
        "retried; the others go on. Default: no limit.",
    )
    checkpoint_seconds: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Seconds between two saves of a retraining's state. It is saved at the end of an epoch, and a killed retraining "
        "resumes from it. Default: no state is saved.",
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    cuda_graphs: bool = Field(
        False,
        description="Capture the training step of a pack of models once as a CUDA graph, and replay it. Was never run on a GPU.",
    )
    num_cpus: float = Field(1.0, gt=0, allow_inf_nan=False, description="CPUs, or a fraction of one, per worker.")
    num_gpus: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="GPUs, or a fraction of one, per worker. Default: one if the cluster has any and device is not cpu.",
    )
    memory: Bytes | None = Field(None, description="Bytes that the cluster reserves for each worker. Default: none.")
    min_workers: int = Field(1, ge=1, description="Workers that the cluster must have room for. An actor pool does not shrink below it.")
    stages: dict[str, StageResources] = Field({}, description="Stages whose workers need other resources.")

    @field_validator("stages")
    @classmethod
    def _registered_stages(cls, value: dict[str, StageResources]) -> dict[str, StageResources]:
        unknown = [name for name in value if name not in STAGES]
        if unknown:
            raise ValueError(f"stages by name ({', '.join(STAGES)}), not {', '.join(unknown)}")
        return value
