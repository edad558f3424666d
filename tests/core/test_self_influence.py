"""Self-influence against kernels of the training samples with themselves, and the influence diagonal against an explicit inverse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from genrep_dist.core.attribution import attribute
from genrep_dist.core.gradients.last_layer import last_layer_features
from genrep_dist.core.gradients.per_sample import factored_gradients, per_sample_gradients
from genrep_dist.core.kernels.blocks import last_layer_block, ntk_block
from genrep_dist.core.self_influence import influence_diagonal, own_outputs, scalar_diagonal, self_influence
from genrep_dist.core.solvers.gauss_newton import influence_kernel
from genrep_dist.errors import ConvergenceError, MethodError, ProblemError
from tests.core.models import NetworkExample, initialise, rows

CASES = [("logistic", 1), ("softmax", 2), ("softmax", 3)]


def diagonal_of(kernel: Tensor) -> Tensor:
    """(N, C) of K (N, C, N): one sample after the other."""
    return torch.stack([kernel[i, :, i] for i in range(len(kernel))])


class LabelledExample(NetworkExample):
    """A small network on ten labelled samples."""

    def __init__(self, loss_name: str, num_outputs: int) -> None:
        super().__init__(loss_name, num_outputs, n=10)
        self.own, self.direction = own_outputs(self.targets, loss_name)
        self.alpha = -self.loss.derivative(self.outputs, self.targets)

    def explicit(self, delta: float) -> Tensor:
        """The influence diagonal (N, C) by the P x P matrix, sample by sample."""
        inverse = torch.linalg.inv(self.gauss_newton(delta))
        return torch.stack([jacobian @ inverse @ jacobian[own] for jacobian, own in zip(self.jacobian, self.own, strict=True)])


@pytest.mark.parametrize(("loss_name", "num_outputs"), CASES)
def test_ntk_diagonal_is_the_kernel_of_each_sample_with_itself(loss_name: str, num_outputs: int) -> None:
    m = LabelledExample(loss_name, num_outputs)
    own_gradient = per_sample_gradients(m.model, m.train, m.own)
    expected = diagonal_of(ntk_block(m.jacobian, own_gradient))
    gradients = factored_gradients(m.model, m.train)
    torch.testing.assert_close(gradients.self_product(m.own), expected, rtol=1e-12, atol=1e-12)
    single = gradients.to(torch.float32).self_product(m.own)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("loss_name", "num_outputs"), CASES)
def test_last_layer_diagonal_enters_the_own_output_only(loss_name: str, num_outputs: int) -> None:
    m = LabelledExample(loss_name, num_outputs)
    features = last_layer_features(m.model, m.train)
    expected = diagonal_of(last_layer_block(features, features, m.own, num_outputs))
    diagonal = scalar_diagonal(features.square().sum(dim=1), m.own, num_outputs)
    torch.testing.assert_close(diagonal, expected, rtol=1e-12, atol=1e-12)
    # It is the diagonal of the NTK of the last layer's parameters alone.
    head = initialise(nn.Sequential(nn.Linear(features.shape[1] - 1, num_outputs)), 1)
    head_diagonal = factored_gradients(head, features[:, :-1]).self_product(m.own)
    torch.testing.assert_close(diagonal, head_diagonal, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("loss_name", "num_outputs"), CASES)
def test_self_influence_is_the_attribution_of_a_sample_to_its_own_label(loss_name: str, num_outputs: int) -> None:
    m = LabelledExample(loss_name, num_outputs)
    phi = attribute(m.alpha, ntk_block(m.jacobian, per_sample_gradients(m.model, m.train, m.own)))
    found = self_influence(m.alpha.float(), factored_gradients(m.model, m.train).self_product(m.own), m.direction)
    assert found.dtype == torch.float64
    for i in range(len(phi)):
        sign = -1 if loss_name == "logistic" and m.targets[i] == 0 else 1
        assert float(found[i]) == pytest.approx(sign * float(phi[i, i]), rel=1e-5)


@pytest.mark.parametrize(("loss_name", "num_outputs"), CASES)
def test_a_sample_supports_its_own_label(loss_name: str, num_outputs: int) -> None:
    """By the target derivative and a PSD scalar kernel: for any label, and more for a label that the model contradicts."""
    m = LabelledExample(loss_name, num_outputs)
    values = last_layer_features(m.model, m.train).square().sum(dim=1)
    wrong = 1 - m.targets if loss_name == "logistic" else (m.targets + 1) % num_outputs
    found = []
    for targets in (m.targets, wrong):
        own, direction = own_outputs(targets, loss_name)
        alpha = -m.loss.derivative(m.outputs, targets)
        found.append(self_influence(alpha, scalar_diagonal(values, own, num_outputs), direction))
        assert bool((found[-1] > 0).all())
    if num_outputs < 3:
        margin = -m.loss.value(m.outputs, m.targets) + m.loss.value(m.outputs, wrong)
        assert torch.equal(found[1] > found[0], margin > 0)


@pytest.mark.parametrize("damping", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize(("loss_name", "num_outputs"), CASES)
def test_influence_diagonal_agrees_with_the_explicit_inverse(loss_name: str, num_outputs: int, damping: float) -> None:
    m = LabelledExample(loss_name, num_outputs)
    diagonal = influence_diagonal(m.gram, m.curvature, m.own, damping=damping, relative=False, num_parameters=m.num_parameters)
    expected = m.explicit(damping)
    assert diagonal.shape == (10, num_outputs)
    torch.testing.assert_close(diagonal, expected, rtol=0, atol=1e-10 * float(expected.abs().max()))


@pytest.mark.parametrize(("loss_name", "num_outputs"), CASES)
def test_influence_diagonal_is_that_of_the_influence_kernel(loss_name: str, num_outputs: int) -> None:
    m = LabelledExample(loss_name, num_outputs)
    cross = ntk_block(m.jacobian, per_sample_gradients(m.model, m.train, m.own))
    kernel, _ = influence_kernel(m.gram, cross, m.curvature, damping=0.1, relative=True, num_parameters=m.num_parameters)
    found = influence_diagonal(m.gram.float(), m.curvature, m.own, damping=0.1, relative=True, num_parameters=m.num_parameters)
    torch.testing.assert_close(found, diagonal_of(kernel), rtol=1e-4, atol=1e-4)
    found = influence_diagonal(m.gram, m.curvature, m.own, damping=0.1, relative=True, num_parameters=m.num_parameters)
    torch.testing.assert_close(found, diagonal_of(kernel), rtol=1e-10, atol=1e-10)


def test_the_diagonal_refuses_what_the_influence_kernel_refuses() -> None:
    m = LabelledExample("softmax", 3)
    with pytest.raises(MethodError, match="positive damping"):
        influence_diagonal(m.gram, m.curvature, m.own, damping=0.0, relative=False, num_parameters=m.num_parameters)
    with pytest.raises(ConvergenceError):
        influence_diagonal(-m.gram, m.curvature, m.own, damping=1e-3, relative=False, num_parameters=m.num_parameters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8])
@pytest.mark.parametrize("column", [False, True])
def test_binary_labels_point_both_ways(dtype: torch.dtype, column: bool) -> None:
    targets = torch.tensor([1, 0, 0]).to(dtype)
    own, direction = own_outputs(targets.unsqueeze(1) if column else targets, "logistic")
    assert own.tolist() == [0, 0, 0]
    assert own.dtype == torch.int64
    assert direction.tolist() == [1, -1, -1]
    assert direction.dtype == torch.float64


def test_class_numbers_point_to_their_output() -> None:
    own, direction = own_outputs(torch.tensor([2, 0, 1], dtype=torch.uint8), "softmax")
    assert own.tolist() == [2, 0, 1]
    assert own.dtype == torch.int64
    assert direction.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("targets", "loss_name"),
    [
        (torch.tensor([0.5, 1.0]), "logistic"),
        (torch.tensor([0.0, 1.0]), "softmax"),
        (torch.tensor([[0, 1]]), "softmax"),
        (torch.tensor([0.0, 1.0]), "squared"),
        (torch.tensor([0, 1]), "my own"),
    ],
)
def test_samples_without_labels_are_refused(targets: Tensor, loss_name: str) -> None:
    with pytest.raises(ProblemError, match="needs samples with labels"):
        own_outputs(targets, loss_name)


def test_own_outputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ProblemError, match="from 0 to 3"):
        scalar_diagonal(rows(2), torch.tensor([0, 4]), 4)
    with pytest.raises(ProblemError, match=r"int64 \(2,\) from 0 to 2"):
        scalar_diagonal(rows(2), torch.tensor([0, 1, 2]), 3)
    with pytest.raises(ProblemError, match="float64"):
        scalar_diagonal(rows(2), torch.zeros(2, dtype=torch.float64), 3)
    with pytest.raises(ProblemError, match="influence_diagonal"):
        influence_diagonal(torch.eye(4), torch.zeros(2, 2, 2), torch.tensor([0, 2]), damping=1.0, relative=False, num_parameters=3)
    with pytest.raises(ProblemError, match="directions"):
        self_influence(rows(2, 3), rows(2, 3), torch.ones(3))
    with pytest.raises(ProblemError, match="importances and kernel"):
        self_influence(rows(2, 3), rows(2, 2), torch.ones(2))
