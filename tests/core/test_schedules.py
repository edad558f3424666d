"""Schedules against torch.optim.lr_scheduler, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as torch_schedules
from torch.optim.lr_scheduler import LRScheduler, SequentialLR

from genrep_dist.core.schedules import SCHEDULES, Schedule
from genrep_dist.errors import ProblemError
from genrep_dist.problems.protocol import Recipe
from genrep_dist.testing import ScheduleTests

RATE, EPOCHS, STEPS = 0.3, 4, 40
Make = Callable[[torch.optim.Optimizer], LRScheduler]


def rates_of(make: Make) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=RATE)
    schedule, rates = make(optimizer), []
    for _ in range(STEPS):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        schedule.step()
    return rates


def warmed(steps: int, after: Make) -> Make:
    def make(optimizer: torch.optim.Optimizer) -> LRScheduler:
        rise = torch_schedules.LinearLR(optimizer, 1 / steps, 1, steps - 1)
        return SequentialLR(optimizer, [rise, after(optimizer)], [steps])

    return make


def one_cycle(share: float) -> Make:
    return lambda o: torch_schedules.OneCycleLR(o, RATE, STEPS, pct_start=share, cycle_momentum=False)


CASES: list[tuple[Mapping[str, object], Make]] = [
    ({"schedule": "constant"}, lambda o: torch_schedules.ConstantLR(o, 1.0)),
    ({"schedule": "constant", "warmup": 7}, warmed(7, lambda o: torch_schedules.ConstantLR(o, 1.0))),
    ({"schedule": "cosine"}, lambda o: torch_schedules.CosineAnnealingLR(o, STEPS)),
    ({"schedule": "cosine", "warmup": 6}, warmed(6, lambda o: torch_schedules.CosineAnnealingLR(o, STEPS - 6))),
    ({"schedule": "linear"}, lambda o: torch_schedules.LinearLR(o, 1, 0, STEPS)),
    ({"schedule": "linear", "warmup": 0.1}, warmed(4, lambda o: torch_schedules.LinearLR(o, 1, 0, STEPS - 4))),
    ({"schedule": "step", "step_size": 2, "gamma": 0.5}, lambda o: torch_schedules.StepLR(o, 20, 0.5)),
    (
        {"schedule": "step", "step_size": 1, "warmup": 12},
        lambda o: torch_schedules.ChainedScheduler([torch_schedules.LinearLR(o, 1 / 12, 1, 11), torch_schedules.StepLR(o, 10)]),
    ),
    ({"schedule": "one_cycle"}, lambda o: torch_schedules.OneCycleLR(o, RATE, STEPS, cycle_momentum=False)),
    *(({"schedule": "one_cycle", "warmup": given}, one_cycle(share)) for given, share in ((0.02, 0.02), (0.55, 0.55), (10, 0.25))),
]


@pytest.mark.parametrize(("settings", "make"), CASES, ids=lambda case: str(case) if isinstance(case, dict) else "")
@pytest.mark.filterwarnings("ignore:The epoch parameter")
def test_every_rate_is_torchs(settings: dict[str, object], make: Make) -> None:
    recipe = Recipe(EPOCHS, 8, RATE, **settings)  # type: ignore[arg-type]
    assert [recipe.rate(step, STEPS) for step in range(STEPS)] == pytest.approx(rates_of(make), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(
    "settings", [{"warmup": -1}, {"warmup": 2.5}, {"schedule": "cosin"}, {"schedule": "step"}, {"step_size": 0}, {"gamma": 0.0}]
)
def test_impossible_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ProblemError, match="recipe"):
        Recipe(EPOCHS, 8, RATE, **settings)  # type: ignore[arg-type]


def test_short_runs_have_rates() -> None:
    for name in SCHEDULES:
        recipe = Recipe(1, 8, RATE, schedule=name, step_size=1, warmup=3)
        assert all(0 <= recipe.rate(step, steps) <= RATE for steps in range(1, 6) for step in range(steps)), name


@pytest.mark.parametrize("name", list(SCHEDULES))
class TestShippedSchedules(ScheduleTests):
    @pytest.fixture(autouse=True)
    def _named(self, name: str) -> None:
        self.name = name

    def make_schedule(self) -> Schedule:
        return SCHEDULES.get(self.name)(Recipe(EPOCHS, 8, RATE, schedule=self.name, step_size=1, warmup=0.2))
