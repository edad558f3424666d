"""Every model whose gradients are defined has right features: by rules, by torch.func, or one sample at a time. All others are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from genrep_dist.core.gradients.factored import inner_products
from genrep_dist.core.gradients.inspection import inspect_model, slow_layers
from genrep_dist.core.gradients.model import num_parameters, parameter_vector
from genrep_dist.core.gradients.per_sample import factored_gradients, per_sample_gradients
from genrep_dist.core.gradients.projection import Projection
from genrep_dist.core.losses import LOSSES
from genrep_dist.core.solvers.hessian import hessian_product
from genrep_dist.errors import ProblemError
from tests.core.fallback_models import MODELS, Own, SinglePrecision, Squeezing, make, truth
from tests.core.models import initialise, mlp, rows

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
    pytest.mark.filterwarnings("ignore:Casting complex values to real"),
]


@pytest.mark.parametrize("name", MODELS)
def test_features_are_those_of_single_backward_passes(name: str) -> None:
    """Dense and factored gradients, of one row and of several, their products, single outputs and projections."""
    model, inputs = make(name)
    expected = truth(model, inputs)
    flat = expected.flatten(0, 1)
    gram = flat @ flat.T
    found = factored_gradients(model, inputs)
    torch.testing.assert_close(found.to_dense(), expected, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(inner_products(found, found), gram, rtol=1e-9, atol=1e-10 * float(gram.abs().max()))
    torch.testing.assert_close(per_sample_gradients(model, inputs[:1]), expected[:1], rtol=1e-10, atol=1e-11)
    index = torch.arange(len(inputs)) % expected.shape[1]
    own = per_sample_gradients(model, inputs, index)
    torch.testing.assert_close(own, expected[torch.arange(len(inputs)), index], rtol=1e-10, atol=1e-11)
    assert expected.shape[2] == num_parameters(model) == len(parameter_vector(model))
    projected = Projection(8, "rademacher", 0).project(found).to_dense()
    torch.testing.assert_close(projected, torch.cat([Projection(8, "rademacher", 0).project(found.part(i, i + 1)).rest for i in range(6)]))


REASONS = {"check inside forward": "calling .item()", "scripted": "Jitted", "fails on one row": "copy of itself"}


@pytest.mark.parametrize("name", REASONS)
def test_the_reason_for_one_sample_at_a_time_is_said(name: str) -> None:
    lines = slow_layers(inspect_model(*make(name)))
    assert any("loop" in line for line in lines)
    assert any(REASONS[name] in line for line in lines)


def test_layers_with_the_same_reason_share_a_line() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Bilinear(4, 4, 4) for _ in range(5)])

        def forward(self, inputs: Tensor) -> Tensor:
            for layer in self.layers:
                inputs = torch.tanh(layer(inputs, inputs))
            return inputs[:, :2]

    (line,) = slow_layers(inspect_model(initialise(Deep(), 1), rows(4, 4)))
    assert line.startswith("layers.0, layers.1, layers.2 and 2 more (Bilinear): torch.func")


@pytest.mark.parametrize("layer", [nn.Linear(4, 4), nn.Conv1d(3, 3, 3, padding=1)], ids=["linear", "convolution"])
def test_a_branch_that_the_trial_does_not_see(layer: nn.Module) -> None:
    """The structure of the features stays, whatever the other samples do: blocks of both kinds can be multiplied."""

    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.layer, self.head = nn.Embedding(9, 4), layer, nn.Linear(12, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            hidden = torch.tanh(self.layer(self.embed(inputs)))
            late = (inputs[:, :1] == 8).unsqueeze(2)
            if bool(late.any()):
                hidden = torch.where(late, torch.tanh(self.layer(hidden)), hidden)
            out: Tensor = self.head(hidden.flatten(1))
            return out

    model, inputs = initialise(Late(), 0), torch.arange(27).reshape(9, 3) % 8
    late = inputs.clone()
    late[4:, 0] = 8
    assert not slow_layers(inspect_model(model, inputs))
    early_rows, late_rows = factored_gradients(model, inputs), factored_gradients(model, late)
    first, second = truth(model, inputs), truth(model, late)
    torch.testing.assert_close(late_rows.to_dense(), second, rtol=1e-10, atol=1e-11)
    for left, right, a, b in [
        (early_rows, late_rows, first, second),
        (late_rows, early_rows, second, first),
        (late_rows, late_rows, second, second),
    ]:
        expected = a.flatten(0, 1) @ b.flatten(0, 1).T
        torch.testing.assert_close(inner_products(left, right), expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(left.as_operand().inner(right.as_operand()), expected, rtol=1e-9, atol=1e-9)
    both = type(early_rows).cat([early_rows, late_rows])
    torch.testing.assert_close(both.to_dense(), torch.cat([first, second]), rtol=1e-10, atol=1e-11)


def test_gradients_that_are_zero_but_for_rounding_keep_their_rules() -> None:
    """The bias of attention keys shifts all scores of a query alike, and softmax does not see it."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            weights = (self.query(inputs) @ self.key(inputs).transpose(1, 2)).softmax(dim=2)
            out: Tensor = self.head((weights @ self.value(inputs)).mean(dim=1))
            return out

    model = initialise(Attention(), 2)
    assert not slow_layers(inspect_model(model, rows(4, 3, 4)))
    assert not slow_layers(inspect_model(model.float(), rows(4, 3, 4).float()))


