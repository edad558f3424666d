"""Small models and data for the tests of the mathematics."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
