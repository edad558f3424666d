"""Conformance tests of importances.

.. code-block:: python

    from genrep_dist.testing import SolvedImportanceTests

    class TestMyImportance(SolvedImportanceTests):
        def make_importance(self):
            return MyImportance()
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from genrep_dist.core.importances.base import Importance, OutputImportance, SolvedImportance
from genrep_dist.core.losses import Loss, get_loss
from genrep_dist.problems.protocol import Recipe
from genrep_dist.workflow.returned import checked_certificate, checked_pair, checked_tensor

NUM_TRAIN = 12
OUTPUTS = pytest.mark.parametrize("num_outputs", [1, 3])


class ImportanceTests:
    """What all kinds of importances share: a description. A subclass defines :meth:`make_importance`."""

    def make_importance(self) -> Importance:
        raise NotImplementedError("return the importance that is tested")

    def test_it_describes_itself(self) -> None:
        importance = self.make_importance()
        assert importance.name
        assert importance.formula
        assert importance.source
        assert isinstance(importance.description, str)


class OutputImportanceTests(ImportanceTests):
    """An importance that is a function of the model's outputs."""

    def make_importance(self) -> OutputImportance:
        raise NotImplementedError("return the importance that is tested")

    @OUTPUTS
    def test_alpha_has_a_number_for_each_output_of_each_sample(self, num_outputs: int) -> None:
        inputs = DenseInputs(num_outputs)
        outputs, targets = inputs.outputs.float(), inputs.targets
        found = [self.make_importance().compute(inputs.loss, outputs.clone(), targets.clone()) for _ in range(2)]
        checked_tensor(found[0], outputs.shape, self.make_importance(), "compute", "the conformance tests")
        assert torch.equal(found[0], found[1])


class SolvedImportanceTests(ImportanceTests):
    """An importance that is solved for on a gram. Its certificate must be true."""

    def make_importance(self) -> SolvedImportance:
        raise NotImplementedError("return the importance that is tested")

    @OUTPUTS
    def test_alpha_and_its_certificate(self, num_outputs: int) -> None:
        importance, inputs = self.make_importance(), DenseInputs(num_outputs)
        gram = DenseGram(num_outputs)
        alpha, found = checked_pair(importance.solve(gram, inputs), importance, "solve", "the conformance tests")
        alpha = checked_tensor(alpha, inputs.outputs.shape, importance, "solve", "the conformance tests").double()
        certificate = checked_certificate(found, "efficiency_gap", importance, "solve", "the conformance tests")
        gap = float((inputs.outputs - gram.matvec(alpha)).abs().max())
        assert float(certificate["efficiency_gap"]) == pytest.approx(gap, rel=1e-6, abs=1e-9), "efficiency_gap is max |f - K alpha|"
        again, _ = self.make_importance().solve(gram, inputs)
        assert torch.equal(again.double(), alpha)

    def test_costs_are_numbers(self) -> None:
        importance = self.make_importance()
        assert importance.advice
        assert importance.gram_products(4) > 0
        assert 0 <= importance.extra_bytes(10) <= importance.extra_bytes(1000)


class DenseGram:
    """:class:`~genrep_dist.core.importances.base.GramOperator` of a small positive definite matrix."""

    def __init__(self, num_outputs: int) -> None:
        self.size = NUM_TRAIN * num_outputs
        features = torch.randn(self.size, 2 * self.size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        self.matrix = features @ features.T / self.size

    def matvec(self, alpha: Tensor) -> Tensor:
        return (self.matrix @ alpha.reshape(-1)).reshape(alpha.shape)

    def sample(self, rows: Tensor, num_outputs: int) -> Tensor:
        del num_outputs
        return self.matrix[:, rows]

    def columns(self, rows: Tensor, update: Tensor) -> Tensor:
        scattered = torch.zeros(NUM_TRAIN, update.shape[1], dtype=torch.float64).index_add(0, rows, update)
        return self.matvec(scattered)


class DenseInputs:
    """:class:`~genrep_dist.core.importances.base.SolveInputs` with small outputs, and the targets of a training set."""

    def __init__(self, num_outputs: int) -> None:
        self.loss: Loss = get_loss("logistic" if num_outputs == 1 else "softmax")
        generator = torch.Generator().manual_seed(num_outputs)
        self.outputs: Tensor = torch.randn(NUM_TRAIN, num_outputs, generator=generator, dtype=torch.float64)
        classes = torch.arange(NUM_TRAIN) % max(2, num_outputs)
        self.targets = classes.float() if num_outputs == 1 else classes
        self.recipe: Any = Recipe(epochs=2, batch_size=5, learning_rate=0.01)

    def epoch_orders(self, epochs: int) -> list[Tensor]:
        return [torch.arange(NUM_TRAIN).roll(epoch) for epoch in range(epochs)]
