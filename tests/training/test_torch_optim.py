"""Our optimizers, parameter groups and clipping against torch.optim: one model, and every step of stacked and mapped packs."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from genrep_dist.config.digests import non_default_fields
from genrep_dist.core.losses import get_loss
from genrep_dist.errors import ProblemError
from genrep_dist.problems.protocol import ParamGroup, Recipe
from genrep_dist.training.fast_paths import PLAIN
from genrep_dist.training.optimizers import identity_gap_reasons, make_optimizer
from genrep_dist.training.packs.base import Pack, Solo
from genrep_dist.training.packs.mapped import MappedPack
from genrep_dist.training.packs.stacked import StackedPack
from genrep_dist.training.trainer import Trainer
from tests.training.reference import parameters_of
from tests.training.test_stacked_packs import images, small_cnn, some_runs

RATE = 0.01
BASE = Recipe(epochs=3, batch_size=8, learning_rate=RATE)
TORCH: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
}
CASES: dict[str, dict[str, Any]] = {
    "nesterov": {"optimizer": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    "dampening": {"optimizer": "sgd", "momentum": 0.9, "dampening": 0.3},
    "adam": {"optimizer": "adam"},
    "amsgrad": {"optimizer": "adam", "weight_decay": 0.1, "betas": (0.7, 0.95), "amsgrad": True, "eps": 1e-3},
    "adamw": {"optimizer": "adamw"},
    "adamw without decay": {"optimizer": "adamw", "weight_decay": 0.0},
    "rmsprop": {"optimizer": "rmsprop"},
    "centered": {"optimizer": "rmsprop", "momentum": 0.8, "centered": True, "alpha": 0.9, "weight_decay": 0.05},
    "groups and clipping": {
        "optimizer": "adamw",
        "clip_norm": 0.01,
        "param_groups": (ParamGroup("*.bias", weight_decay=0.0), ParamGroup("conv2.*", learning_rate=0.03, weight_decay=0.2)),
    },
}


def torchs(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """torch's optimizer of the declared settings, with its own defaults for all others."""
    names = ("momentum", "dampening", "nesterov", "betas", "eps", "amsgrad", "alpha", "centered")
    declared = {name: getattr(recipe, name) for name in names}
    plain = replace(Recipe(1, 1, 1.0), optimizer=recipe.optimizer)
    settings = {name: value for name, value in declared.items() if value != getattr(plain, name)}
    if recipe.weight_decay != plain.weight_decay:
        settings["weight_decay"] = recipe.weight_decay
    groups: list[dict[str, Any]] = [{"params": []}, *({"params": []} for _ in recipe.param_groups)]
    for group, ours in zip(groups[1:], recipe.param_groups, strict=True):
        own = {"lr": ours.learning_rate, "weight_decay": ours.weight_decay}
        group |= {key: value for key, value in own.items() if value is not None}
    for name, parameter in model.named_parameters():
        first = next((i for i, g in enumerate(recipe.param_groups, 1) if name.startswith(g.params[:-1]) or name.endswith(g.params[1:])), 0)
        groups[first]["params"].append(parameter)
    return TORCH[recipe.optimizer]([group for group in groups if group["params"]], lr=RATE, **settings)


