"""The memory of a process against its budget and its plan: models of different shapes, each under three budgets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genrep_dist.errors import PlanError
from genrep_dist.plan import Plan, Shape
from genrep_dist.problems.protocol import Dataset
from genrep_dist.store import Store
from genrep_dist.training.loop import predict
from genrep_dist.workflow.measure import measure
from genrep_dist.workflow.planning import make_plan
from genrep_dist.workflow.prepare import prepare
from genrep_dist.workflow.room import check_room
from tests.experiments import ROOT, experiment
from tests.memory_cases import CASES
from tests.toys import Blobs

MIB = 2**20
NOISE_BYTES = 48 * MIB
"""What libraries take beside arrays: caches of the allocator, buffers of the store, modules that are imported late."""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_of_a_process_is_at_most_that_of_its_plan() -> None:
    """Every stage of every case, and what precedes the stages: within 30 per cent of the plan's largest stage, and of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "PYTHONPATH": str(ROOT)}
    # The arrays that are held, and not what the allocator keeps of freed ones.
    environment |= {"MALLOC_MMAP_THRESHOLD_": str(2**21), "ARROW_DEFAULT_MEMORY_POOL": "system"}
    done = subprocess.run([sys.executable, "-m", "tests.memory_cases"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True)
    runs = [json.loads(line) for line in done.stdout.splitlines()]
    assert [run["case"] for run in runs] == [case for case, (_, budgets) in CASES.items() for _ in budgets]
    for run in runs:
        about = f"{run['case']} at {run['budget'] // MIB} MiB"
        largest = max(run["plan"].values())
        for stage, peak in run["found"].items():
            allowed = run["plan"].get(stage, largest)
            assert peak <= 1.3 * allowed + NOISE_BYTES, f"{about}, {stage}: {peak / MIB:.0f} MiB, plan {allowed / MIB:.0f} MiB"


class Wide(Blobs):
    """Activations of 4 MB a row, a frozen layer and a buffer."""

    def model(self) -> nn.Module:
        body = nn.Sequential(nn.Linear(5, 8).requires_grad_(False), nn.BatchNorm1d(8, affine=False))
        return nn.Sequential(*body, nn.Linear(8, 2**20), nn.Tanh(), nn.AdaptiveAvgPool1d(4), nn.Linear(4, 1))


class Frozen(Blobs):
    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(5, 1000), nn.Linear(1000, 1000).requires_grad_(False), nn.Linear(1000, 1))


class Double(Blobs):
    def model(self) -> nn.Module:
        return super().model().double()

    def _data(self, seed: int, rows: int, first_id: int) -> Dataset:
        inputs, targets, ids = super()._data(seed, rows, first_id)
        return Dataset(inputs.double(), targets.double(), ids)


