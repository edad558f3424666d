"""Lower precision is a declared choice that changes the products of training, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from genrep_dist.core.losses import get_loss
from genrep_dist.errors import ProblemError
from genrep_dist.problems.datasets.digits import Digits
from genrep_dist.problems.datasets.text_models import TextCNN
from genrep_dist.problems.protocol import Dataset, Precision, Recipe
from genrep_dist.training.loop import TrainingRun, train, train_models
from genrep_dist.training.observers import Checkpoints
from genrep_dist.training.packs.stacked import StackedPack
from genrep_dist.training.precision import tf32, training_outputs
from genrep_dist.training.randomness import Randomness
from genrep_dist.training.trainer import Trainer
from tests.training.reference import parameters_of

LOSS = get_loss("logistic")


def recipe(precision: Precision) -> Recipe:
    return Recipe(3, 20, 0.1, precision=precision)


def digits() -> Dataset:
    data = Digits(train_size=60, test_size=20).train_data()
    return Dataset(data.inputs, data.targets, data.ids)


def trained(precision: Precision, seed: int = 0) -> Tensor:
    return parameters_of(train(Randomness(seed).build(Digits().model), LOSS, recipe(precision), digits(), Randomness(seed)))


def test_bfloat16_rounds_products_and_leaves_parameters_alone() -> None:
    full, rounded = trained("full"), trained("bfloat16")
    assert rounded.dtype == torch.float32
    assert not torch.equal(full, rounded)
    difference, moved = (rounded - full).norm(), (full - parameters_of(Randomness(0).build(Digits().model))).norm()
    assert difference < 0.1 * moved
    assert torch.equal(rounded, trained("bfloat16")), "it is as repeatable as full precision"


def test_tf32_is_refused_where_it_would_round_nothing() -> None:
    with pytest.raises(ProblemError, match="tf32"):
        Trainer(Digits().model, LOSS, recipe("tf32"), digits())


class Looks(nn.Module):
    """Notes for each forward pass whether it is one of training, and what a GPU would be allowed."""

    seen: list[tuple[bool, tuple[bool, bool]]]

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 1)
        Looks.seen = []

    def forward(self, inputs: Tensor) -> Tensor:
        Looks.seen.append((self.training, flags()))
        result: Tensor = self.linear(inputs.flatten(1))
        return result


def flags() -> tuple[bool, bool]:
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


@pytest.fixture
def forbidden() -> Iterator[None]:
    """As where units of work run."""
    before = flags()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("precision", "allowed"), [("full", False), ("bfloat16", False), ("tf32", True)])
def test_tf32_is_allowed_in_steps_and_not_in_what_is_looked_at(forbidden: None, precision: Precision, allowed: bool, packed: bool) -> None:
    model, data, chosen = Looks(), digits(), recipe(precision)
    checkpoints = Checkpoints([0, 1, 3], data, chosen)
    if packed:
        train_models([model], LOSS, chosen, data, [TrainingRun(Randomness(0))], kind=StackedPack, observers=[checkpoints])
    else:
        train(model, LOSS, chosen, data, Randomness(0), observers=[checkpoints])
    assert {at for training, at in Looks.seen if not training} == {(False, False)}
    assert {at for training, at in Looks.seen if training} == {(allowed, allowed)}
    assert flags() == (False, False)


def test_tf32_ends_with_an_error_too(forbidden: None) -> None:
    with pytest.raises(RuntimeError, match="stopped"), tf32(recipe("tf32")):
        raise RuntimeError("stopped")
    assert flags() == (False, False)


def test_float64_and_sequences_keep_what_they_have() -> None:
    tokens = torch.randint(1, 3000, (8, 12), generator=torch.Generator().manual_seed(0))
    model = TextCNN(vocabulary_size=3000, channels=(6, 5, 7))
    plain = training_outputs(model, tokens, recipe("full"))
    rounded = training_outputs(model, tokens, recipe("bfloat16"))
    assert rounded.dtype == torch.float32
    assert not torch.equal(plain, rounded)
    torch.testing.assert_close(plain, rounded, rtol=0.1, atol=0.05)
    model.double()
    assert torch.equal(training_outputs(model, tokens, recipe("full")), training_outputs(model, tokens, recipe("bfloat16")))


@pytest.mark.parametrize("precision", ["full", "bfloat16"])
def test_packs_of_any_size_have_the_same_bits(precision: Precision) -> None:
    trainer = Trainer(Digits().model, LOSS, recipe(precision), digits())
    assert trainer.pack_kind == "stacked", trainer.solo_reason
    kept = torch.arange(60) % 7 != 0
    runs = [
        TrainingRun(Randomness(0)),
        TrainingRun(Randomness(0), kept),
        TrainingRun(Randomness(1)),
        TrainingRun(Randomness(2), ~kept),
        TrainingRun(Randomness(1), kept),
    ]
    together = trainer.train_all(runs)
    for run, model in zip(runs, together, strict=True):
        assert isinstance(model, nn.Module)
        assert torch.equal(parameters_of(model), parameters_of(trainer.train(run)))
    solo = trained(precision)
    assert isinstance(together[0], nn.Module)
    assert (parameters_of(together[0]) - solo).norm() < (1e-4 if precision == "full" else 0.02) * solo.norm()


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ProblemError, match="precision"):
        recipe("float16")  # type: ignore[arg-type]
