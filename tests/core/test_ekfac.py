"""EK-FAC against explicit Kronecker products of tiny networks, with gradients of one sample at a time by autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from genrep_dist.config.ekfac import EkfacSection
from genrep_dist.config.sections import InfluenceSection
from genrep_dist.core.gradients.reference import one_by_one
from genrep_dist.core.kernels.ekfac import EkfacKernel
from genrep_dist.core.solvers.gauss_newton import square_root
from genrep_dist.errors import MethodError, NonFiniteError, ProblemError
from genrep_dist.testing.kernels import DenseInputs, DerivedKernelTests

NUM_TRAIN, NUM_TEST = 9, 3


def kernel(fisher: str = "ggn", relative_to: str = "layer", **influence: Any) -> EkfacKernel:
    declared = {"damping": 0.03, "damping_unit": "mean-eigenvalue", **influence}
    section = EkfacSection.model_validate({"fisher": fisher, "relative_to": relative_to})
    return EkfacKernel(InfluenceSection.model_validate(declared), section)


class TestEkfac(DerivedKernelTests):
    def make_kernel(self) -> EkfacKernel:
        return kernel()


class TestEmpiricalEkfac(DerivedKernelTests):
    def make_kernel(self) -> EkfacKernel:
        return kernel("empirical")


class Sequence(nn.Module):
    """An embedding of tokens, a normalisation, a linear layer on each position, one without a bias, and the mean over positions."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.tokens, self.norm = nn.Embedding(6, 4), nn.LayerNorm(4)
        self.inner, self.out = nn.Linear(4, 3), nn.Linear(3, num_outputs, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        outputs: Tensor = self.out(torch.tanh(self.inner(self.norm(self.tokens(tokens.long())))).mean(dim=1))
        return outputs


def convolutional(num_outputs: int) -> nn.Module:
    layers = nn.Conv2d(2, 3, 3, padding=1, stride=2), nn.Tanh(), nn.Conv2d(3, 4, 2, bias=False), nn.Tanh(), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(4, num_outputs))


def grouped(num_outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(16, num_outputs))


MODELS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda outputs: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, outputs)), (5,)),
    "convolutional": (convolutional, (2, 4, 4)),
    "sequence": (Sequence, (7,)),
    "grouped": (grouped, (2, 3, 3)),
}


def given(name: str, num_outputs: int) -> DenseInputs:
    build, shape = MODELS[name]
    torch.manual_seed(0)
    model = build(num_outputs).eval()
    generator = torch.Generator().manual_seed(1)
    rows = NUM_TRAIN + NUM_TEST
    inputs = (
        torch.randint(0, 6, (rows, *shape), generator=generator) if name == "sequence" else torch.randn(rows, *shape, generator=generator)
    )
    return DenseInputs(model, inputs[:NUM_TRAIN], inputs[NUM_TRAIN:], torch.arange(NUM_TEST) % num_outputs)


def patches(layer: nn.Module, inputs: Tensor) -> Tensor:
    """(T, K) of one sample, with the constant 1 of a bias."""
    if isinstance(layer, nn.Conv2d):
        assert not isinstance(layer.padding, str)
        rows = functional.unfold(inputs, layer.kernel_size, padding=layer.padding, stride=layer.stride)[0].T
    else:
        rows = inputs.reshape(-1, inputs.shape[-1])
    return rows if layer.bias is None else torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)