class _Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the largest tensor that is computed."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def test_inspection_forms_no_rows_of_all_outputs() -> None:
    model = mlp(50, width=40, inputs=60)
    with _Largest() as largest:  # type: ignore[no-untyped-call]
        inspect_model(model, rows(5, 60))
    assert largest.numel <= num_parameters(model)


# -- Hessian ---------------------------------------------------------------------------------------------------------------------------


FAST_HESSIANS = ("PReLU", "compiled", "complex parameters", "no dimensions", "fails on one row", "mixture of experts")
SLOW_HESSIANS = ("own autograd function", "checkpointed", "scripted", "wrapped")


@pytest.mark.parametrize("name", [*FAST_HESSIANS, *SLOW_HESSIANS])
def test_products_with_the_hessian(name: str) -> None:
    model, inputs = make(name)
    targets, loss = torch.arange(len(inputs)) % 2, LOSSES["softmax"]
    parameters = list(model.parameters())
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        first = torch.autograd.grad(loss.value(model(inputs), targets).mean(), parameters, create_graph=True)
        flat = torch.cat([(torch.view_as_real(g) if g.is_complex() else g).reshape(-1) for g in first])
        lines = []
        for value in flat:
            second = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
            dense = [torch.zeros_like(p) if g is None else g for g, p in zip(second, parameters, strict=True)]
            lines.append(torch.cat([(torch.view_as_real(g) if g.is_complex() else g).reshape(-1) for g in dense]))
    expected = torch.stack(lines)
    product = hessian_product(model, loss, inputs, targets, batch_size=4)
    found = product(torch.eye(len(flat), dtype=torch.float64))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10 * float(expected.abs().max()))
    assert bool(product.slow_reason) == (name in SLOW_HESSIANS)


def test_a_model_that_only_runs_in_its_own_precision() -> None:
    model, inputs, targets, loss = SinglePrecision(4, 2).eval(), rows(4, 4).float(), torch.arange(4) % 2, LOSSES["softmax"]
    product = hessian_product(model, loss, inputs, targets, batch_size=4)(torch.ones(num_parameters(model), 1))
    plain = initialise(nn.Linear(4, 2), 0)
    plain.load_state_dict({"weight": model.weight.double(), "bias": model.bias.double() + 4})
    expected = hessian_product(plain, loss, inputs.double(), targets, batch_size=4)(torch.ones(num_parameters(model), 1))
    torch.testing.assert_close(product, expected, rtol=1e-5, atol=1e-6)


