"""A step in parts: the same gradients to rounding, for the models whose rows have nothing to do with each other, and for no others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from genrep_dist.core.losses import get_loss
from genrep_dist.problems.datasets.image_models import SmallCNN, VisionCNN
from genrep_dist.problems.datasets.text_models import TextCNN
from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.training.batches import Batch
from genrep_dist.training.loop import train
from genrep_dist.training.microbatches import CACHED_BYTES, gradients, rows_at_once
from genrep_dist.training.observers import TrackingImportance
from genrep_dist.training.randomness import Randomness
from genrep_dist.training.train_pack import Run
from genrep_dist.training.trainer import Trainer

LOSS = get_loss("logistic")
RECIPE = Recipe(2, 64, 0.05)


def images(rows: int, size: int = 28) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    return Dataset(torch.rand(rows, 1, size, size, generator=generator), (torch.arange(rows) % 2).float(), torch.arange(rows))


class Normalised(nn.Module):
    """A row's output depends on the others, or on chance, or the model remembers: it is trained on whole batches."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.convolution = nn.Conv2d(1, 64, 3, padding=1)
        self.norm = nn.BatchNorm2d(64) if kind == "batch norm" else nn.Identity()
        self.drop = nn.Dropout(0.5) if kind == "dropout" else nn.Identity()
        self.gate = nn.Parameter(torch.zeros(()))
        self.trains_alone = kind == "says so"
        self.linear = nn.Linear(64, 1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.kind == "fixed size" and len(inputs) != RECIPE.batch_size:
            raise ValueError("64 rows, no others")
        hidden = self.drop(self.norm(self.convolution(inputs))).relu().mean(dim=(2, 3))
        if self.kind == "centred":
            hidden = hidden - hidden.mean(dim=0)
        if self.kind == "gated":
            hidden = hidden + self.gate * (hidden - hidden.mean(dim=0))
        if self.kind == "counts":
            self.get_buffer("calls").add_(1)
        result: Tensor = self.linear(hidden)
        return result


def test_rows_of_a_part_are_those_whose_largest_result_the_cache_holds() -> None:
    assert rows_at_once(VisionCNN, LOSS, RECIPE, images(80)) == CACHED_BYTES // (28 * 28 * 32 * 4)
    assert rows_at_once(VisionCNN, LOSS, Recipe(1, 32, 0.1), images(80)) is None
    assert rows_at_once(SmallCNN, LOSS, RECIPE, images(80, 8)) is None


@pytest.mark.parametrize("kind", ["batch norm", "dropout", "fixed size", "centred", "gated", "counts", "says so"])
def test_models_that_mix_their_rows_take_whole_batches(kind: str) -> None:
    before = torch.get_rng_state()
    assert rows_at_once(lambda: Normalised(kind), LOSS, RECIPE, images(64)) is None
    assert torch.equal(before, torch.get_rng_state())
    assert rows_at_once(lambda: Normalised("plain"), LOSS, RECIPE, images(64)) is not None


@pytest.mark.parametrize("at_once", [1, 7, 16, 63])
def test_gradients_in_parts_are_those_of_the_whole(at_once: int) -> None:
    model = Randomness(0).build(VisionCNN).double()
    data = images(64)
    batch = Batch(0, data.ids, data.inputs.double(), data.targets.double())
    unused = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    parameters = [*model.parameters(), unused]
    slopes, whole = gradients(model, LOSS, RECIPE, parameters, batch, None)
    slopes_of_parts, in_parts = gradients(model, LOSS, RECIPE, parameters, batch, at_once)
    torch.testing.assert_close(slopes_of_parts, slopes, rtol=1e-12, atol=0)
    assert whole[-1] is None
    assert in_parts[-1] is None
    for one, other in zip(whole[:-1], in_parts[:-1], strict=True):
        assert one is not None
        assert other is not None
        torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-15)


def test_training_in_parts_is_training() -> None:
    """Also with row-wise embeddings, removed rows and what is written down meanwhile."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 30_522, (40, 12), generator=generator)
    data = Dataset(tokens, (torch.arange(40) % 2).float(), torch.arange(40))
    recipe = Recipe(2, 16, 0.1)
    kept = torch.arange(40) % 5 != 0
    found = []
    for at_once in (None, 5):
        tracking = TrackingImportance()
        model = Randomness(1).build(TextCNN).double()
        train(model, LOSS, recipe, data, Randomness(1), kept=kept, observers=[tracking], at_once=at_once)
        found.append([*model.parameters(), tracking.alpha])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-13)


def test_a_trainer_trains_large_steps_in_parts() -> None:
    data = images(80)
    trainer = Trainer(VisionCNN, LOSS, RECIPE, data)
    assert trainer.arithmetic == "solo"
    expected = Randomness(3).build(VisionCNN)
    train(expected, LOSS, RECIPE, data, Randomness(3), at_once=rows_at_once(VisionCNN, LOSS, RECIPE, data))
    one = trainer.train(Run(Randomness(3)))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), expected.parameters(), strict=True))
    whole = Randomness(3).build(VisionCNN)
    train(whole, LOSS, RECIPE, data, Randomness(3))
    for a, b in zip(one.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
