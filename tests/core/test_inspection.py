"""Models whose gradients do not follow from layer rules take a slower strategy, with the reason, and are still right."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from genrep_dist.core.gradients import torch_internals
from genrep_dist.core.gradients.inspection import inspect_model, slow_layers
from genrep_dist.core.gradients.per_sample import factored_gradients
from tests.core.models import Tied, check_gradients, initialise, jacobian_by_loop, mlp, rows


class Twice(nn.Module):
    """One layer that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.body(torch.tanh(self.body(inputs)))))
        return out


class UsedElsewhere(nn.Module):
    """The weight of a layer is used a second time, not through the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.body(inputs)) @ self.body.weight)
        return out


class TiedEmbedding(nn.Module):
    """An embedding whose weight is also a linear layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.out = nn.Linear(4, 6, bias=False)
        self.out.weight = self.embedding.weight
        self.head = nn.Linear(6, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.out(self.embedding(tokens).mean(dim=1))))
        return out


class Flattened(nn.Module):
    """A layer that sees (B T, I)."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.body(inputs.reshape(-1, 4)))
        out: Tensor = self.head(hidden.reshape(len(inputs), -1, 3).mean(dim=1))
        return out


class Reversed(nn.Module):
    """A layer that sees the samples in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.body(inputs.flip(0)).flip(0)))
        return out


class MixesSamples(nn.Module):
    """Its outputs depend on the other samples of their batch; a sample's gradient is that of the sample alone."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.head(inputs + (inputs.sum(dim=0, keepdim=True) - inputs).detach())
        return out


class OwnMatrix(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.ones(4, 4))
        self.head = nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(functional.linear(inputs, self.mix)))
        return out


class Keyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.body(input=inputs)))
        return out


class Doubling(nn.Linear):
    """A subclass that computes something else."""

    def forward(self, inputs: Tensor) -> Tensor:
        return 2 * super().forward(inputs)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden, _ = self.body(inputs)
        out: Tensor = self.head(hidden[:, -1])
        return out


class CrossAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden, _ = self.body(inputs[:, :1], inputs, inputs, need_weights=False)
        out: Tensor = self.head(hidden[:, 0])
        return out


class BiasedAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.MultiheadAttention(4, 2, batch_first=True, add_bias_kv=True), nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden, _ = self.body(inputs, inputs, inputs)
        out: Tensor = self.head(hidden.mean(dim=1))
        return out


class Unused(nn.Module):
    """A layer that no output depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.idle, self.head = nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        self.idle(inputs)
        out: Tensor = self.head(inputs)
        return out


def parametrised() -> nn.Module:
    model = mlp(2)
    nn.utils.parametrizations.weight_norm(model.get_submodule("0"))
    return model


def hooked() -> nn.Module:
    model = mlp(2)
    model.get_submodule("0").register_forward_hook(lambda _module, _args, result: 2 * result)
    return model


def replaced_forward() -> nn.Module:
    model = mlp(2)
    layer = model.get_submodule("0")
    plain = layer.forward
    layer.forward = lambda inputs: 3 * plain(inputs)
    return model


def shared_module() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(4, 2))


def subclassed() -> nn.Module:
    return nn.Sequential(Doubling(4, 3), nn.Tanh(), nn.Linear(3, 2))


