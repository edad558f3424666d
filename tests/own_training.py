"""Problems that bring their own training function: what people write, and what goes wrong."""

from __future__ import annotations

import itertools
import os
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from genrep_dist.problems.protocol import Dataset, Recipe
from tests.toys import Blobs

bce: Any = nn.functional.binary_cross_entropy_with_logits
"""Any: torch does not declare the types of `backward`."""


class AsRecipe(Blobs):
    """Plain SGD over the recipe's own batches, all hooks called."""

    def train(self, model: nn.Module, data: Any, run: Any) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=run.recipe.learning_rate)
        for epoch in range(run.epochs):
            for inputs, targets, ids in run.batches(run.recipe.batch_size):
                outputs = model(inputs)
                run.step(ids, outputs, run.recipe.learning_rate)
                optimizer.zero_grad()
                bce(outputs.squeeze(1), targets).backward()
                optimizer.step()
            run.checkpoint(epoch + 1, model)


class Script(Blobs):
    """A script as people have it, without a recipe: AdamW, warm-up, clipping, noise, shuffled batches."""

    def __init__(self, **options: int) -> None:
        super().__init__(**options)
        del self.recipe

    def train(self, model: nn.Module, data: Any, run: Any) -> nn.Module:
        return script(model, data)


def script(model: nn.Module, data: Any) -> nn.Module:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 5))
    for _ in range(3):
        for inputs, targets in DataLoader(data, batch_size=8, shuffle=True):
            loss = bce(model(inputs + 0.1 * torch.randn_like(inputs)).squeeze(1), targets)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            warm_up.step()
    return model


class Drawing(Script):
    """Not deterministic: ``how`` says why."""

    def __init__(self, how: str = "system", **options: int) -> None:
        super().__init__(**options)
        self.how, self.calls = how, itertools.count()

    def train(self, model: nn.Module, data: Any, run: Any) -> nn.Module:
        script(model, data)
        shift = {"system": int.from_bytes(os.urandom(3), "big") / 2**24, "calls": 0.01 * next(self.calls)}[self.how]
        with torch.no_grad():
            next(iter(model.parameters())).add_(shift)
        return model


class Failing(Script):
    """Raises, diverges, exits or never ends in trainings without the first training sample."""

    def __init__(self, how: str, **options: int) -> None:
        super().__init__(**options)
        self.how = how

    def train(self, model: nn.Module, data: Any, run: Any) -> nn.Module:
        script(model, data)
        if int(self.train_data().ids[0]) not in data.ids:
            if self.how == "raise":
                raise ValueError("no first sample here")
            if self.how == "exit":
                raise SystemExit(3)
            if self.how == "memory":
                raise MemoryError("no memory for the first sample")
            if self.how == "diverge":
                next(iter(model.parameters())).data.fill_(float("nan"))
            while self.how == "hang":
                try:
                    time.sleep(60)
                except Exception:
                    continue
        return model


class Centroids:
    """A model that is no torch module, in plain numpy."""

    def __init__(self) -> None:
        self.centres: Any = None

    def fit(self, inputs: Any, targets: Any) -> Centroids:
        self.centres = [inputs[targets == label].mean(axis=0) for label in (0, 1)]
        return self


class NoModule(Blobs):
    def __init__(self, **options: int) -> None:
        super().__init__(**options)
        del self.recipe

    def model(self) -> Any:
        return Centroids()

    def train(self, model: Any, data: Any, run: Any) -> Any:
        return model.fit(data.inputs.numpy(), data.targets.numpy())

    def predict(self, model: Any, inputs: Tensor) -> Any:
        distances = [((inputs.numpy() - centre) ** 2).sum(axis=1) for centre in model.centres]
        return distances[0] - distances[1]


class Free:
    """A problem around any model and training function, for tests of one call."""

    loss = "logistic"
    recipe = Recipe(epochs=2, batch_size=4, learning_rate=0.5)

    def __init__(self, train: Any, model: Any = None) -> None:
        self.train = train
        self._model = model or (lambda: nn.Linear(3, 1))

    def model(self) -> Any:
        return self._model()

    def train_data(self) -> Dataset:
        generator = torch.Generator().manual_seed(0)
        return Dataset(torch.randn(11, 3, generator=generator), (torch.arange(11) % 2).float(), 100 + 7 * torch.arange(11))

    def test_data(self) -> Dataset:
        return self.train_data()