@pytest.mark.parametrize("kind", [Solo, StackedPack, MappedPack])
@pytest.mark.parametrize("name", list(CASES))
def test_every_step_is_torchs(name: str, kind: type[Pack]) -> None:
    """Of each model by itself, in float64; a model without rows in a step does not move, nor does its state."""
    recipe, slots = replace(BASE, **CASES[name]), 1 if kind is Solo else 3
    models = [small_cnn().double() for _ in range(slots)]
    peers = [copy.deepcopy(model) for model in models]
    theirs = [torchs(recipe, peer) for peer in peers]
    pack = kind(models[0], slots, make_optimizer(recipe), PLAIN)
    for slot, model in enumerate(models):
        pack.load(slot, model)
    inputs = torch.rand(slots * 32, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for idle in ([], [1], [], [0, 2], [], []) if slots > 1 else ([],) * 6:
        pack.optimized.step(torch.autograd.grad(pack.module(inputs).square().mean(), pack.parameters), RATE, idle)
        for slot, (model, peer, their) in enumerate(zip(models, peers, theirs, strict=True)):
            if slot not in idle:
                their.zero_grad()
                (peer(inputs[32 * slot : 32 * (slot + 1)]).square().mean() / slots).backward()
                if recipe.clip_norm is not None:
                    torch.nn.utils.clip_grad_norm_(peer.parameters(), recipe.clip_norm)
                their.step()
            pack.unload(slot, model)
            torch.testing.assert_close(parameters_of(model), parameters_of(peer), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["amsgrad", "centered", "groups and clipping"])
def test_company_changes_no_bit(name: str) -> None:
    """Neither the size of a pack nor the other models in it; the norm is each model's own."""
    data = images()
    trainer = Trainer(small_cnn, get_loss("logistic"), replace(BASE, **CASES[name], schedule="one_cycle", drop_last=True), data)
    assert trainer.pack_kind == "stacked"
    runs = some_runs(data, 5, 8)
    for run, model in zip(runs[:3], trainer.train_all(runs), strict=False):
        assert isinstance(model, nn.Module)
        assert torch.equal(parameters_of(model), parameters_of(trainer.train(run)))


@pytest.mark.parametrize("kind", [Solo, StackedPack, MappedPack])
def test_the_preconditioner_is_torchs_denominator(kind: type[Pack]) -> None:
    model = small_cnn().double()
    peer = copy.deepcopy(model)
    pack, their = kind(model, 1, make_optimizer(replace(BASE, optimizer="adam")), PLAIN), torch.optim.Adam(peer.parameters(), lr=RATE)
    pack.load(0, model)
    inputs = torch.rand(32, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for _ in range(4):
        pack.optimized.step(torch.autograd.grad(pack.module(inputs).square().mean(), pack.parameters), RATE)
        their.zero_grad()
        peer(inputs).square().mean().backward()
        their.step()
    before = [parameter.clone() for parameter in pack.parameters]
    for parameter, found in zip(peer.parameters(), pack.preconditioner(0, model), strict=True):
        torch.testing.assert_close(found, (their.state[parameter]["exp_avg_sq"] / (1 - 0.999**4)).sqrt() + 1e-8)
    assert all(torch.equal(old, new) for old, new in zip(before, pack.parameters, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "adam", "momentum": 0.9}, "recipe.momentum"),
        ({"optimizer": "sgd", "betas": (0.5, 0.9)}, "recipe.betas"),
        ({"optimizer": "adamw", "alpha": 0.5}, "recipe.alpha"),
        ({"optimizer": "rmsprop", "amsgrad": True}, "recipe.amsgrad"),
    ],
)
def test_settings_of_another_optimizer_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        make_optimizer(replace(BASE, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"betas": (0.9, 1.0)},
        {"betas": (0.9,)},
        {"nesterov": True},
        {"clip_norm": 0.0},
        {"param_groups": (ParamGroup("*.bias"),)},
        {"param_groups": ({"weight_decay": 0.1},)},
        {"param_groups": ({"params": "*", "lr": 0.1},)},
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ProblemError, match="recipe"):
        replace(BASE, **changes)


def test_a_group_without_parameters_is_refused() -> None:
    for groups in (
        (ParamGroup("*.offset", weight_decay=0.0),),
        (ParamGroup("*", weight_decay=0.0), ParamGroup("*.bias", weight_decay=0.1)),
    ):
        with pytest.raises(ProblemError, match="no parameters"):
            Solo(small_cnn(), 1, make_optimizer(replace(BASE, param_groups=groups)), PLAIN)


def test_defaults_are_torchs_and_only_changes_enter_keys() -> None:
    assert replace(BASE, optimizer="adamw").weight_decay == 0.01
    assert replace(replace(BASE, optimizer="adamw"), optimizer="adam").weight_decay == 0
    assert replace(BASE, optimizer="adamw", weight_decay=0.0).weight_decay == 0
    fields = {"epochs": 3, "batch_size": 8, "learning_rate": RATE}
    assert non_default_fields(BASE) == fields
    changed = [non_default_fields(replace(BASE, **case)) for case in CASES.values()]
    assert all(one != other for i, one in enumerate(changed) for other in changed[:i])
    for case in CASES.values():
        recipe = replace(BASE, **case)
        assert Recipe(**json.loads(json.dumps(recipe.record()))) == recipe


def test_why_identities_do_not_hold() -> None:
    reasons = {name: " ".join(identity_gap_reasons(replace(BASE, **case))) for name, case in CASES.items()}
    assert "beta 0.9" in reasons["adam"]
    assert "weight decay 0.01" in reasons["adamw"]
    assert "RMSprop" in reasons["rmsprop"]
    assert "clipped to norm 0.01" in reasons["groups and clipping"]
    assert "rates of their own" in reasons["groups and clipping"]
    assert identity_gap_reasons(replace(BASE, schedule="one_cycle", warmup=0.5, drop_last=True)) == []