# -- refusals --------------------------------------------------------------------------------------------------------------------------


class NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise NotImplementedError("no derivative here")


def _middle(function: Callable[[Tensor], Tensor]) -> nn.Module:
    class Middle(Own):
        def middle(self, hidden: Tensor) -> Tensor:
            return function(hidden)

    return initialise(Middle(), 1)


class Complex(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        return torch.complex(super().forward(inputs), super().forward(inputs))


class Detached(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs).detach()


class MixedAndSqueezed(Squeezing):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs - inputs.mean(dim=0))


REFUSED: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], str]] = {
    "dropout in evaluation mode": (lambda: _middle(functional.dropout), lambda: rows(4, 4), "two passes over the same sample .* differ"),
    "noise of NumPy": (
        lambda: _middle(lambda h: h * (1 + 0.01 * float(np.random.default_rng().random()))),
        lambda: rows(4, 4),
        "two passes over the same sample .* differ",
    ),
    "a random layer": (
        lambda: initialise(nn.Sequential(nn.Linear(4, 4), _Noise(), nn.Linear(4, 2)), 1),
        lambda: rows(4, 4),
        r"(?s)differ.*where: model layer '1' \(_Noise\)",
    ),
    "without a derivative": (
        lambda: _middle(NoBackward.apply),
        lambda: rows(4, 4),
        r"(?s)not defined.*parameter 'mix'.*no derivative here",
    ),
    "detached": (lambda: initialise(Detached(4, 2), 1), lambda: rows(4, 4), "outputs have no gradient"),
    "complex outputs": (lambda: initialise(Complex(4, 2), 1), lambda: rows(4, 4), "not real numbers"),
    "mixed and fails on one row": (lambda: initialise(MixedAndSqueezed(), 1), lambda: rows(4, 3, 4), "depend on the other samples"),
    "fails": (lambda: initialise(nn.Linear(3, 2), 1), lambda: rows(4, 4), r"(?s)fails on one row.*RuntimeError"),
}


class _Noise(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + torch.rand_like(inputs)


@pytest.mark.parametrize("name", REFUSED)
def test_what_plain_autograd_does_not_define_is_refused(name: str) -> None:
    build, inputs, message = REFUSED[name]
    with pytest.raises(ProblemError, match=message):
        per_sample_gradients(build(), inputs())


def test_sample_that_fails_later_says_why() -> None:
    def middle(hidden: Tensor) -> Tensor:
        if bool((hidden.detach().abs() > 100).any()):
            raise ValueError("too large")
        return hidden

    model = _middle(middle)
    per_sample_gradients(model, rows(4, 4))
    with pytest.raises(ProblemError, match=r"(?s)fails on one row.*too large"):
        per_sample_gradients(model, 1e6 * rows(4, 4))


def test_inspection_leaves_shared_modules_with_their_parameters() -> None:
    layer = nn.Linear(4, 4)
    model = initialise(nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(4, 2)), 0)
    before = dict(model.named_parameters())
    per_sample_gradients(model, rows(4, 4))
    hessian_product(model, LOSSES["softmax"], rows(4, 4), torch.arange(4) % 2, batch_size=4)(torch.ones(num_parameters(model), 1))
    assert all(before[name] is parameter for name, parameter in model.named_parameters())
    assert len(before) == len(dict(model.named_parameters()))


class Hungry(nn.Module):
    """Out of memory for more than one row."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        if len(inputs) > 1:
            raise MemoryError("made by a test")
        result: Tensor = self.linear(inputs)
        return result


def test_a_lack_of_memory_chooses_no_slower_way() -> None:
    model = Hungry().eval()
    with pytest.raises(MemoryError, match="made by a test"):
        per_sample_gradients(model, torch.randn(3, 4))
    with pytest.raises(MemoryError, match="made by a test"):
        hessian_product(model, LOSSES["softmax"], torch.randn(3, 4), torch.tensor([0, 1, 0]), batch_size=3)(
            torch.ones(num_parameters(model), 1)
        )
