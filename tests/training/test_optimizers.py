"""Optimizers from outside the package: registered, trained alone, stacked and mapped, and compared with torch's own step by step."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from genrep_dist.core.losses import get_loss
from genrep_dist.errors import ConfigError, ProblemError
from genrep_dist.problems.protocol import Recipe
from genrep_dist.registry import Registry
from genrep_dist.training.fast_paths import PLAIN
from genrep_dist.training.optimizers import OPTIMIZERS, identity_gap_reasons, make_optimizer
from genrep_dist.training.optimizers.base import OptimizedParameters, Optimizer, per_model
from genrep_dist.training.packs.base import Pack
from genrep_dist.training.packs.compatibility import why_not_packed
from genrep_dist.training.packs.mapped import MappedPack
from genrep_dist.training.packs.stacked import StackedPack
from genrep_dist.training.trainer import Trainer
from tests.training.reference import RECIPES, parameters_of, plainly_trained
from tests.training.test_mapped_packs import grouped
from tests.training.test_stacked_packs import images, small_cnn, some_runs

LOSS = get_loss("logistic")


class ToyAdam(Optimizer):
    """Two moments of the parameter's shape, and one step count for each parameter of each model."""

    is_elementwise = True

    def __init__(self, recipe: Recipe) -> None:
        if recipe.weight_decay:
            raise ProblemError("no weight decay", where="recipe.weight_decay", expected="0", got=str(recipe.weight_decay))

    def state_shapes(self, shape: tuple[int, ...]) -> Mapping[str, tuple[int, ...]]:
        return {"first": shape, "second": shape, "count": ()}

    def update(self, parameters: list[Tensor], gradients: list[Tensor], state: list[dict[str, Tensor]], rate: float) -> None:
        for parameter, gradient, one in zip(parameters, gradients, state, strict=True):
            one["count"].add_(1)
            one["first"].mul_(0.9).add_(gradient * 0.1)
            one["second"].mul_(0.999).add_(gradient * gradient * 0.001)
            count = per_model(one["count"], parameter).to(parameter.dtype)
            first, second = one["first"] / (1 - 0.9**count), one["second"] / (1 - 0.999**count)
            parameter.sub_(first / (second.sqrt() + 1e-8) * rate)

    def identity_gap_reasons(self) -> list[str]:
        return ["Adam divides each step by its size"]

    @property
    def description(self) -> str:
        return "Adam"


class SignSGD(ToyAdam):
    def state_shapes(self, shape: tuple[int, ...]) -> Mapping[str, tuple[int, ...]]:
        return {}

    def update(self, parameters: list[Tensor], gradients: list[Tensor], state: list[dict[str, Tensor]], rate: float) -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.sub_(gradient.sign() * rate)


class Whitened(SignSGD):
    """Not elementwise: each step is divided by the norm of all models' gradients."""

    def update(self, parameters: list[Tensor], gradients: list[Tensor], state: list[dict[str, Tensor]], rate: float) -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.sub_(gradient / (gradient.norm() + 1e-12) * rate)


class TorchSign(torch.optim.SGD):
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            parameter.grad.sign_()
        super().step()


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    names: dict[str, type[Optimizer]] = {"toy-adam": ToyAdam, "sign": SignSGD, "whitened": Whitened}
    for name, optimizer in names.items():
        OPTIMIZERS.register(name, optimizer)
    yield
    for name in names:
        OPTIMIZERS.unregister(name)


def make_torch(name: str, model: nn.Module, rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=rate) if name == "toy-adam" else TorchSign(model.parameters(), lr=rate)


