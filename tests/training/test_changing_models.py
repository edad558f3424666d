"""Models whose forward pass changes them in training share no steps: what changes is each model's own."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from genrep_dist.core.losses import get_loss
from genrep_dist.errors import ProblemError
from genrep_dist.problems.protocol import Dataset
from genrep_dist.training.loop import TrainingRun, train
from genrep_dist.training.randomness import Randomness
from genrep_dist.training.trainer import Trainer, choose_pack_kind
from tests.training.reference import RECIPES, parameters_of, plainly_trained
from tests.training.test_stacked_packs import blob_data, some_runs


class Teacher(nn.Module):
    """A frozen copy that follows the trained layers, and that outputs contain."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))
        self.teacher = copy.deepcopy(self.net).requires_grad_(False)

    def follow(self) -> None:
        with torch.no_grad():
            for own, followed in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
                own.lerp_(followed, 0.1)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.follow()
        result: Tensor = self.net(inputs) + 0.5 * self.teacher(inputs)
        return result


class DataTeacher(Teacher):
    """The same through `.data`, which autograd does not see."""

    def follow(self) -> None:
        for own, followed in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
            own.data.mul_(0.9).add_(followed.data, alpha=0.1)


class LateTeacher(Teacher):
    """Outputs in training do not contain the copy."""

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.follow()
        result: Tensor = self.net(inputs) if self.training else self.teacher(inputs)
        return result


class Warming(nn.Module):
    """Its outputs depend on how often it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(5, 1), 0

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        result: Tensor = self.layer(inputs) * (min(self.calls, 4) if self.training else 4)
        return result


class Centred(nn.Module):
    """It subtracts the mean of earlier batches, which is neither a parameter nor a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.centre = nn.Linear(5, 1), torch.zeros(1)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(inputs)
        if not self.training:
            return outputs
        result = outputs - self.centre
        self.centre = 0.5 * self.centre + 0.5 * outputs.detach().mean(dim=0)
        return result


@pytest.mark.parametrize("factory", [Teacher, DataTeacher, LateTeacher, Warming, Centred])
def test_what_a_forward_pass_changes_is_the_models_own(factory: Callable[[], nn.Module]) -> None:
    data, recipe, loss = blob_data(), RECIPES["plain"], get_loss("logistic")
    trainer = Trainer(factory, loss, recipe, data)
    assert trainer.pack_kind == "solo"
    assert "changes the model in training" in str(trainer.solo_reason)
    runs = some_runs(data, 3, recipe.batch_size)
    for run, found in zip(runs, trainer.train_all(runs), strict=True):
        assert isinstance(found, nn.Module)
        removed = set() if run.kept is None else set(data.ids[~run.kept].tolist())
        plain = plainly_trained(factory, "logistic", recipe, data, run.randomness, removed)
        torch.testing.assert_close(parameters_of(found), parameters_of(plain), rtol=1e-4, atol=1e-6)


class Exhausted(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        if len(inputs) > 8:
            raise torch.OutOfMemoryError("no memory for many rows")
        return super().forward(inputs)


def test_a_lack_of_memory_chooses_no_kind_of_pack() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        choose_pack_kind(
            lambda: nn.Sequential(Exhausted(5, 4), nn.PReLU(), nn.Linear(4, 1)), get_loss("logistic"), RECIPES["plain"], blob_data()
        )


def test_an_error_on_a_batch_of_one_row_names_the_layer() -> None:
    data, recipe = blob_data(), RECIPES["plain"]
    order = Randomness(3).order(1, len(data.ids))[: recipe.batch_size]
    kept = torch.ones(len(data.ids), dtype=torch.bool)
    kept[order[1:]] = False

    def normalised() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

    trainer = Trainer(normalised, get_loss("logistic"), recipe, data)
    pattern = rf"(?s)one row.*a retraining.*sample id {int(data.ids[order[0]])}.*1 \(BatchNorm1d\).*batch_size.*GroupNorm"
    with pytest.raises(ProblemError, match=pattern):
        trainer.train(TrainingRun(Randomness(3), kept, "a retraining"))


def test_other_errors_of_a_step_are_not_explained() -> None:
    def failing() -> nn.Module:
        model = nn.Sequential(nn.Linear(5, 1))
        model.register_forward_pre_hook(lambda *_arguments: 1 / 0)
        return model

    data = blob_data()
    with pytest.raises(ZeroDivisionError):
        train(failing(), get_loss("logistic"), RECIPES["plain"], Dataset(*data), Randomness(0))
