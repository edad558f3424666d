"""Training as a user writes it, with torch's own losses and optimizer, and the recipes and texts that the tests share."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from genrep_dist.core.losses import get_loss
from genrep_dist.problems.datasets.text_models import TextCNN
from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.training.loop import train
from genrep_dist.training.randomness import Randomness

RECIPES = {
    "plain": Recipe(epochs=3, batch_size=8, learning_rate=0.2),
    "cosine": Recipe(epochs=3, batch_size=8, learning_rate=0.2, schedule="cosine"),
    "momentum": Recipe(epochs=3, batch_size=8, learning_rate=0.05, momentum=0.9),
    "weight decay": Recipe(epochs=3, batch_size=8, learning_rate=0.2, weight_decay=0.1),
    "all": Recipe(epochs=3, batch_size=8, learning_rate=0.05, schedule="cosine", momentum=0.8, weight_decay=0.05),
}
LENGTH = 12
WORDS = 3000


def plainly_trained(
    factory: Callable[[], nn.Module],
    loss: str,
    recipe: Recipe,
    data: Dataset,
    randomness: Randomness,
    removed: Collection[int] = (),
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
) -> nn.Module:
    """The model that the recipe leads to on the rows whose ids are not ``removed``, batch by batch, row by row dropped."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.number("init"))
        model = factory()
    optimizer = make_optimizer(model) if make_optimizer else sgd(model, recipe)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.number("train"))
        _take_steps(model, optimizer, loss, recipe, data, randomness, removed)
    return model


def _take_steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: str,
    recipe: Recipe,
    data: Dataset,
    randomness: Randomness,
    removed: Collection[int],
) -> None:
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


def sgd(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        model.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay, foreach=False
    )


def mean_loss(loss: str, outputs: Tensor, targets: Tensor) -> Tensor:
    if loss == "softmax":
        return nn.functional.cross_entropy(outputs, targets)
    outputs = outputs.squeeze(1) if outputs.dim() == 2 else outputs
    if loss == "logistic":
        return nn.functional.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype))
    return 0.5 * nn.functional.mse_loss(outputs, targets.to(outputs.dtype))


def parameters_of(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def small_text() -> nn.Module:
    return TextCNN(vocabulary_size=WORDS, channels=(6, 5, 7)).double()


def sentences(num_rows: int = 30) -> Dataset:
    """Sentences of few of the words, some of them padded with zeros; some words come twice in a batch."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 60, (num_rows, LENGTH), generator=generator) * 41
    lengths = torch.randint(3, LENGTH + 1, (num_rows, 1), generator=generator)
    tokens[torch.arange(LENGTH) >= lengths] = 0
    return Dataset(tokens, (torch.rand(num_rows, generator=generator) > 0.5).double(), torch.arange(num_rows) * 3 + 11)


def trained(factory: Callable[[], nn.Module], loss: str, recipe: Recipe, data: Dataset, seed: int, removed: set[int]) -> Tensor:
    randomness = Randomness(seed)
    kept = torch.tensor([int(i) not in removed for i in data.ids])
    return parameters_of(train(randomness.build(factory), get_loss(loss), recipe, data, randomness, kept=kept))
