"""Augmented rows follow from the sample and the epoch: not from batches, packs, removed rows or default generators."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from genrep_dist.core.losses import get_loss
from genrep_dist.errors import ExtensionError, ProblemError
from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.training.augmentation import Augmentation
from genrep_dist.training.fast_paths import PLAIN
from genrep_dist.training.loop import TrainingRun
from genrep_dist.training.optimizers import identity_gap_reasons
from genrep_dist.training.randomness import Randomness
from genrep_dist.training.trainer import Trainer
from genrep_dist.workflow.recipes import check_recipe
from tests.training.reference import mean_loss, parameters_of
from tests.training.test_stacked_packs import images, small_cnn, some_runs


def noisy(row: Tensor, epoch: int, generator: torch.Generator) -> Tensor:
    shift = int(torch.randint(-1, 2, (1,), generator=generator))
    return torch.roll(row, shift, dims=-1).mul_(1 + 0.1 * epoch) + 0.1 * torch.rand(row.shape, dtype=row.dtype, generator=generator)


def undrawn(row: Tensor, _epoch: int, _generator: torch.Generator) -> Tensor:
    return row + torch.rand(row.shape)


def cropped(row: Tensor, _epoch: int, _generator: torch.Generator) -> Tensor:
    return row[..., 1:]


def failing(row: Tensor, _epoch: int, _generator: torch.Generator) -> Tensor:
    raise ValueError("no row")


RECIPE = Recipe(epochs=3, batch_size=8, learning_rate=0.1, augment=noisy)
LOSS = get_loss("logistic")


def test_rows_do_not_depend_on_batches_and_company() -> None:
    data = images()
    augmentation, one, other = Augmentation(noisy, data), Randomness(1), Randomness(1, "fresh/0/3")
    rows = torch.tensor([[4, 2, 4], [2, 0, 1]])
    found = augmentation.batch([one, other], rows, 2)
    for own, part, positions in zip((one, other), (found[:3], found[3:]), rows, strict=True):
        assert torch.equal(part, torch.cat([Augmentation(noisy, data).batch([own], row.view(1, 1), 2) for row in positions]))
    assert not torch.equal(found[1], found[3])
    assert not torch.equal(found[:3], augmentation.batch([one], rows[:1], 3))
    reordered = Dataset(*(tensor.flip(0) for tensor in data))
    last = len(data.ids) - 1
    assert torch.equal(found[:3], Augmentation(noisy, reordered).batch([one], last - rows[:1], 2))
    assert torch.equal(data.inputs, images().inputs)


def test_training_is_a_plain_loop_over_augmented_rows() -> None:
    """In a pack of models with and without common random numbers, of which some lack rows."""
    data = images()
    trainer = Trainer(small_cnn, LOSS, replace(RECIPE, drop_last=True), data)
    assert trainer.pack_kind == "stacked"
    runs = [*some_runs(data, 3, 8), TrainingRun(Randomness(0), torch.arange(len(data.ids)) % 3 > 0)]
    for run, found in zip(runs, trainer.train_all(runs), strict=True):
        assert isinstance(found, nn.Module)
        model = run.randomness.build(small_cnn)
        optimizer, augmentation = torch.optim.SGD(model.parameters(), lr=0.1), Augmentation(noisy, data)
        for epoch in range(1, 4):
            order = run.randomness.order(epoch, len(data.ids))
            for batch in torch.split(order[: len(order) // 8 * 8], 8):
                rows = batch if run.kept is None else batch[run.kept[batch]]
                if len(rows):
                    optimizer.zero_grad()
                    inputs = augmentation.batch([run.randomness], rows.unsqueeze(0), epoch)
                    mean_loss("logistic", model(inputs), data.targets[rows]).backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
        torch.testing.assert_close(parameters_of(found), parameters_of(model), rtol=1e-4, atol=1e-5)
        alone = Trainer(small_cnn, LOSS, replace(RECIPE, drop_last=True), data, PLAIN).train(run)
        torch.testing.assert_close(parameters_of(alone), parameters_of(model), rtol=1e-4, atol=1e-5)


def test_what_is_no_augmentation_is_refused() -> None:
    data = images()
    check_recipe(RECIPE, data)
    with pytest.raises(ProblemError, match="generator"):
        check_recipe(replace(RECIPE, augment=undrawn), data)
    with pytest.raises(ProblemError, match=r"cropped[\s\S]*of shape"):
        check_recipe(replace(RECIPE, augment=cropped), data)
    with pytest.raises(ExtensionError, match=r"failing[\s\S]*no row"):
        check_recipe(replace(RECIPE, augment=failing), data)
    with pytest.raises(ProblemError, match=r"recipe\.augment"):
        replace(RECIPE, augment=3)  # type: ignore[arg-type]


def test_recipes_that_train_nothing_are_refused() -> None:
    data = images()
    with pytest.raises(ProblemError, match="drop_last"):
        check_recipe(Recipe(2, len(data.ids) + 1, 0.1, drop_last=True), data)
    with pytest.raises(ProblemError, match="warmup"):
        check_recipe(Recipe(2, len(data.ids), 0.1, warmup=3), data)
    check_recipe(Recipe(2, len(data.ids), 0.1, warmup=2), data)


def test_the_identities_are_not_claimed() -> None:
    assert "augmented" in identity_gap_reasons(RECIPE)[0]
    assert RECIPE.record()["augment"] == f"{__name__}:noisy"
