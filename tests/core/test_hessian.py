"""The true Hessian: products against torch's full matrix, solvers against explicit inverses, and what they say of negative curvature."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from genrep_dist.core.gradients.model import parameter_vector
from genrep_dist.core.losses import LOSSES
from genrep_dist.core.solvers.hessian import hessian_product, influence_block
from genrep_dist.core.solvers.hessian_system import Matmat
from genrep_dist.errors import MethodError, NonFiniteError, ProblemError
from tests.core.models import Squeezed, Tied, cnn, full_hessian, initialise, labels, mlp, rows, seeded

CASES = [("logistic", 1), ("softmax", 3), ("squared", 2)]


def assert_is_hessian(product: Matmat, expected: Tensor) -> None:
    matrix = product(torch.eye(len(expected), dtype=torch.float64))
    assert matrix.dtype == torch.float64
    torch.testing.assert_close(matrix, expected, rtol=0, atol=1e-12 * float(expected.abs().max()))


@pytest.mark.parametrize(("loss_name", "num_outputs"), CASES)
def test_the_product_is_with_the_full_hessian(loss_name: str, num_outputs: int) -> None:
    model, inputs, targets = mlp(num_outputs, seed=2), rows(12, 4), labels(loss_name, num_outputs, 12)
    hessian = full_hessian(model, LOSSES[loss_name], inputs, targets)
    assert torch.linalg.eigvalsh(hessian)[0] < -1e-4  # or the second derivatives of f would not be tested
    assert_is_hessian(hessian_product(model, LOSSES[loss_name], inputs, targets, batch_size=5), hessian)


class Attention(nn.Module):
    """Token numbers -> embedding -> a transformer layer -> logits; its attention is a fused operation."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.layer = nn.TransformerEncoderLayer(4, 2, 5, batch_first=True)
        self.last = nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.last(self.layer(self.embedding(inputs)).mean(dim=1))
        return logits


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (cnn(3), rows(4, 2, 6, 6)),
        (initialise(Tied(), 5), rows(6, 4)),
        (initialise(Attention(), 6), torch.randint(7, (4, 3), generator=seeded(1))),
    ],
    ids=["convolutions", "tied", "attention"],
)
def test_networks_of_all_kinds(model: nn.Module, inputs: Tensor) -> None:
    targets = torch.arange(len(inputs)) % 2
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = full_hessian(model, LOSSES["softmax"], inputs, targets)
    assert_is_hessian(hessian_product(model, LOSSES["softmax"], inputs, targets, batch_size=64), expected)


def test_frozen_parameters_and_buffers_are_constants() -> None:
    model = cnn(2)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith("0."))
    inputs, targets = rows(4, 2, 6, 6), torch.arange(4) % 2
    expected = full_hessian(model, LOSSES["softmax"], inputs, targets)
    assert len(expected) == len(parameter_vector(model)) < sum(p.numel() for p in model.parameters())
    assert_is_hessian(hessian_product(model, LOSSES["softmax"], inputs, targets, batch_size=64), expected)


def test_a_model_that_returns_one_dimension() -> None:
    body, inputs, targets = mlp(1), rows(6, 4), labels("logistic", 1, 6)
    vectors = rows(len(parameter_vector(body)), 3, seed=8)
    expected = hessian_product(body, LOSSES["logistic"], inputs, targets, batch_size=64)(vectors)
    model = Squeezed(body).eval()
    assert torch.equal(hessian_product(model, LOSSES["logistic"], inputs, targets, batch_size=64)(vectors), expected)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(0, 7))
def test_batch_size_changes_nothing_but_rounding(batch_size: int, num_columns: int) -> None:
    model, inputs, targets = mlp(3, seed=2), rows(12, 4), labels("softmax", 3, 12)
    vectors = rows(len(parameter_vector(model)), num_columns, seed=8)
    expected = full_hessian(model, LOSSES["softmax"], inputs, targets) @ vectors
    found = hessian_product(model, LOSSES["softmax"], inputs, targets, batch_size=batch_size)(vectors)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("batch_size", "num_columns"), [(6, 2), (6, 3), (6, 30), (1, 1)])
def test_batch_size_bounds_the_pairs_worked_on_at_once(batch_size: int, num_columns: int) -> None:
    seen: list[int] = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(1)

        def forward(self, inputs: Tensor) -> Tensor:
            seen.append(len(inputs))
            out: Tensor = self.body(inputs)
            return out

    model = Watched().eval()
    product = hessian_product(model, LOSSES["logistic"], rows(12, 4), labels("logistic", 1, 12), batch_size=batch_size)
    assert max(seen) <= batch_size
    seen.clear()
    product(rows(len(parameter_vector(model)), num_columns))
    assert max(seen) * min(num_columns, batch_size) <= batch_size


