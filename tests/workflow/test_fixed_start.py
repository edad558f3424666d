"""Models that start from weights in a file: other weights are another experiment, and the plan says what seeds then vary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from genrep_dist.plan import Plan
from genrep_dist.store import Store
from genrep_dist.workflow.prepare import prepare
from tests.experiments import ROOT, experiment
from tests.toys import Blobs


class Pretrained(Blobs):
    """Loads a file; with ``new_head`` the last layer is drawn."""

    path_options = ("weights",)

    def __init__(self, weights: str, new_head: bool = False) -> None:
        super().__init__()
        self.weights, self.new_head = Path(weights), new_head

    def model(self) -> nn.Module:
        model = super().model()
        state = torch.load(self.weights, weights_only=True)
        last = list(state)[-2:]
        model.load_state_dict({name: value for name, value in state.items() if not self.new_head or name not in last}, strict=False)
        return model


def plan(folder: Path, name: str, seed: int, **options: Any) -> Plan:
    folder.joinpath(name).parent.mkdir(exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.save(Blobs().model().state_dict(), folder / name)
    declared = experiment(
        "tests.workflow.test_fixed_start:Pretrained", {"weights": str(folder / name), **options}, seeds=1, methods=["ntk-final/target"]
    )
    return prepare(declared, Store(str(folder / "store")), [str(ROOT)]).plan


def test_other_weights_are_another_experiment_wherever_the_file_is(tmp_path: Path) -> None:
    keys = [plan(tmp_path, name, seed).keys.model(0) for name, seed in (("a.pt", 0), ("below/b.pt", 0), ("a.pt", 1))]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize("new_head", [False, True])
def test_the_plan_says_that_seeds_vary_the_order_alone(tmp_path: Path, new_head: bool) -> None:
    warnings = plan(tmp_path, "a.pt", 0, new_head=new_head).warnings
    assert any("start from the same parameters" in text for text in warnings) == (not new_head)