UNUSUAL: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], str, str]] = {
    "layer called twice": (Twice, lambda: rows(5, 4), "body.weight", "runs 2 times"),
    "module in two places": (shared_module, lambda: rows(5, 4), "0.weight", "several layers"),
    "tied weights": (Tied, lambda: rows(5, 4), "first.weight", "several layers"),
    "tied embedding": (TiedEmbedding, lambda: torch.arange(10).reshape(5, 2) % 6, "embedding.weight", "several layers"),
    "weight used elsewhere": (UsedElsewhere, lambda: rows(5, 4), "body.weight", "used 2 times"),
    "samples and positions together": (Flattened, lambda: rows(4, 3, 4), "body.weight", "not the samples"),
    "samples in another order": (Reversed, lambda: rows(5, 4), "body.weight", "does not follow"),
    "samples mixed": (MixesSamples, lambda: rows(5, 4), "head.weight", "depend on the other samples"),
    "own parameter of two dimensions": (OwnMatrix, lambda: rows(5, 4), "mix", "no rule"),
    "keyword argument": (Keyword, lambda: rows(5, 4), "body.weight", "not called with exactly one tensor"),
    "subclass": (subclassed, lambda: rows(5, 4), "0.weight", "layer type Doubling"),
    "parametrisation": (parametrised, lambda: rows(5, 4), "0.parametrizations.weight.original1", "no rule"),
    "hook": (hooked, lambda: rows(5, 4), "0.weight", "its own hooks"),
    "replaced forward": (replaced_forward, lambda: rows(5, 4), "0.weight", "replaced forward"),
    "recurrent": (Recurrent, lambda: rows(4, 3, 4), "body.weight_ih_l0", "layer type LSTM"),
    "attention to others": (CrossAttention, lambda: rows(4, 3, 4), "body.in_proj_weight", "the layer runs 0 times"),
    "attention with more keys": (BiasedAttention, lambda: rows(4, 3, 4), "body.in_proj_weight", "layer type MultiheadAttention"),
    "unused": (Unused, lambda: rows(5, 4), "idle.weight", "used 0 times"),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_parameters_that_no_rule_covers_take_a_slower_strategy(name: str) -> None:
    make, inputs, parameter, reason = UNUSUAL[name]
    model = make()
    before = [(hook, len(module._forward_hooks)) for module in model.modules() for hook in [id(module)]]
    model = initialise(model, 3)
    inspection = inspect_model(model, inputs())
    assert parameter in (*inspection.torch_func, *inspection.loop)
    slow = next(one for one in inspection.strategies if parameter in one.parameters)
    assert reason in slow.reason
    assert any(reason in line and slow.strategy in line for line in slow_layers(inspection))
    # The rule of the head applies whatever comes before it, unless samples are mixed.
    assert name == "samples mixed" or any(one.strategy == "factored" for one in inspection.strategies)
    check_gradients(model, inputs())
    assert before == [(id(module), len(module._forward_hooks)) for module in model.modules()]


class InPlace(nn.Module):
    """Outputs of layers that are changed in place afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs)
        hidden.mul_(1.5).tanh_()
        out: Tensor = self.head(self.second(hidden).relu_())
        return out


def test_outputs_that_are_changed_in_place() -> None:
    model, inputs = initialise(InPlace(), 0), rows(5, 4)
    assert not inspect_model(model, inputs).torch_func
    check_gradients(model, inputs)


class Branching(nn.Module):
    """Runs its layer twice for large inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.body(inputs)
        if float(inputs.detach().abs().max()) > 100:
            hidden = self.body(hidden)
        out: Tensor = self.head(hidden)
        return out


def test_samples_for_which_a_model_branches_are_computed_one_at_a_time() -> None:
    model, large = initialise(Branching(), 0), 1000 * rows(3, 4)
    factored_gradients(model, rows(3, 4))
    torch.testing.assert_close(factored_gradients(model, large).to_dense(), jacobian_by_loop(model, large))


def test_a_model_is_inspected_again_when_it_changes() -> None:
    model, inputs = initialise(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), 0), rows(5, 4)
    check_gradients(model, inputs)
    first, second = model[0], model[2]  # type: ignore[index]
    second.weight = first.weight
    check_gradients(model, inputs)
    first.weight.requires_grad_(False)
    assert factored_gradients(model, inputs).parameters == (("0.bias", (4,)), ("2.bias", (4,)))
    first.register_forward_hook(lambda _module, _args, result: 2 * result)
    assert "hooks" in next(one for one in inspect_model(model, inputs).strategies if one.layer == "0").reason


@pytest.mark.parametrize("name", ["HOOK_ATTRIBUTES", "VERSION_ATTRIBUTE"])
def test_without_private_torch_attributes_gradients_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = ("_gone",) if name == "HOOK_ATTRIBUTES" else "_gone"
    monkeypatch.setattr(torch_internals, name, gone)
    model, inputs = initialise(InPlace(), 0), rows(5, 4)
    inspection = inspect_model(model, inputs)
    # Without knowledge of hooks no rule is trusted; without versions the inputs are copied.
    assert bool(inspection.torch_func) == (name == "HOOK_ATTRIBUTES")
    check_gradients(model, inputs)
