"""The loop with one model, against a loop that a user would write."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from genrep_dist.core.losses import LOSSES, get_loss
from genrep_dist.errors import NonFiniteError
from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.training.loop import all_finite, predict, train
from genrep_dist.training.observers import Checkpoints, TrackingImportance
from genrep_dist.training.optimizers import identity_gap_reasons
from genrep_dist.training.randomness import Randomness
from tests.toys import Blobs
from tests.training.reference import RECIPES, parameters_of, plainly_trained, trained


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
@pytest.mark.parametrize("num_classes", [2, 3])
def test_every_recipe_is_what_torch_makes_of_it(recipe: Recipe, num_classes: int) -> None:
    problem = Blobs(num_classes=num_classes, train_size=37)
    data = problem.train_data()
    data = Dataset(data.inputs.double(), data.targets, data.ids)
    order = Randomness(4).order(2, 37)
    # The whole of one batch goes, and some more: neither momentum nor weight decay may move anything in a step that is none.
    removed = {int(data.ids[i]) for i in [*order[8:16].tolist(), 0, 3, 20]}

    def model() -> nn.Module:
        return problem.model().double()

    expected = plainly_trained(model, problem.loss, recipe, data, Randomness(4), removed)
    torch.testing.assert_close(trained(model, problem.loss, recipe, data, 4, removed), parameters_of(expected), rtol=1e-11, atol=1e-12)


def test_parameters_that_take_no_part_are_left_alone() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle, self.frozen = nn.Linear(5, 1), nn.Linear(5, 1), nn.Linear(5, 5)
            self.frozen.requires_grad_(False)

        def forward(self, inputs: Tensor) -> Tensor:
            result: Tensor = self.used(self.frozen(inputs))
            return result

    data = Blobs().train_data()
    for recipe in RECIPES.values():
        expected = parameters_of(plainly_trained(Idle, "logistic", recipe, data, Randomness(0)))
        torch.testing.assert_close(trained(Idle, "logistic", recipe, data, 0, set()), expected, rtol=1e-5, atol=1e-6)


def test_predictions_are_detached_whatever_the_model_does() -> None:
    class Enabling(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            with torch.enable_grad():
                return super().forward(inputs)

    for batch_size in (2, 10):
        assert not predict(Enabling(4, 1), torch.randn(5, 4), batch_size=batch_size).requires_grad


def test_finiteness_is_seen_wherever_it_ends() -> None:
    fine = [torch.ones(3), torch.full((2, 2), 1e38), torch.empty(0), torch.tensor([1e300], dtype=torch.float64), torch.ones(2) * 1j]
    assert all_finite(fine)
    for bad in (float("nan"), float("inf"), -float("inf")):
        assert not all_finite([*fine, torch.tensor([1.0, bad, 2.0])])
        assert not all_finite([*fine, torch.complex(torch.ones(1), torch.tensor([bad]))])


def test_a_removed_row_cannot_matter() -> None:
    problem = Blobs()
    data = problem.train_data()
    other = Dataset(data.inputs.clone(), data.targets.clone(), data.ids)
    other.inputs[4] = 100.0
    other.targets[4] = 1 - other.targets[4]
    kept = torch.ones(len(data.ids), dtype=torch.bool)
    kept[4] = False
    results = []
    for dataset in (data, other):
        randomness = Randomness(1)
        model = train(randomness.build(problem.model), get_loss("logistic"), problem.recipe, dataset, randomness, kept=kept)
        results.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(results[0], results[1])


@pytest.mark.parametrize("loss", sorted(LOSSES))
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_tracking_explains_a_linear_model_exactly(loss: str, schedule: str) -> None:
    """f_T - f_0 = sum_i alpha_i K(x_i, .) for a model that is linear in its parameters (Eq. 8 with Eq. 10's alpha)."""
    outputs = 3 if loss == "softmax" else 1
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(30, 6, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 3, (30,), generator=generator) if loss == "softmax" else (torch.rand(30, generator=generator) > 0.5).double()
    data = Dataset(inputs, targets, torch.arange(30))
    test = torch.randn(9, 6, generator=generator, dtype=torch.float64)
    recipe = Recipe(epochs=5, batch_size=7, learning_rate=0.3, schedule=schedule)
    randomness = Randomness(2)
    model = randomness.build(lambda: nn.Linear(6, outputs).double())
    before = predict(model, test)
    tracking = TrackingImportance()
    train(model, get_loss(loss), recipe, data, randomness, observers=(tracking,))
    kernel = inputs @ test.T + 1  # the bias is a constant feature; with C outputs the kernel is k(x, z) times the identity
    assert tracking.alpha is not None
    torch.testing.assert_close(predict(model, test) - before, kernel.T @ tracking.alpha, rtol=1e-9, atol=1e-10)


def test_tracking_with_momentum_does_not_explain_the_model() -> None:
    """The identity is one of plain SGD; that is why other recipes are tagged and warned about."""
    data = Blobs().train_data()
    recipe = Recipe(epochs=3, batch_size=8, learning_rate=0.1, momentum=0.9)
    assert len(identity_gap_reasons(recipe)) == 1
    randomness = Randomness(2)
    model = randomness.build(lambda: nn.Linear(5, 1))
    before = predict(model, data.inputs)
    tracking = TrackingImportance()
    train(model, get_loss("logistic"), recipe, data, randomness, observers=(tracking,))
    assert tracking.alpha is not None
    explained = (data.inputs @ data.inputs.T + 1).double().T @ tracking.alpha
    assert ((predict(model, data.inputs) - before) - explained).abs().max() > 0.1


def test_observers_change_nothing_and_checkpoints_are_the_run_itself() -> None:
    problem = Blobs()
    data = problem.train_data()

    def trained(epochs: int, *observers: object) -> Tensor:
        randomness = Randomness(7)
        recipe = Recipe(epochs=epochs, batch_size=8, learning_rate=0.1)
        model = train(randomness.build(problem.model), get_loss("logistic"), recipe, data, randomness, observers=observers)  # type: ignore[arg-type]
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    checkpoints = Checkpoints([0, 2, 4], data, problem.recipe)
    assert torch.equal(trained(4), trained(4, TrackingImportance(), checkpoints))
    assert [c.epoch for c in checkpoints.saved] == [0, 2, 4]
    middle = torch.cat([value.flatten() for value in checkpoints.saved[1].state.values()])
    assert torch.equal(middle, trained(2))
    assert checkpoints.saved[2].outputs.shape == (40, 1)


def test_rates_of_checkpoints_follow_the_schedule() -> None:
    problem = Blobs()
    recipe = Recipe(epochs=4, batch_size=8, learning_rate=0.2, schedule="cosine")
    checkpoints = Checkpoints([0, 2, 4], problem.train_data(), recipe)
    randomness = Randomness(0)
    train(randomness.build(problem.model), get_loss("logistic"), recipe, problem.train_data(), randomness, observers=(checkpoints,))
    assert [c.rate for c in checkpoints.saved] == [recipe.rate(0, 20), recipe.rate(10, 20), recipe.rate(19, 20)]


def test_randomness_is_a_function_of_its_arguments_and_touches_no_global_generator() -> None:
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    model = Randomness(4).build(Blobs().model)
    again = Randomness(4).build(Blobs().model)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert torch.equal(Randomness(4).order(2, 50), Randomness(4).order(2, 50))
    assert not torch.equal(Randomness(4).order(2, 50), Randomness(4).order(3, 50))
    assert not torch.equal(Randomness(4).order(2, 50), Randomness(5).order(2, 50))


def test_same_policy_shares_random_numbers_and_fresh_does_not() -> None:
    assert Randomness.for_retraining(3, "same", [5, 1]) == Randomness(3)
    fresh = Randomness.for_retraining(3, "fresh", [5, 1])
    assert fresh == Randomness.for_retraining(3, "fresh", [1, 5])
    assert fresh.number("init") != Randomness(3).number("init")
    assert fresh.number("init") != Randomness.for_retraining(3, "fresh", [1]).number("init")
    assert fresh.number("init") != Randomness.for_retraining(3, "fresh", [1, 5], replicate=1).number("init")


def test_divergence_is_refused_with_sample_ids() -> None:
    problem = Blobs()
    data = problem.train_data()
    loss = get_loss("squared")
    recipe = Recipe(epochs=30, batch_size=8, learning_rate=1e6)
    randomness = Randomness(0)
    with pytest.raises(NonFiniteError, match=r"seed 0, epoch \d+; \d+ training rows .* first ids \[1117"):
        train(randomness.build(lambda: nn.Linear(5, 1)), loss, recipe, data, randomness)


def test_dropout_is_part_of_the_derived_randomness() -> None:
    data = Blobs().train_data()

    def once() -> Tensor:
        randomness = Randomness(9)
        model = randomness.build(lambda: nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 1)))
        train(model, get_loss("logistic"), Recipe(epochs=2, batch_size=8, learning_rate=0.1), data, randomness)
        return predict(model, data.inputs)

    first = once()
    torch.rand(17)
    assert torch.equal(first, once())
