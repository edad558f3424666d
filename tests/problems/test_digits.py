from __future__ import annotations

from typing import Any

import pytest
import torch

from genrep_dist.core.losses import get_loss
from genrep_dist.errors import ProblemError
from genrep_dist.problems.datasets.digits import Digits, _load
from genrep_dist.problems.load import load_datasets, load_problem
from genrep_dist.training.loop import predict, train
from genrep_dist.training.optimizers import identity_gap_reasons
from genrep_dist.training.randomness import Randomness


def test_the_default_is_three_against_eight() -> None:
    problem = Digits()
    data, test = load_datasets(problem)
    assert problem.loss == "logistic"
    assert data.inputs.shape == (250, 1, 8, 8)
    assert data.inputs.dtype == torch.float32
    assert test.inputs.shape == (357 - 250, 1, 8, 8)
    assert float(data.inputs.min()) == 0.0
    assert float(data.inputs.max()) == 1.0
    assert data.ids.tolist() == sorted(data.ids.tolist())


def test_ids_are_row_numbers_of_the_original_data() -> None:
    images, labels = _load()
    for data in load_datasets(Digits()):
        assert torch.equal(data.inputs[:, 0] * 16, torch.from_numpy(images)[data.ids])
        found = torch.from_numpy(labels)[data.ids]
        assert torch.equal(data.targets, (found == 8).float())
        assert set(found.tolist()) == {3, 8}


@pytest.mark.parametrize("options", [{}, {"classes": None}, {"classes": None, "train_size": 1000, "test_size": 200}, {"train_size": None}])
def test_training_and_test_rows_do_not_overlap(options: dict[str, Any]) -> None:
    data, test = load_datasets(Digits(**options))
    assert not set(data.ids.tolist()) & set(test.ids.tolist())


def test_the_split_is_always_the_same() -> None:
    """The rows that the problem has used since its first version; a change here changes every published number."""
    data, test = load_datasets(Digits())
    assert data.ids[:6].tolist() == [3, 18, 23, 28, 38, 40]
    assert test.ids[:6].tolist() == [8, 13, 45, 53, 83, 91]


def test_a_smaller_training_set_is_part_of_a_larger_one() -> None:
    small, large = (set(Digits(train_size=size).train_data().ids.tolist()) for size in (60, 200))
    assert len(small) == 60
    assert small < large


def test_classes_keep_their_proportions() -> None:
    data, test = load_datasets(Digits())
    assert abs(float(data.targets.mean()) - 174 / 357) < 0.005
    assert abs(float(test.targets.mean()) - 174 / 357) < 0.01


def test_all_ten_classes_have_ten_outputs() -> None:
    problem = Digits(classes=None, train_size=500, test_size=100)
    data, test = load_datasets(problem)
    assert problem.loss == "softmax"
    assert len(test.ids) == 100
    assert data.targets.dtype == torch.int64
    assert torch.bincount(data.targets).min() >= 40
    assert problem.model()(data.inputs[:2]).shape == (2, 10)


def test_sizes_left_open() -> None:
    everything = 1797
    assert [len(part.ids) for part in load_datasets(Digits(classes=None, train_size=None))] == [
        everything - everything // 5,
        everything // 5,
    ]
    assert [len(part.ids) for part in load_datasets(Digits(classes=None, train_size=None, test_size=97))] == [1700, 97]
    assert [len(part.ids) for part in load_datasets(Digits(train_size=300))] == [300, 57]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": [3, 11]}, "digits from 0 to 9"),
        ({"classes": [3]}, "digits.classes"),
        ({"train_size": 0}, "digits.train_size"),
        ({"epochs": 0}, "recipe.epochs"),
        ({"train_sise": 5}, "did you mean train_size"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        load_problem("digits", options)


@pytest.mark.parametrize("options", [{"train_size": 358}, {"train_size": 357}, {"train_size": 300, "test_size": 58}])
def test_more_rows_than_there_are_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ProblemError, match="digits"):
        load_datasets(Digits(**options))


@pytest.mark.parametrize(("options", "least"), [({}, 0.97), ({"classes": None, "train_size": 1000}, 0.97)])
def test_the_recipe_learns(options: dict[str, Any], least: float) -> None:
    problem = Digits(**options)
    data, test = load_datasets(problem)
    randomness = Randomness(1000)
    model = train(randomness.build(problem.model), get_loss(problem.loss), problem.recipe, data, randomness)
    outputs = predict(model, test.inputs)
    predicted = outputs.argmax(dim=1) if outputs.shape[1] > 1 else (outputs[:, 0] > 0).float()
    assert float((predicted == test.targets).float().mean()) >= least
    assert identity_gap_reasons(problem.recipe) == []
