"""What fits on which nodes, against placing workers one by one; and what is refused, with its numbers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrep_dist.config.resources import ResourcesSection
from genrep_dist.errors import PlanError
from genrep_dist.executors.capacity import (
    WorkerResources,
    all_worker_resources,
    check_schedulable,
    count_fitting,
    num_slots,
    worker_resources,
)

LAPTOP = {"CPU": 8.0, "memory": 16e9}
GPUS = {"CPU": 16.0, "GPU": 4.0, "memory": 64e9}


def resources(**fields: Any) -> ResourcesSection:
    return ResourcesSection.model_validate(fields)


def placed_one_by_one(node: dict[str, float], cpus: int, gpu_tenths: int, memory: int) -> int:
    """Tenths of single GPUs are handed out, the first that has room; whole GPUs only untouched ones."""
    left = dict(node)
    gpus = [10] * int(node.get("GPU", 0))
    count = 0
    while left["CPU"] >= cpus and left["memory"] >= memory and count < 1000:
        if gpu_tenths > 10:
            untouched = [index for index, rest in enumerate(gpus) if rest == 10][: gpu_tenths // 10]
            if len(untouched) < gpu_tenths // 10:
                break
            for index in untouched:
                gpus[index] = 0
        elif gpu_tenths:
            room = [index for index, rest in enumerate(gpus) if rest >= gpu_tenths]
            if not room:
                break
            gpus[room[0]] -= gpu_tenths
        left["CPU"] -= cpus
        left["memory"] -= memory
        count += 1
    return count


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 4), st.integers(0, 30)), min_size=1, max_size=4),
    st.integers(1, 5),
    st.one_of(st.integers(0, 10), st.sampled_from([20, 30])),
    st.integers(0, 7),
)
def test_as_many_fit_as_can_be_placed_one_by_one(sizes: list[tuple[int, int, int]], cpus: int, gpu_tenths: int, memory: int) -> None:
    nodes = [{"CPU": float(c), "GPU": float(g), "memory": float(m)} for c, g, m in sizes]
    held = count_fitting(nodes, WorkerResources(cpus, gpu_tenths / 10, memory, 1, None, ""))
    assert held == sum(placed_one_by_one(node, cpus, gpu_tenths, memory) for node in nodes)


def test_what_is_not_declared_is_as_for_all_and_as_the_cluster_has_it() -> None:
    plain = resources()
    assert worker_resources(plain, "retrain", [LAPTOP]).num_gpus == 0
    assert worker_resources(plain, "retrain", [LAPTOP, GPUS]).num_gpus == 1
    assert worker_resources(resources(device="cpu"), "retrain", [GPUS]).num_gpus == 0
    assert num_slots([LAPTOP, GPUS], worker_resources(plain, "retrain", [LAPTOP, GPUS])) == 4
    assert num_slots([LAPTOP], worker_resources(plain, "retrain", [LAPTOP])) == 8

    some = resources(workers=6, num_gpus=0.5, stages={"influence": {"num_cpus": 8, "num_gpus": 0}, "gradients": {"workers": 3}})
    assert worker_resources(some, "retrain", [GPUS]) == WorkerResources(1.0, 0.5, 0, 1, 6, "resources")
    assert worker_resources(some, "influence", [GPUS]) == WorkerResources(8.0, 0.0, 0, 1, 6, "resources.stages.influence")
    assert worker_resources(some, "gradients", [GPUS]) == WorkerResources(1.0, 0.5, 0, 1, 3, "resources.stages.gradients")
    assert [num_slots([GPUS], demand) for demand in all_worker_resources(some, [GPUS])] == [6, 2, 3]


@pytest.mark.parametrize(
    ("fields", "nodes", "expected"),
    [
        (
            {"num_gpus": 1},
            [LAPTOP],
            r"can ever run a worker[\s\S]*resources.num_gpus[\s\S]*1 CPU and 1 GPU[\s\S]*8 CPU and 0 GPU on any of 1",
        ),
        ({"num_cpus": 32}, [LAPTOP, GPUS], r"resources.num_cpus[\s\S]*32 CPU[\s\S]*at most 16 CPU and 4 GPU on any of 2 nodes"),
        ({"memory": "100GB"}, [GPUS], r"resources.memory[\s\S]*100,000,000,000 bytes[\s\S]*64,000,000,000 bytes"),
        ({"stages": {"retrain": {"num_gpus": 8}}}, [GPUS], r"where: resources.stages.retrain.num_gpus[\s\S]*8 GPU[\s\S]*4 GPU"),
        ({"min_workers": 9}, [LAPTOP], r"no room for min_workers workers[\s\S]*9 workers of 1 CPU[\s\S]*room for 8 on 1 nodes"),
        ({"num_gpus": 1.5}, [GPUS], r"a share of one GPU, or whole GPUs[\s\S]*1 or 2, or at most 1"),
        ({}, [], r"can ever run a worker[\s\S]*on any of 0 nodes[\s\S]*GENREP_WAIT_FOR_NODES"),
    ],
)
def test_what_can_never_be_scheduled_is_refused_with_both_numbers(
    fields: dict[str, Any], nodes: list[dict[str, float]], expected: str
) -> None:
    with pytest.raises(PlanError, match=expected):
        check_schedulable(nodes, resources(**fields))


def test_a_stage_that_does_not_exist_is_refused_when_it_is_read() -> None:
    with pytest.raises(ValueError, match="gradient"):
        resources(stages={"gradient": {"num_cpus": 2}})