class Counting(nn.Module):
    """Keeps the sizes of the batches that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.rows = nn.Linear(5, 1), list[int]()

    def forward(self, inputs: Tensor) -> Tensor:
        self.rows.append(len(inputs))
        result: Tensor = self.linear(inputs)
        return result


class Distances:
    """exp(-|x - z|), by a table of all differences: 20 bytes a pair at a time, twice."""

    def __call__(self, model: nn.Module, left: Tensor, right: Tensor) -> Tensor:
        del model
        return (-(left[:, None] - right[None, :]).abs().sum(dim=2)).exp()


def shape_of(problem: Blobs, **changes: Any) -> Shape:
    return measure(problem, problem.train_data(), problem.test_data(), problem.recipe, {}, **changes)


def plan_for(tmp_path: Path, budget: str, **fields: Any) -> Plan:
    asked = experiment(**fields, resources={"memory_budget": budget})
    return prepare(asked, Store(str(tmp_path)), [str(ROOT)]).plan


def test_rows_of_a_pass_follow_from_the_budget(tmp_path: Path) -> None:
    wide = {"problem": "tests.test_memory_bounds:Wide", "methods": ["last-layer-final/target", "random"]}
    rows = {budget: plan_for(tmp_path, budget, **wide).prediction_rows for budget in ("8MiB", "256MiB", "2GiB", "64GiB")}
    assert rows == {"8MiB": 1, "256MiB": 16, "2GiB": 128, "64GiB": 1024}
    assert plan_for(tmp_path, "8MiB").prediction_rows == plan_for(tmp_path, "2GiB").prediction_rows == 1024


def test_blocks_of_a_kernel_of_pairs_follow_from_what_a_pair_takes(tmp_path: Path) -> None:
    fields = {
        "kernels": {"distances": {"class": "tests.test_memory_bounds:Distances"}},
        "methods": ["distances-final/surrogate", "random"],
        "options": {"train_size": 300},
    }
    small, large = (plan_for(tmp_path, budget, **fields) for budget in ("256KiB", "1GiB"))
    pair = small.shape.kernels["distances"].pair_bytes
    assert 2 * 4 * 5 <= pair <= 3 * 4 * 5
    assert small.block_rows["distances"] ** 2 * pair <= 2**18 // 8 < 4 * small.block_rows["distances"] ** 2 * pair
    assert large.block_rows["distances"] == 300


def test_outputs_agree_whatever_the_rows_of_a_pass() -> None:
    model, inputs = Counting(), torch.randn(100, 5)
    whole = predict(model, inputs)
    parts = predict(model, inputs, batch_size=32)
    assert model.rows == [100, 32, 32, 32, 4]
    assert torch.allclose(whole, parts)
    assert torch.equal(predict(model, inputs, batch_size=100), whole)


def test_sizes_are_those_of_the_dtype_and_of_all_that_a_checkpoint_holds() -> None:
    single = shape_of(Blobs())
    assert (single.item_bytes, single.state_bytes) == (4, 4 * 57)
    double = shape_of(Double())
    assert (double.item_bytes, double.parameter_bytes, double.state_bytes) == (8, 8 * 57, 8 * 57)
    assert double.backward_bytes == 2 * single.backward_bytes
    assert double.forward_bytes == 2 * single.forward_bytes
    frozen = shape_of(Wide())
    assert frozen.num_parameters == 9 * 2**20 + 5
    # A weight and a bias that are frozen; mean, variance and a count of batches.
    assert frozen.state_bytes == 4 * (frozen.num_parameters + 6 * 8 + 2 * 8) + 8


def test_a_frozen_model_is_in_every_planned_checkpoint(tmp_path: Path) -> None:
    fields = {"problem": "tests.test_memory_bounds:Frozen", "methods": ["tracincp", "random"], "seeds": 1}
    stages = {stage.name: stage for stage in plan_for(tmp_path, "2GiB", **fields).stages}
    checkpoints = 5 * 4 * 1000 * 1000
    assert stages["train"].bytes_written > checkpoints
    assert stages["train"].peak_bytes > 2 * checkpoints


@pytest.mark.parametrize(
    ("influence", "shape", "instead"),
    [
        ({"system": "dual"}, {"num_train": 10_000}, "influence.curvature: hessian"),
        ({"curvature": "last-layer", "system": "dual"}, {"num_train": 1000, "num_outputs": 10}, "influence.curvature: hessian"),
        ({"curvature": "hessian"}, {"num_train": 1000, "num_parameters": 10_000_000}, "fewer test points"),
    ],
)
def test_influence_that_exceeds_the_budget_is_refused_with_both_numbers(
    tmp_path: Path, influence: dict[str, Any], shape: dict[str, Any], instead: str
) -> None:
    store = Store(str(tmp_path))
    asked = experiment(methods=["influence-function", "random"], influence=influence, resources={"memory_budget": "1GiB"})
    prepared = prepare(asked, store, [str(ROOT)])
    check_room(prepared.plan, store, lambda _: 1, 2**40)
    large = make_plan(prepared.plan.keys, replace(prepared.plan.shape, **shape))
    with pytest.raises(PlanError, match=r"memory budget is too small[\s\S]*at least [0-9,]+ bytes[\s\S]*1,073,741,824 bytes") as refused:
        check_room(large, store, lambda _: 1, 2**40)
    assert instead in refused.value.remedy
