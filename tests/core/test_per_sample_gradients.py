"""Dense per-sample gradients against one backward pass a sample, and last-layer features against the layer's weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from genrep_dist.core.gradients.last_layer import find_last_layer, last_layer_features
from genrep_dist.core.gradients.model import check_model, model_outputs, parameter_vector
from genrep_dist.core.gradients.per_sample import per_sample_gradients
from genrep_dist.errors import ProblemError
from tests.core.models import Squeezed, Tied, cnn, initialise, jacobian_by_loop, mlp, rows

ModelAndInputs = tuple[nn.Module, Tensor]

MODELS: dict[str, Callable[[], ModelAndInputs]] = {
    "cnn, one output": lambda: (cnn(1), rows(5, 2, 6, 6)),
    "cnn, four outputs": lambda: (cnn(4), rows(5, 2, 6, 6)),
    "mlp, one output": lambda: (mlp(1), rows(7, 4)),
    "mlp returning (B,)": lambda: (Squeezed(mlp(1)).eval(), rows(7, 4)),
    "mlp, four outputs": lambda: (mlp(4), rows(7, 4)),
    "tied weights": lambda: (initialise(Tied(), 3), rows(6, 4)),
    "instance norm without statistics": lambda: (
        initialise(nn.Sequential(nn.Conv2d(2, 3, 3), nn.InstanceNorm2d(3, affine=True), nn.Flatten(), nn.Linear(48, 2)), 4),
        rows(4, 2, 6, 6),
    ),
    "embedding": lambda: (
        initialise(nn.Sequential(nn.Embedding(9, 3), nn.Flatten(), nn.Linear(12, 2)), 5),
        torch.arange(20).reshape(5, 4) % 9,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_gradients_agree_with_one_by_one_backward(name: str) -> None:
    model, inputs = MODELS[name]()
    expected = jacobian_by_loop(model, inputs)
    gradients = per_sample_gradients(model, inputs)
    assert gradients.dtype == torch.float64
    assert gradients.shape == (len(inputs), model_outputs(model, inputs).shape[1], parameter_vector(model).numel())
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(gradients, expected, rtol=1e-11, atol=1e-12)


def test_gradients_in_float32_agree_with_backward_in_float64() -> None:
    expected = jacobian_by_loop(cnn(4), rows(5, 2, 6, 6))
    gradients = per_sample_gradients(cnn(4).float(), rows(5, 2, 6, 6).float())
    assert gradients.dtype == torch.float32
    torch.testing.assert_close(gradients.double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["cnn, one output", "cnn, four outputs", "mlp returning (B,)", "mlp, four outputs"])
def test_output_index_selects_each_samples_output(name: str) -> None:
    model, inputs = MODELS[name]()
    full = per_sample_gradients(model, inputs)
    index = torch.arange(len(inputs)) % full.shape[1]
    selected = per_sample_gradients(model, inputs, index)
    assert selected.shape == (len(inputs), full.shape[2])
    torch.testing.assert_close(selected, full[torch.arange(len(inputs)), index], rtol=1e-12, atol=1e-13)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=9), st.integers(1, 9), st.sampled_from([1, 4]))
def test_gradients_do_not_depend_on_the_batch(picked: list[int], size: int, num_outputs: int) -> None:
    model, inputs = cnn(num_outputs), rows(9, 2, 6, 6)
    whole = per_sample_gradients(model, inputs)
    parts = torch.cat([per_sample_gradients(model, part) for part in torch.split(inputs[picked], size)])
    torch.testing.assert_close(parts, whole[picked], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_outputs", [1, 4])
def test_frozen_parameters_are_constants(num_outputs: int) -> None:
    model, inputs = cnn(num_outputs), rows(4, 2, 6, 6)
    everything = per_sample_gradients(model, inputs)
    sizes = [p.numel() for p in model.parameters()]
    frozen = {"0.weight", "4.bias"}
    keep = torch.cat([torch.full((s,), n not in frozen) for (n, _), s in zip(model.named_parameters(), sizes, strict=True)])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    gradients = per_sample_gradients(model, inputs)
    assert gradients.shape[-1] == int(keep.sum()) == parameter_vector(model).numel()
    torch.testing.assert_close(gradients, everything[..., keep], rtol=1e-12, atol=1e-13)


def test_gradients_change_nothing_in_the_model_and_ignore_grad_mode() -> None:
    model, inputs = cnn(2), rows(4, 2, 6, 6)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = per_sample_gradients(model, inputs)
    with torch.no_grad():
        torch.testing.assert_close(per_sample_gradients(model, inputs), expected, rtol=0, atol=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not expected.requires_grad


def test_parameter_vector_moves_along_gradients() -> None:
    # f(theta + h d) - f(theta) = h <J, d>: the order of the vector and of the features is the same.
    model, inputs = mlp(3), rows(5, 4)
    theta = parameter_vector(model)
    step = 1e-6 * rows(1, theta.numel(), seed=8)[0]
    before = model_outputs(model, inputs).detach()
    predicted = per_sample_gradients(model, inputs) @ step
    nn.utils.vector_to_parameters(theta + step, model.parameters())
    torch.testing.assert_close(model_outputs(model, inputs).detach() - before, predicted, rtol=1e-4, atol=1e-10)


def test_parameter_vector_is_a_copy() -> None:
    model = mlp(1)
    theta = parameter_vector(model)
    expected = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    torch.testing.assert_close(theta, expected, rtol=0, atol=0)
    theta.zero_()
    assert parameter_vector(model).abs().sum() > 0


def test_train_mode_is_refused_even_in_one_layer() -> None:
    model, inputs = cnn(1), rows(2, 2, 6, 6)
    model.get_submodule("6").train()
    with pytest.raises(ProblemError, match=r"layer '6' \(Dropout\)"):
        per_sample_gradients(model, inputs)
    with pytest.raises(ProblemError, match="eval mode"):
        last_layer_features(model, inputs)
    with pytest.raises(ProblemError, match="eval mode"):
        per_sample_gradients(mlp(1).train(), rows(2, 4))


def test_bad_arguments_are_refused() -> None:
    model, inputs = mlp(3), rows(4, 4)
    with pytest.raises(ProblemError, match="empty batch"):
        per_sample_gradients(model, inputs[:0])
    for bad in (torch.zeros(3, dtype=torch.int64), torch.zeros(4), torch.zeros(4, 1, dtype=torch.int64)):
        with pytest.raises(ProblemError, match="does not fit the batch"):
            per_sample_gradients(model, inputs, bad)
    for value in (-1, 3):
        with pytest.raises(ProblemError, match="out of range"):
            per_sample_gradients(model, inputs, torch.full((4,), value))


class Returns(nn.Module):
    """Returns ``make(inputs)``."""

    def __init__(self, make: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.make = make

    def forward(self, inputs: Tensor) -> object:
        return self.make(inputs)


def test_outputs_have_two_dimensions_or_are_refused() -> None:
    inputs = rows(3, 4)
    assert model_outputs(Returns(lambda x: x[:, 0]), inputs).shape == (3, 1)
    assert model_outputs(Returns(lambda x: x[:, :1]), inputs).shape == (3, 1)
    assert model_outputs(Returns(lambda x: x), inputs).shape == (3, 4)
    wrong: list[Callable[[Tensor], object]] = [
        lambda x: x.sum(),
        lambda x: x[:2],
        lambda x: x[:, :0],
        lambda x: x.unsqueeze(2),
        lambda x: {"hidden": x},
    ]
    for make in wrong:
        with pytest.raises(ProblemError, match="wrong form"):
            model_outputs(Returns(make), inputs)


def test_a_model_that_squeezes_may_drop_a_batch_of_one_and_nothing_else() -> None:
    one, three = mlp(1), mlp(3)
    assert model_outputs(Returns(lambda x: one(x).squeeze()), rows(1, 4)).shape == (1, 1)
    assert model_outputs(Returns(lambda x: three(x).squeeze()), rows(1, 4)).shape == (1, 3)
    with pytest.raises(ProblemError, match=r"squeeze\(1\)"):
        model_outputs(Returns(lambda x: one(x).sum()), rows(2, 4))
    with pytest.raises(ProblemError, match="returns the logits alone"):
        model_outputs(Returns(lambda x: (None, one(x))), rows(2, 4))


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_models_without_defined_gradients_are_refused() -> None:
    with pytest.raises(ProblemError, match="running statistics") as caught:
        check_model(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False)))
    assert "'1' (BatchNorm1d)" in str(caught.value)
    with pytest.raises(ProblemError, match="no trainable parameters"):
        check_model(nn.Flatten())
    with pytest.raises(ProblemError, match="no trainable parameters"):
        check_model(mlp(1).requires_grad_(False))
    with pytest.raises(ProblemError, match="no shape yet"):
        check_model(nn.LazyLinear(2))
    for fine in (cnn(2), mlp(1), nn.Sequential(nn.InstanceNorm1d(2), nn.Linear(2, 1))):
        check_model(fine)


@pytest.mark.parametrize(("name", "layer"), [("cnn, one output", "8"), ("cnn, four outputs", "8"), ("mlp returning (B,)", "body.2")])
def test_outputs_are_features_times_the_last_layer(name: str, layer: str) -> None:
    model, inputs = MODELS[name]()
    assert find_last_layer(model, inputs) == layer
    features = last_layer_features(model, inputs)
    last = model.get_submodule(layer)
    assert isinstance(last, nn.Linear)
    weight = torch.cat([last.weight, last.bias.unsqueeze(1)], dim=1).detach()
    assert features.shape == (len(inputs), last.in_features + 1)
    assert torch.equal(features[:, -1], torch.ones(len(inputs), dtype=torch.float64))
    torch.testing.assert_close(features @ weight.T, model_outputs(model, inputs).detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(last_layer_features(model, inputs, layer), features, rtol=0, atol=0)
    assert not features.requires_grad


def test_a_last_layer_without_bias_has_no_constant_feature() -> None:
    model = initialise(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2, bias=False)), 2)
    inputs = rows(6, 4)
    features = last_layer_features(model, inputs)
    assert features.shape == (6, 5)
    weight = dict(model.named_parameters())["2.weight"].detach()
    torch.testing.assert_close(features @ weight.T, model_outputs(model, inputs).detach(), rtol=1e-12, atol=1e-12)


def test_the_last_layer_is_found_by_its_output_and_not_by_its_place() -> None:
    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(5, 2)
            self.body = nn.Linear(4, 5)

        def forward(self, inputs: Tensor) -> Tensor:
            out: Tensor = self.head(torch.relu(self.body(inputs)))
            return out

    model, inputs = initialise(Reversed(), 0), rows(3, 4)
    assert find_last_layer(model, inputs) == "head"
    assert last_layer_features(model, inputs).shape == (3, 6)
    # A named layer is verified.
    with pytest.raises(ProblemError, match="its output has shape"):
        last_layer_features(model, inputs, "body")


def test_features_do_not_change_when_activations_do() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 1)

        def forward(self, inputs: Tensor) -> Tensor:
            hidden = torch.relu(self.body(inputs))
            out: Tensor = self.head(hidden)
            hidden.zero_()
            return out

    assert last_layer_features(initialise(InPlace(), 0), rows(3, 4))[:, :-1].abs().sum() > 0


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Conv2d(2, 1, 6), nn.Flatten()), "it has no nn.Linear"),
        (nn.Sequential(nn.Flatten(), nn.Linear(72, 2), nn.Sigmoid()), "changes its output further"),
        (nn.Sequential(nn.Linear(6, 6), nn.Flatten()), "4 dimensions"),
        (nn.Sequential(nn.Flatten(), nn.Linear(72, 5), nn.LogSoftmax(dim=1)), "changes its output further"),
    ],
)
def test_models_that_do_not_end_in_a_linear_layer_are_refused_with_the_reason(model: nn.Module, reason: str) -> None:
    initialise(model, 0)
    with pytest.raises(ProblemError, match=reason):
        last_layer_features(model, rows(3, 2, 6, 6))
    with pytest.raises(ProblemError, match=reason):
        find_last_layer(model, rows(3, 2, 6, 6))


def test_a_layer_that_runs_twice_is_no_last_layer() -> None:
    layer = nn.Linear(4, 4)
    model = initialise(nn.Sequential(layer, nn.Tanh(), layer), 0)
    with pytest.raises(ProblemError, match="runs 2 times"):
        last_layer_features(model, rows(3, 4), "0")


def test_a_named_layer_must_be_a_linear_layer() -> None:
    with pytest.raises(ProblemError, match="no such layer"):
        last_layer_features(mlp(1), rows(3, 4), "head")
    with pytest.raises(ProblemError, match="Tanh"):
        last_layer_features(mlp(1), rows(3, 4), "1")