def double(factory: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: factory().double()


@pytest.mark.parametrize("name", ["toy-adam", "sign"])
@pytest.mark.parametrize(("factory", "kind"), [(small_cnn, "stacked"), (grouped, "mapped"), (small_cnn, "solo")])
def test_an_optimizer_from_outside_trains_as_torchs_does(name: str, factory: Callable[[], nn.Module], kind: str) -> None:
    """Five models in one pack, one of which loses a whole batch: in that step neither it nor its state moves."""
    data = images(dtype=torch.float64)
    recipe = replace(RECIPES["plain"], optimizer=name, learning_rate=0.01)
    trainer = Trainer(double(factory), LOSS, recipe, data, PLAIN if kind == "solo" else None)
    assert trainer.pack_kind == kind
    runs = some_runs(data, 5, recipe.batch_size)
    for run, found in zip(runs, trainer.train_all(runs), strict=True):
        assert isinstance(found, nn.Module)
        removed = set() if run.kept is None else set(data.ids[~run.kept].tolist())
        plain = plainly_trained(
            double(factory), "logistic", recipe, data, run.randomness, removed, lambda model: make_torch(name, model, recipe.learning_rate)
        )
        torch.testing.assert_close(parameters_of(found), parameters_of(plain), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", [StackedPack, MappedPack])
@pytest.mark.parametrize("name", ["toy-adam", "sign"])
def test_every_step_of_a_pack_is_torchs(kind: type[Pack], name: str) -> None:
    recipe = replace(RECIPES["plain"], optimizer=name)
    models = [small_cnn().double() for _ in range(3)]
    pack = kind(models[0], 3, make_optimizer(recipe), PLAIN)
    for slot, model in enumerate(models):
        pack.load(slot, model)
    inputs = torch.rand(3 * 32, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    peers = [make_torch(name, model, 0.01) for model in models]
    for idle in ([], [1], [], [0, 2], []):
        pack.optimized.step(torch.autograd.grad(pack.module(inputs).square().mean(), pack.parameters), 0.01, idle)
        for slot, (model, peer) in enumerate(zip(models, peers, strict=True)):
            if slot not in idle:
                peer.zero_grad()
                (model(inputs[32 * slot : 32 * (slot + 1)]).square().mean() / 3).backward()
                peer.step()
            received = small_cnn().double()
            pack.unload(slot, received)
            torch.testing.assert_close(parameters_of(received), parameters_of(model), rtol=1e-7, atol=1e-9)


def test_company_changes_no_bit() -> None:
    data = images()
    trainer = Trainer(small_cnn, LOSS, replace(RECIPES["plain"], optimizer="toy-adam", learning_rate=0.01), data)
    runs = some_runs(data, 7, 8)
    together = trainer.train_all(runs)
    for run, model in zip(runs[:4], together, strict=False):
        assert isinstance(model, nn.Module)
        assert torch.equal(parameters_of(model), parameters_of(trainer.train(run)))


def test_an_optimizer_that_mixes_models_trains_them_one_by_one() -> None:
    recipe = replace(RECIPES["plain"], optimizer="whitened")
    for kind in (StackedPack, MappedPack):
        assert "optimizer 'whitened' moves several models" in str(why_not_packed(small_cnn, LOSS, recipe, images(), kind))
    assert Trainer(small_cnn, LOSS, recipe, images()).pack_kind == "solo"


def test_state_has_the_declared_shapes_and_parameters_without_gradient_stay() -> None:
    recipe = replace(RECIPES["plain"], optimizer="toy-adam")
    parameters = [torch.ones(4, 3, 2), torch.ones(4, 5)]
    optimized = OptimizedParameters(make_optimizer(recipe), parameters, slots=4)
    shapes = [{name: tuple(tensor.shape) for name, tensor in state.items()} for state in optimized.state]
    assert shapes == [{"first": (4, 3, 2), "second": (4, 3, 2), "count": (4,)}, {"first": (4, 5), "second": (4, 5), "count": (4,)}]
    optimized.step([torch.ones(4, 3, 2), None], 0.5, [2])
    assert parameters[0][:, 0, 0].tolist() == pytest.approx([0.5, 0.5, 1.0, 0.5], abs=1e-4)
    assert torch.equal(parameters[1], torch.ones(4, 5))
    assert optimized.state[0]["count"].tolist() == [1, 1, 0, 1]


def test_whether_identities_hold_is_the_optimizers_word() -> None:
    assert identity_gap_reasons(RECIPES["plain"]) == []
    assert identity_gap_reasons(RECIPES["cosine"]) == []
    assert [reason.split(":")[0] for reason in identity_gap_reasons(RECIPES["all"])] == ["momentum 0.8", "weight decay 0.05"]
    assert identity_gap_reasons(replace(RECIPES["plain"], optimizer="sign")) == ["Adam divides each step by its size"]
    assert make_optimizer(RECIPES["plain"]).description == "plain SGD"
    assert make_optimizer(RECIPES["all"]).description == "SGD with momentum 0.8 and weight decay 0.05"


def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"no optimizer 'sdg'[\s\S]*did you mean sgd"):
        make_optimizer(replace(RECIPES["plain"], optimizer="sdg"))
    with pytest.raises(ConfigError, match="name"):
        OPTIMIZERS.register("sgd", ToyAdam)
    with pytest.raises(ProblemError, match="weight_decay"):
        make_optimizer(replace(RECIPES["weight decay"], optimizer="toy-adam"))
    with pytest.raises(ProblemError, match=r"recipe\.optimizer"):
        replace(RECIPES["plain"], optimizer="")
    entry = importlib.metadata.EntryPoint("installed", f"{__name__}:ToyAdam", "genrep_dist.optimizers")
    registry: Registry[type[Optimizer]] = Registry("optimizer", "genrep_dist.optimizers")
    monkeypatch.setattr("genrep_dist.registry.entry_points", lambda group: [entry] if group == entry.group else [])
    assert registry.get("installed") is ToyAdam
