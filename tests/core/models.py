"""Small models, data and slow references for the tests of the mathematics."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from genrep_dist.core.gradients.factored import FactoredGradients, inner_products
from genrep_dist.core.gradients.model import model_outputs, parameter_vector
from genrep_dist.core.gradients.per_sample import factored_gradients, per_sample_gradients
from genrep_dist.core.kernels.blocks import ntk_block
from genrep_dist.core.losses import LOSSES, Loss


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def initialise(model: nn.Module, seed: int, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The model with all parameters and running statistics drawn from ``seed``, in eval mode."""
    generator = seeded(seed)
    model.to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=dtype))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator, dtype=dtype))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator, dtype=dtype))
    return model.eval()


class Squeezed(nn.Module):
    """A scalar model that returns (B,)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.body(inputs)
        return out.squeeze(1)


class Tied(nn.Module):
    """A model that uses one parameter twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.last = nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.second(torch.tanh(self.first(inputs)))))
        return out


def mlp(num_outputs: int, seed: int = 0, width: int = 6, inputs: int = 4, dtype: torch.dtype = torch.float64) -> nn.Module:
    return initialise(nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, num_outputs)), seed, dtype)


def cnn(num_outputs: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Convolutions, one of them grouped, batch normalisation, group normalisation, dropout and a head; inputs (B, 2, 6, 6)."""
    body = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False),
        nn.GroupNorm(2, 4),
        nn.MaxPool2d(2),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(36, num_outputs),
    )
    return initialise(body, seed, dtype)


def rows(count: int, *shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, *shape, generator=seeded(seed), dtype=dtype)


def labels(loss_name: str, num_outputs: int, count: int) -> Tensor:
    if loss_name == "squared":
        return rows(count, num_outputs, seed=3)
    return torch.randint(max(2, num_outputs), (count,), generator=seeded(3))


def full_hessian(model: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor) -> Tensor:
    """H (P, P) of the mean loss by torch.autograd.functional.hessian, through loss.value and nothing of ours besides."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    shapes = [dict(model.named_parameters())[name].shape for name in names]

    def mean_loss(theta: Tensor) -> Tensor:
        parts = theta.split([shape.numel() for shape in shapes])  # type: ignore[no-untyped-call]
        values = {name: part.reshape(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        raw: Tensor = functional_call(model, values, (inputs,))
        return loss.value(raw.reshape(len(inputs), -1), targets).mean()

    hessian = torch.autograd.functional.hessian(mean_loss, parameter_vector(model))  # type: ignore[no-untyped-call]
    assert isinstance(hessian, Tensor)
    return hessian


def jacobian_by_loop(model: nn.Module, inputs: Tensor) -> Tensor:
    """J (B, C, P) by one backward pass for each sample and output."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    jacobian = []
    for sample in inputs:
        result = model(sample.unsqueeze(0)).reshape(-1)
        per_output = []
        for c in range(len(result)):
            gradients = torch.autograd.grad(result[c], parameters, retain_graph=True, allow_unused=True)
            full = [torch.zeros_like(p) if g is None else g.to_dense() for g, p in zip(gradients, parameters, strict=True)]
            flat = [gradient.reshape(-1) for gradient in full]
            per_output.append(torch.cat(flat))
        jacobian.append(torch.stack(per_output))
    return torch.stack(jacobian)


def _close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)


def check_gradients(model: nn.Module, inputs: Tensor) -> None:
    """All operations on per-sample gradients, dense and factored, against one backward pass for each sample and output."""
    expected = jacobian_by_loop(model, inputs)
    assert expected.abs().max() > 1e-3
    _close(per_sample_gradients(model, inputs), expected)
    found = factored_gradients(model, inputs)
    _close(found.to_dense(), expected)
    assert bool(found.finite_rows().all())
    flat = expected.flatten(0, 1)
    gram = flat @ flat.T
    torch.testing.assert_close(inner_products(found, found), gram, rtol=1e-10, atol=1e-10 * float(gram.abs().max()))
    num_outputs = expected.shape[1]
    index = torch.arange(len(inputs)) % num_outputs
    chosen = factored_gradients(model, inputs, index)
    across = expected[torch.arange(len(inputs)), index]
    _close(chosen.to_dense()[:, 0], across)
    block = flat @ across.T
    torch.testing.assert_close(found.as_operand().inner(chosen), block, rtol=1e-10, atol=1e-10 * float(block.abs().max()))
    torch.testing.assert_close(
        found.self_product(index), torch.einsum("bcp,bp->bc", expected, across), rtol=1e-10, atol=1e-10 * float(gram.abs().max())
    )
    halves = [found.part(0, 2), found.part(2, len(inputs))]
    _close(FactoredGradients.cat(halves).to_dense(), expected)
    torch.testing.assert_close(inner_products(*halves), gram[: 2 * num_outputs, 2 * num_outputs :], rtol=1e-10, atol=1e-10)


class NetworkExample:
    """A small network, ``n`` training and 5 test samples, and the matrices of its influence kernel."""

    def __init__(self, loss_name: str, num_outputs: int, *, n: int = 12, width: int = 6) -> None:
        self.loss = LOSSES[loss_name]
        self.model = mlp(num_outputs, seed=2, width=width)
        self.train, self.test = rows(n, 4), rows(5, 4, seed=2)
        self.targets = labels(loss_name, num_outputs, n)
        self.outputs = model_outputs(self.model, self.train).detach()
        self.jacobian = per_sample_gradients(self.model, self.train)
        self.test_gradient = per_sample_gradients(self.model, self.test, torch.arange(5) % num_outputs)
        flat = self.jacobian.flatten(0, 1)
        self.gram, self.cross = flat @ flat.T, ntk_block(self.jacobian, self.test_gradient)
        self.curvature = self.loss.second_derivative(self.outputs, self.targets)
        self.num_parameters = flat.shape[1]

    def gauss_newton(self, delta: float = 0.0) -> Tensor:
        """H + delta I (P, P), summed sample by sample."""
        total = delta * torch.eye(self.num_parameters, dtype=torch.float64)
        for jacobian, curvature in zip(self.jacobian, self.curvature, strict=True):
            total += jacobian.T @ curvature @ jacobian / len(self.jacobian)
        return total
