"""Leave-k-out from one end to the other: problem, training, scores, removal sets, retraining, ledger and judge, against closed forms.

A linear model f(x) = <theta, (x, 1)> without hidden layer, all in float64, trained by full batches at a constant rate, weight decay lam,
is gradient descent on

    F_S(theta) = 1/(n - |S|) sum over i not in S of L(f(x_i), y_i) + (lam/2) |theta|^2,

since a removed row leaves its batch and the mean runs over the rows that remain, while weight decay keeps lam for all of theta, the bias
included. F_S is strictly convex: whatever the initialisation, enough steps end in its one minimiser.

- Squared loss L = (f - y)^2 / 2: theta = (X^T X / n' + lam I)^-1 X^T y / n', ridge regression with penalty n' lam.
- Logistic loss: Newton's method, here, until the gradient of F_S is below 1e-13.

The explained number is the output, or another target: the loss of the test point, or the margin of its label.

Which samples are removed is read off the scores by a sort of our own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
import torch
from torch import nn

import genrep_dist as gr
from genrep_dist.problems.protocol import Dataset, Recipe
from tests.experiments import experiment

Array = npt.NDArray[np.float64]
Solver = Callable[[Array, Array, float], Array]

NUM_TRAIN, NUM_TEST, NUM_FEATURES = 40, 12, 4
SEEDS, POINTS, FRACTIONS, SIGNS = (0, 1), 2, (0.0, 0.05, 0.25), ("negative", "positive")
METHODS = ["ntk-final/target", "representer-point", "influence-function", "random"]
TOLERANCE = 1e-8


class Ridge:
    """Ridge regression on correlated features. Ids are neither sorted nor positions."""

    loss = "squared"
    recipe = Recipe(epochs=240, batch_size=NUM_TRAIN, learning_rate=0.45, weight_decay=0.1)

    def model(self) -> nn.Module:
        return nn.Linear(NUM_FEATURES, 1).double()

    def train_data(self) -> Dataset:
        return self._data(0, NUM_TRAIN, 1000)

    def test_data(self) -> Dataset:
        return self._data(1, NUM_TEST, 5000)

    def _data(self, seed: int, rows: int, first_id: int) -> Dataset:
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(rows, NUM_FEATURES, generator=generator, dtype=torch.float64)
        inputs[:, 1] += 0.5 * inputs[:, 0]
        noise = torch.randn(rows, generator=generator, dtype=torch.float64)
        return Dataset(inputs, self._targets(inputs, noise), first_id + 7 * torch.arange(rows).flip(0))

    def _targets(self, inputs: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return inputs @ torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64) + 0.3 + noise


class Logistic(Ridge):
    """L2-regularised logistic regression on labels that no line divides."""

    loss = "logistic"
    recipe = Recipe(epochs=80, batch_size=NUM_TRAIN, learning_rate=3.0, weight_decay=0.1)

    def _targets(self, inputs: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return (super()._targets(inputs, noise) > 0).double()


def ridge(features: Array, targets: Array, lam: float) -> Array:
    """The minimiser of F for the squared loss, in closed form."""
    n = len(features)
    return np.asarray(np.linalg.solve(features.T @ features / n + lam * np.eye(features.shape[1]), features.T @ targets / n))


def logistic(features: Array, targets: Array, lam: float) -> Array:
    """The minimiser of F for the logistic loss, by Newton's method."""
    n, theta = len(features), np.zeros(features.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-features @ theta))
        gradient = features.T @ (p - targets) / n + lam * theta
        if np.linalg.norm(gradient) < 1e-13:
            return theta
        hessian = (features.T * (p * (1 - p))) @ features / n + lam * np.eye(len(theta))
        theta = theta - np.linalg.solve(hessian, gradient)
    raise AssertionError("Newton's method did not converge")


def with_bias(inputs: torch.Tensor) -> Array:
    return np.hstack([inputs.numpy(), np.ones((len(inputs), 1))])


def removed_rows(scores: Array, ids: npt.NDArray[np.int64], sign: str, count: int) -> list[int]:
    """Positions of the ``count`` samples that go first: most negative, or most positive; equal ones by id."""
    order = sorted(range(len(ids)), key=lambda i: (scores[i] if sign == "negative" else -scores[i], ids[i]))
    return order[:count]


@pytest.mark.parametrize(
    ("problem", "solve", "target", "explained"),
    [
        ("Ridge", ridge, {}, lambda f, y: f),
        ("Logistic", logistic, {}, lambda f, y: f),
        ("Ridge", ridge, {"kind": "loss"}, lambda f, y: (f - y) ** 2 / 2),
        ("Logistic", logistic, {"kind": "margin"}, lambda f, y: f if y else -f),
    ],
)
def test_every_deletion_is_the_solution_without_these_samples(
    tmp_path: Path, problem: str, solve: Solver, target: dict[str, str], explained: Callable[[float, float], float]
) -> None:
    asked = experiment(
        f"{__name__}:{problem}",
        seeds=list(SEEDS),
        test_points=POINTS,
        methods=METHODS,
        target=target,
        deletion={"fractions": list(FRACTIONS), "signs": list(SIGNS), "retrain": "same"},
    )
    run = gr.run(asked, store=str(tmp_path), serial=True)
    own = {"Ridge": Ridge, "Logistic": Logistic}[problem]()
    train, test, lam = own.train_data(), own.test_data(), own.recipe.weight_decay
    features, targets, ids = with_bias(train.inputs), train.targets.numpy(), train.ids.numpy()
    place = {int(one): position for position, one in enumerate(test.ids)}

    # Two initialisations, one optimum: what the seeds have in common is not that they began alike.
    first, second = (run.checkpoint(seed, "initial")["weight"] for seed in SEEDS)
    assert float((first - second).abs().max()) > 0.1
    assert run.checkpoint(0, "final")["weight"].dtype == torch.float64

    table = run.deletion().collect()
    assert table.height == len(SEEDS) * len(METHODS) * POINTS * len(SIGNS) * len(FRACTIONS)
    worst, moved = 0.0, 0.0
    for row in table.iter_rows(named=True):
        column = run.test_ids(row["seed"]).tolist().index(row["test_id"])
        scores = run.attributions(row["method"], row["seed"])[:, column]
        count = round(row["fraction"] * NUM_TRAIN)
        kept = np.ones(NUM_TRAIN, dtype=bool)
        kept[removed_rows(scores, ids, row["sign"], count)] = False
        x = with_bias(test.inputs[place[row["test_id"]]][None])[0]
        label = float(test.targets[place[row["test_id"]]])
        original = explained(float(x @ solve(features, targets, lam)), label)
        retrained = explained(float(x @ solve(features[kept], targets[kept], lam)), label)
        found = (row["score_original"], row["score_retrained"], row["delta"])
        differences = np.abs(np.subtract(found, (original, retrained, retrained - original)))
        worst, moved = max(worst, float(differences.max())), max(moved, abs(row["delta"]))
        assert row["num_removed"] == count
    assert worst < TOLERANCE
    # The removals do move the prediction: agreement is not that of nothing with nothing.
    assert moved > (0.1 if not target else 0.01)
    assert table.filter((pl.col("num_removed") > 0) & (pl.col("delta") == 0)).is_empty()
