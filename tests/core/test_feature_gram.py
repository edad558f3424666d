"""Products with a gram from features against the matrix itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from genrep_dist.core.losses import get_loss
from genrep_dist.core.solvers.dual_system import GramColumns, Matvec
from genrep_dist.core.solvers.feature_gram import FeatureGram, samples_of_block
from genrep_dist.core.solvers.surrogate import SurrogateCertificate, solve_surrogate
from genrep_dist.errors import ProblemError

NUM_TRAIN, WIDTH = 23, 5
FORMS = pytest.mark.parametrize(("rows_per_sample", "num_outputs"), [(1, 1), (3, 3), (1, 3)])
"""A scalar kernel of one output, a matrix-valued one, and a scalar one that three outputs share."""


class Passes:
    """Features (R, D), in blocks of so many samples; counts the passes."""

    def __init__(self, rows_per_sample: int, samples: int = 4) -> None:
        generator = torch.Generator().manual_seed(rows_per_sample)
        self.features = torch.randn(NUM_TRAIN * rows_per_sample, WIDTH, generator=generator)
        self.step, self.count = samples * rows_per_sample, 0

    def __call__(self) -> list[Tensor]:
        self.count += 1
        return list(torch.split(self.features, self.step))


def whole(features: Tensor, num_outputs: int) -> Tensor:
    """K (N C, N C) float64."""
    gram = features.double() @ features.double().T
    return gram if len(gram) > NUM_TRAIN else torch.kron(gram, torch.eye(num_outputs, dtype=torch.float64))


@FORMS
@pytest.mark.parametrize("hold", [True, False])
def test_products_are_those_of_the_matrix(rows_per_sample: int, num_outputs: int, hold: bool) -> None:
    passes = Passes(rows_per_sample)
    gram, k = FeatureGram(passes, NUM_TRAIN, rows_per_sample, hold=hold), whole(passes.features, num_outputs)
    alpha = torch.randn(NUM_TRAIN, num_outputs, dtype=torch.float64)
    torch.testing.assert_close(gram.matvec(alpha).flatten(), k @ alpha.flatten())
    rows = torch.tensor([0, 4, 5, 17, NUM_TRAIN * num_outputs - 1])
    torch.testing.assert_close(gram.sample(rows, num_outputs), k[:, rows])
    samples, update = torch.tensor([2, 20, 7]), torch.randn(3, num_outputs, dtype=torch.float64)
    placed = torch.zeros_like(alpha).index_add_(0, samples, update)
    torch.testing.assert_close(gram.columns(samples, update).flatten(), k @ placed.flatten())
    assert passes.count == (1 if hold else 6)


@FORMS
def test_holding_changes_no_bit(rows_per_sample: int, num_outputs: int) -> None:
    alpha = torch.randn(NUM_TRAIN, num_outputs, dtype=torch.float64)
    held, passed = (FeatureGram(Passes(rows_per_sample), NUM_TRAIN, rows_per_sample, hold=hold) for hold in (True, False))
    for _ in range(2):
        assert torch.equal(held.matvec(alpha), passed.matvec(alpha))


@pytest.mark.parametrize("loss", ["logistic", "softmax"])
def test_the_surrogate_is_that_of_the_matrix(loss: str) -> None:
    num_outputs = 1 if loss == "logistic" else 3
    passes, outputs = Passes(num_outputs), torch.randn(NUM_TRAIN, num_outputs, dtype=torch.float64)
    k, gram = whole(passes.features, num_outputs), FeatureGram(passes, NUM_TRAIN, num_outputs)

    def matvec(alpha: Tensor) -> Tensor:
        return (k @ alpha.flatten()).reshape(alpha.shape)

    def solved(product: Matvec, columns: GramColumns | None = None) -> tuple[Tensor, SurrogateCertificate]:
        return solve_surrogate(product, get_loss(loss), outputs, lam=1e-2, tolerance=1e-10, columns=columns)

    expected, _ = solved(matvec)
    alpha, certificate = solved(gram.matvec, lambda rows: gram.sample(rows, num_outputs))
    torch.testing.assert_close(alpha, expected, rtol=0, atol=1e-8 * float(expected.abs().max()))
    assert certificate.residual <= 1e-10


@pytest.mark.parametrize("num_train", [NUM_TRAIN - 1, NUM_TRAIN + 1])
def test_other_numbers_of_rows_are_refused(num_train: int) -> None:
    gram = FeatureGram(Passes(1), num_train)
    with pytest.raises(ProblemError, match="features do not fit"):
        gram.matvec(torch.zeros(num_train, 1, dtype=torch.float64))


def test_blocks_depend_on_sizes_alone() -> None:
    assert samples_of_block(100, 1, 10) == 100
    assert samples_of_block(10**6, 1, 4096) == 512
    assert samples_of_block(10**6, 10, 10**8) == 1