def test_the_product_keeps_the_parameters_of_its_creation_and_does_not_change_the_model() -> None:
    model, inputs, targets = mlp(1), rows(6, 4), labels("logistic", 1, 6)
    before = parameter_vector(model)
    vectors = rows(len(before), 2, seed=8)
    product = hessian_product(model, LOSSES["logistic"], inputs, targets, batch_size=64)
    first = product(vectors)
    assert torch.equal(parameter_vector(model), before)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    assert torch.equal(product(vectors), first)
    assert not torch.equal(hessian_product(model, LOSSES["logistic"], inputs, targets, batch_size=64)(vectors), first)


def test_only_the_derivatives_of_the_loss_are_used() -> None:
    class Tabulated:
        """A user's loss that autograd cannot see through."""

        name = "tabulated"

        def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
            raise AssertionError("the value is not needed")

        def derivative(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return torch.tensor(LOSSES["softmax"].derivative(outputs, targets).tolist())

        def second_derivative(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return torch.tensor(LOSSES["softmax"].second_derivative(outputs, targets).tolist(), dtype=torch.float64)

        def soft_targets(self, outputs: Tensor) -> Tensor:
            return outputs

    model, inputs, targets = mlp(3), rows(6, 4), labels("softmax", 3, 6)
    vectors = rows(len(parameter_vector(model)), 2, seed=8)
    expected = hessian_product(model, LOSSES["softmax"], inputs, targets, batch_size=64)(vectors)
    found = hessian_product(model, Tabulated(), inputs, targets, batch_size=64)(vectors)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_a_float32_model_is_computed_in_float64_by_default() -> None:
    model, inputs, targets = mlp(3, dtype=torch.float32), rows(12, 4, dtype=torch.float32), labels("softmax", 3, 12)
    vectors = rows(len(parameter_vector(model)), 2, seed=8)
    single = hessian_product(model, LOSSES["softmax"], inputs, targets, batch_size=64, dtype=torch.float32)(vectors)
    double = hessian_product(model, LOSSES["softmax"], inputs, targets, batch_size=64)(vectors)
    expected = full_hessian(model.double(), LOSSES["softmax"], inputs.double(), targets) @ vectors
    torch.testing.assert_close(double, expected, rtol=0, atol=1e-12)
    assert single.dtype == torch.float64
    assert 1e-12 < float((single - expected).abs().max()) < 1e-5


def test_invalid_products_are_refused() -> None:
    model, inputs, targets, loss = mlp(1), rows(6, 4), labels("logistic", 1, 6), LOSSES["logistic"]
    with pytest.raises(ProblemError, match="eval mode"):
        hessian_product(cnn(1).train(), loss, rows(6, 2, 6, 6), targets, batch_size=8)
    with pytest.raises(ProblemError, match="rows do not fit"):
        hessian_product(model, loss, inputs, targets[:5], batch_size=8)
    with pytest.raises(ProblemError, match="rows do not fit"):
        hessian_product(model, loss, inputs[:0], targets[:0], batch_size=8)
    with pytest.raises(MethodError, match="batch_size"):
        hessian_product(model, loss, inputs, targets, batch_size=0)
    with pytest.raises(ProblemError, match=r"vectors do not fit"):
        hessian_product(model, loss, inputs, targets, batch_size=8)(rows(7, 2))
    bad = inputs.clone()
    bad[4] = math.nan
    with pytest.raises(NonFiniteError, match=r"the first: \[4\]"):
        hessian_product(model, loss, bad, targets, batch_size=8)


def test_an_operation_without_second_derivative_is_named() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag = nn.EmbeddingBag(7, 4)
            self.last = nn.Linear(4, 1)

        def forward(self, inputs: Tensor) -> Tensor:
            out: Tensor = self.last(self.bag(inputs))
            return out

    model = initialise(Bag(), 1)
    product = hessian_product(model, LOSSES["logistic"], torch.ones(3, 2, dtype=torch.int64), torch.ones(3), batch_size=8)
    with pytest.raises(ProblemError, match="without a second derivative"):
        product(parameter_vector(model).unsqueeze(1))


def test_blocks_are_computed_in_the_wider_precision() -> None:
    jacobian, solution = rows(4, 2, 5, dtype=torch.float32), rows(5, 3, seed=2)
    found = influence_block(jacobian, solution)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, torch.einsum("bcp,pm->bcm", jacobian.double(), solution))
    with pytest.raises(ProblemError):
        influence_block(jacobian, rows(4, 3))
