"""Training as a user writes it: torch's own losses and optimiser, no arithmetic of the package."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.training.randomness import Randomness


def plainly_trained(
    factory: Callable[[], nn.Module], loss: str, recipe: Recipe, data: Dataset, randomness: Randomness, removed: Collection[int] = ()
) -> nn.Module:
    """The model that the recipe leads to on the rows whose ids are not ``removed``, batch by batch, row by row dropped."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.number("init"))
        model = factory()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay, foreach=False
    )
    steps_per_epoch = math.ceil(len(data.ids) / recipe.batch_size)
    step = 0
    for epoch in range(1, recipe.epochs + 1):
        order = randomness.order(epoch, len(data.ids)).tolist()
        for start in range(0, len(order), recipe.batch_size):
            rows = [i for i in order[start : start + recipe.batch_size] if int(data.ids[i]) not in removed]
            if recipe.schedule == "cosine":
                share = step / (recipe.epochs * steps_per_epoch)
                optimizer.param_groups[0]["lr"] = recipe.learning_rate * (1 + math.cos(math.pi * share)) / 2
            step += 1
            if rows:
                optimizer.zero_grad()
                mean_loss(loss, model(data.inputs[rows]), data.targets[rows]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    return model


def mean_loss(loss: str, outputs: Tensor, targets: Tensor) -> Tensor:
    if loss == "softmax":
        return nn.functional.cross_entropy(outputs, targets)
    outputs = outputs.squeeze(1) if outputs.dim() == 2 else outputs
    if loss == "logistic":
        return nn.functional.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype))
    return 0.5 * nn.functional.mse_loss(outputs, targets.to(outputs.dtype))


def parameters_of(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
