"""The paper's text network, small: NTK, surrogate and influence with all parameters, against gradients taken one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import genrep_dist as gr
from genrep_dist.core.losses import get_loss
from genrep_dist.core.solvers.gauss_newton import influence_kernel
from genrep_dist.problems.datasets.text_models import TextCNN
from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.store.features import RowsReader
from tests.core.models import jacobian_by_loop
from tests.experiments import ROOT, experiment

METHODS = ["ntk-final/surrogate", "ntk-final/tracking", "influence-final/tracking", "influence-final/target", "last-layer-final/target"]
DAMPING = 0.05


class Sentences:
    """Sentences of different lengths, two classes told apart by what tokens they prefer; some tokens are in every sentence."""

    def __init__(self, train_size: int = 30, test_size: int = 6) -> None:
        self.sizes = train_size, test_size
        self.loss = "logistic"
        self.recipe = Recipe(epochs=8, batch_size=5, learning_rate=1.0)

    def model(self) -> nn.Module:
        return TextCNN(vocabulary_size=80, embedding_width=5, channels=(6, 8, 12))

    def train_data(self) -> Dataset:
        return self._data(0, self.sizes[0])

    def test_data(self) -> Dataset:
        return self._data(1, self.sizes[1])

    def _data(self, seed: int, count: int) -> Dataset:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(count) % 2
        tokens = (torch.rand(count, 16, generator=generator) ** 2 * 40).long() + 2 + 38 * labels.unsqueeze(1)
        tokens[:, 0] = 1
        lengths = torch.randint(4, 17, (count, 1), generator=generator)
        return Dataset(tokens.masked_fill(torch.arange(16) >= lengths, 0), labels.float(), 100 + torch.arange(count))


def run(store: Path, **arguments: Any) -> gr.Run:
    fields: dict[str, Any] = {"methods": METHODS, "seeds": 1, "influence": {"damping": DAMPING}, "surrogate": {"lambda": 0.05}}
    asked = experiment("tests.test_text_features:Sentences", **{**fields, **arguments})
    return gr.run(asked, store=str(store), serial=True, search_path=[str(ROOT)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> gr.Run:
    return run(tmp_path_factory.mktemp("text"))


def jacobians(finished: gr.Run) -> tuple[Tensor, Tensor]:
    """J (N, P) of the training samples and (M, P) of the test points, float64, one backward pass each."""
    problem = finished.problem(0)
    rows = [problem.test.ids.tolist().index(i) for i in finished.test_ids(0).tolist()]
    model = problem.model.double().eval()
    return jacobian_by_loop(model, problem.train.inputs)[:, 0], jacobian_by_loop(model, problem.test.inputs[rows])[:, 0]


def test_the_ntk_is_the_product_of_gradients_taken_one_by_one(finished: gr.Run) -> None:
    train, test = jacobians(finished)
    np.testing.assert_allclose(finished.kernel("ntk", "final", 0), (train @ test.T).numpy(), rtol=1e-4, atol=1e-5)
    keys = finished.plan.keys
    gram = finished.store.artifact("gram", keys.gram(0, "ntk", keys.epochs)).read("gram")
    np.testing.assert_allclose(gram, (train @ train.T).numpy(), rtol=1e-4, atol=1e-5)


def test_the_stored_features_are_factors_and_smaller_than_rows(finished: gr.Run) -> None:
    keys, shape = finished.plan.keys, finished.plan.shape
    artifact = finished.store.artifact("features", keys.features(0, "ntk", keys.epochs))
    rows = RowsReader(artifact).read(0, shape.num_train)
    train, _ = jacobians(finished)
    torch.testing.assert_close(rows.to_dense()[:, 0].double(), train, rtol=1e-4, atol=1e-6)
    assert [weight.product_form for weight in rows.weights] == ["tokens", "gradients", "gradients", "gradients", "gradients"]
    assert 0 < shape.kernels["ntk"].stored_bytes < 4 * shape.num_parameters
    written = next(stage for stage in finished.plan.stages if stage.name == "gradients").bytes_written
    assert written == shape.num_train * shape.kernels["ntk"].stored_bytes


def test_the_surrogate_on_text_projects_the_model(finished: gr.Run) -> None:
    """The cell that the paper leaves empty: alpha = -(1/(n lambda)) dL(K alpha)/df against the model's own predictions (Eq. 6)."""
    train, _ = jacobians(finished)
    alpha = torch.from_numpy(finished.importance("surrogate", 0)).reshape(-1)
    problem = finished.problem(0)
    soft = torch.sigmoid(problem.model.double()(problem.train.inputs)[:, 0].detach())
    found = train @ train.T @ alpha
    expected = -(torch.sigmoid(found) - soft) / (len(train) * 0.05)
    torch.testing.assert_close(alpha, expected, rtol=1e-3, atol=1e-4)


def test_influence_on_text_with_all_parameters_is_the_explicit_inverse(finished: gr.Run) -> None:
    """The cells for which the paper takes the last layer alone: (H + delta I)^-1 with the P x P Gauss-Newton, written out."""
    train, test = jacobians(finished)
    problem = finished.problem(0)
    outputs = problem.model.double()(problem.train.inputs).detach()
    curvature = get_loss("logistic").second_derivative(outputs, problem.train.targets)[:, 0, 0]
    hessian = (train * curvature.unsqueeze(1)).T @ train / len(train)
    expected = train @ torch.linalg.solve(hessian + DAMPING * torch.eye(train.shape[1], dtype=torch.float64), test.T)
    np.testing.assert_allclose(finished.kernel("influence", "final", 0), expected.numpy(), rtol=2e-4, atol=2e-4)
    block, _ = influence_kernel(
        train @ train.T,
        (train @ test.T).unsqueeze(1),
        curvature.view(-1, 1, 1),
        damping=DAMPING,
        relative=False,
        num_parameters=train.shape[1],
    )
    torch.testing.assert_close(block[:, 0], expected, rtol=1e-6, atol=1e-8)


def test_stored_or_streamed_in_blocks_of_any_size(finished: gr.Run, tmp_path: Path) -> None:
    plain = {method: finished.attributions(method, 0) for method in METHODS}
    streamed = run(tmp_path / "streamed", resources={"features": "stream"})
    for method in METHODS:
        np.testing.assert_array_equal(streamed.attributions(method, 0), plain[method])
    small = run(tmp_path / "small", resources={"memory_budget": "128KiB", "features": "store"})
    assert small.plan.block_rows["ntk"] < 10
    for method in METHODS:
        np.testing.assert_allclose(small.attributions(method, 0), plain[method], rtol=1e-3, atol=1e-5)