def reference(inputs: DenseInputs, fisher: str, damping: float, relative_to: str | None) -> Tensor:
    """K (N, C, M) of explicit matrices; ``relative_to`` None: an absolute damping."""
    model, train = inputs.model(), inputs.train_inputs
    with torch.no_grad():
        outputs = model(train)
    if fisher == "empirical":
        weights = inputs.loss.derivative(outputs, inputs.targets).unsqueeze(2)
    else:
        weights = square_root(inputs.loss.second_derivative(outputs, inputs.targets))
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) or (isinstance(m, nn.Conv2d) and m.groups == 1)]
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    hooks = [layer.register_forward_hook(lambda m, args, out: seen.__setitem__(m, (args[0].detach(), out))) for layer in layers]
    covariances: dict[nn.Module, list[Any]] = {layer: [0.0, 0.0, []] for layer in layers}
    others = [p for p in model.parameters() if not any(p is own for layer in layers for own in layer.parameters())]
    squares = [torch.zeros_like(p) for p in others]
    for sample, mixing in zip(train, weights, strict=True):
        for weight in mixing.T:
            value = (model(sample[None])[0] * weight).sum()
            wanted = [*(seen[layer][1] for layer in layers), *others]
            found = torch.autograd.grad(value, wanted)
            for layer, gradient in zip(layers, found[: len(layers)], strict=True):
                rows = patches(layer, seen[layer][0])
                back = gradient[0].flatten(1).T if isinstance(layer, nn.Conv2d) else gradient.reshape(-1, gradient.shape[-1])
                covariances[layer][0] += back.T @ back
                covariances[layer][1] += rows.T @ rows
                covariances[layer][2].append((back.T @ rows).flatten())
            for square, gradient in zip(squares, found[len(layers) :], strict=True):
                square.add_(gradient**2)
    for hook in hooks:
        hook.remove()
    # Blocks of H over the parameters of each layer, the bias last in each row of its weight.
    names = [name for name, _ in model.named_parameters()]
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    starts = {name: sum(sizes[other] for other in names[:at]) for at, name in enumerate(names)}
    places = {id(p): name for name, p in model.named_parameters()}
    blocks = []
    for layer in layers:
        outer, inner, gradients = covariances[layer]
        basis = torch.kron(torch.linalg.eigh(outer).eigenvectors, torch.linalg.eigh(inner).eigenvectors)
        eigenvalues = (torch.stack(gradients) @ basis).square().sum(dim=0) / len(train)
        name = places[id(layer.weight)]
        index = starts[name] + torch.arange(sizes[name]).reshape(len(layer.weight), -1)
        if layer.bias is not None:
            index = torch.cat([index, starts[places[id(layer.bias)]] + torch.arange(len(layer.bias))[:, None]], dim=1)
        blocks.append((index.flatten(), basis @ torch.diag(eigenvalues) @ basis.T))
    for parameter, square in zip(others, squares, strict=True):
        name = places[id(parameter)]
        blocks.append((starts[name] + torch.arange(sizes[name]), torch.diag(square.flatten() / len(train))))
    mean = sum(float(block.trace()) for _, block in blocks) / sum(sizes.values())
    jacobians = torch.stack([one_by_one(model, sample) for sample in train])
    tests = inputs.test_gradients()
    result = torch.zeros(len(train), jacobians.shape[1], len(tests), dtype=torch.float64)
    for index, block in blocks:
        unit = {"layer": float(block.diagonal().mean()), "model": mean, None: 1.0}[relative_to]
        solved = torch.linalg.solve(block + damping * unit * torch.eye(len(block), dtype=torch.float64), tests[:, index].T)
        result += jacobians[:, :, index] @ solved
    return result


@pytest.mark.parametrize("relative_to", ["layer", "model", None])
@pytest.mark.parametrize("fisher", ["ggn", "empirical"])
@pytest.mark.parametrize("num_outputs", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_explicit_matrix(name: str, num_outputs: int, fisher: str, relative_to: str | None) -> None:
    inputs = given(name, num_outputs)
    unit = "absolute" if relative_to is None else "mean-eigenvalue"
    block, certificate = kernel(fisher, relative_to or "layer", damping_unit=unit).columns(inputs)
    expected = reference(inputs, fisher, 0.03, relative_to)
    torch.testing.assert_close(block, expected, rtol=1e-7, atol=1e-8 * float(expected.abs().max()))
    assert certificate["residual"] < 1e-12


@pytest.mark.parametrize("name", ["convolutional", "sequence"])
def test_blocks_of_any_size_give_the_same(name: str) -> None:
    whole, parts = given(name, 3), given(name, 3)
    whole.block_rows, parts.block_rows = NUM_TRAIN, 2
    found, expected = (kernel().columns(inputs)[0] for inputs in (parts, whole))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10 * float(expected.abs().max()))


def test_a_layer_without_gradients_is_left_out() -> None:
    inputs = given("linear", 1)
    first = inputs.model()[0]  # type: ignore[index]
    with torch.no_grad():
        inputs.model()[2].weight.zero_()  # type: ignore[index]
    block, certificate = kernel().columns(inputs)
    assert torch.isfinite(block).all()
    assert certificate["flat_blocks"] == 1
    assert certificate["residual"] < 1e-12
    assert first.weight.numel()


def test_a_linear_loss_has_no_gauss_newton_matrix() -> None:
    with pytest.raises(MethodError, match=r"the loss has no curvature[\s\S]*ekfac.fisher: empirical"):
        kernel().check_curvature(1.0)
    kernel("empirical").check_curvature(1.0)
    kernel(allow_zero_curvature=True).check_curvature(1.0)


def test_gradients_that_are_not_finite_are_refused() -> None:
    inputs = given("linear", 1)
    inputs.train_inputs[3, 0] = torch.inf
    with pytest.raises(NonFiniteError, match=r"NaN or Inf in per-sample gradients[\s\S]*ekfac"):
        kernel("empirical").columns(inputs)


class Branching(nn.Module):
    """Takes its layer twice for some samples, which are then computed one at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(5, 5), nn.Linear(5, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.inner(inputs))
        if bool((inputs > 50).any()):
            hidden = torch.tanh(self.inner(hidden))
        outputs: Tensor = self.out(hidden)
        return outputs


def test_samples_that_take_other_layers_are_refused() -> None:
    train, test = (torch.randn(count, 5, generator=torch.Generator().manual_seed(count)) for count in (NUM_TRAIN, NUM_TEST))
    train[-1, 0] = 100.0
    torch.manual_seed(0)
    inputs = DenseInputs(Branching().eval(), train, test, torch.zeros(NUM_TEST, dtype=torch.int64))
    with pytest.raises(ProblemError, match="the inputs of a layer are not known for some samples"):
        kernel("empirical").columns(inputs)
