"""Models and data of the tests on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genrep_dist.problems.datasets.image_models import SmallCNN
from genrep_dist.problems.datasets.text_models import TextCNN
from genrep_dist.problems.protocol import Dataset
from genrep_dist.training.loop import TrainingRun
from genrep_dist.training.randomness import Randomness

ROWS = 40


class Gated(nn.Module):
    """Layers without a stacked version: attention over four tokens, and a parameter of its own."""

    def __init__(self, num_outputs: int = 1) -> None:
        super().__init__()
        self.attention, self.slope = nn.MultiheadAttention(16, 2, batch_first=True), nn.PReLU()
        self.linear, self.scale = nn.Linear(64, num_outputs), nn.Parameter(torch.ones(1))

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = inputs.reshape(len(inputs), 4, 16)
        hidden, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        outputs: Tensor = self.linear(self.slope(hidden).flatten(1)) * self.scale
        return outputs


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.LayerNorm(24), nn.Linear(24, 1))


def regression() -> nn.Module:
    """A narrow first layer, whose models are computed in one product."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 1))


def normalized() -> nn.Module:
    """Statistics of a batch and random numbers, which are those of a CPU."""
    layers = nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(216, 1)
    return nn.Sequential(*layers)


def text() -> nn.Module:
    return TextCNN(vocabulary_size=300, channels=(6, 5, 7))


@dataclass(frozen=True)
class Example:
    factory: Callable[[], nn.Module]
    pack_kind: str
    is_text: bool = False

    def data(self, device: torch.device, num_rows: int = ROWS, dtype: torch.dtype = torch.float32) -> Dataset:
        generator = torch.Generator().manual_seed(3)
        inputs = torch.rand(num_rows, 1, 8, 8, generator=generator).to(dtype)
        if self.is_text:
            inputs = torch.randint(1, 300, (num_rows, 16), generator=generator)
        targets = (torch.rand(num_rows, generator=generator) > 0.5).to(dtype)
        return Dataset(inputs.to(device), targets.to(device), torch.arange(num_rows))


EXAMPLES = {
    "regression": Example(regression, "stacked"),
    "perceptron": Example(perceptron, "stacked"),
    "cnn": Example(SmallCNN, "stacked"),
    "normalized": Example(normalized, "stacked"),
    "text": Example(text, "stacked", is_text=True),
    "attention": Example(Gated, "mapped"),
}


def some_runs(count: int, policy: str = "same", num_rows: int = ROWS) -> list[TrainingRun]:
    """The original model, and models without some rows."""
    runs = []
    for index in range(count):
        lost = torch.randperm(num_rows, generator=torch.Generator().manual_seed(index))[: 4 * index]
        kept = torch.ones(num_rows, dtype=torch.bool)
        kept[lost] = False
        runs.append(TrainingRun(Randomness.for_retraining(5, policy, lost.tolist()), kept, f"model {index}"))
    return runs


def parameters_of(model: nn.Module) -> Tensor:
    """All parameters (P,) in float64 on the CPU."""
    return torch.cat([parameter.detach().flatten().double().cpu() for parameter in model.parameters()])
