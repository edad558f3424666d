"""Losses of users, and a problem with any of them: without curvature, with some, with and without classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from genrep_dist.problems.protocol import Dataset, Recipe


class _Own:
    """The derivatives of ``value`` by autograd."""

    name = "own"

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        raise NotImplementedError

    def derivative(self, outputs: Tensor, targets: Tensor) -> Tensor:
        outputs = outputs.detach().requires_grad_(True)
        with torch.enable_grad():
            return torch.autograd.grad(self.value(outputs, targets).sum(), outputs)[0]

    def second_derivative(self, outputs: Tensor, targets: Tensor) -> Tensor:
        outputs = outputs.detach().requires_grad_(True)
        with torch.enable_grad():
            (first,) = torch.autograd.grad(self.value(outputs, targets).sum(), outputs, create_graph=True)
            rows = [
                torch.autograd.grad(column.sum(), outputs, retain_graph=True, allow_unused=True)[0] if column.requires_grad else None
                for column in first.unbind(1)
            ]
        return torch.stack([torch.zeros_like(outputs) if row is None else row for row in rows], dim=1)

    def soft_targets(self, outputs: Tensor) -> Tensor:
        return outputs.squeeze(1)


class Hinge(_Own):
    name = "hinge"

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.relu(1 - (2 * targets - 1) * outputs[:, 0])


class Absolute(_Own):
    name = "absolute"

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets.reshape(outputs.shape)).abs().sum(dim=1)


class Pinball(_Own):
    name = "pinball"

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        gap = targets.reshape(len(outputs), 1) - outputs
        return torch.maximum(0.9 * gap, -0.1 * gap).sum(dim=1)


class Huber(_Own):
    """Linear for residuals above ``delta``."""

    name = "huber"

    def __init__(self, delta: float = 0.3) -> None:
        self.delta = delta

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.huber_loss(outputs, targets.reshape(outputs.shape).to(outputs), reduction="none", delta=self.delta).sum(dim=1)


class Entropy(_Own):
    """Cross-entropy of class numbers, which does not say that it has classes."""

    name = "entropy"

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets, reduction="none")


class Declared(Absolute):
    """The same as its base, whose outputs are those of classes."""

    has_classes = True


LOSSES = {"hinge": Hinge, "absolute": Absolute, "pinball": Pinball, "huber": Huber, "entropy": Entropy, "declared": Declared}


class Rows:
    """Linear models; ``loss`` is one of :data:`LOSSES`, or the name of a shipped one."""

    recipe = Recipe(epochs=2, batch_size=8, learning_rate=0.05)

    def __init__(self, loss: str = "squared", num_outputs: int = 1, num_train: int = 24) -> None:
        self.loss = LOSSES[loss]() if loss in LOSSES else loss
        self.num_outputs, self.num_train, self.loss_name = num_outputs, num_train, loss

    def model(self) -> nn.Module:
        return nn.Linear(3, self.num_outputs)

    def train_data(self) -> Dataset:
        return self._data(self.num_train, 0)

    def test_data(self) -> Dataset:
        return self._data(6, 1)

    def _data(self, count: int, seed: int) -> Dataset:
        inputs = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
        targets = inputs[:, 0] if self.num_outputs == 1 or self.loss_name == "pinball" else inputs[:, : self.num_outputs]
        if self.loss_name in ("hinge", "logistic"):
            targets = (targets > 0).float()
        elif self.loss_name == "entropy":
            targets = torch.arange(count) % self.num_outputs
        return Dataset(inputs, targets, torch.arange(100 * seed, 100 * seed + count))
