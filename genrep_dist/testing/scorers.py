"""Conformance tests of scorers.

.. code-block:: python

    from genrep_dist.testing import ScorerTests

    class TestMyScorer(ScorerTests):
        def make_scorer(self):
            return MyScorer()

Override :meth:`~ScorerTests.inputs` for a scorer that is defined for other inputs than vectors.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from genrep_dist.core.losses import Loss, get_loss
from genrep_dist.core.scorers.base import Scorer
from genrep_dist.workflow.returned import checked_tensor

NUM_TRAIN, NUM_TEST, NUM_FEATURES = 12, 4, 5
OUTPUTS = pytest.mark.parametrize("num_outputs", [1, 3])


class ScorerTests:
    """Scores of a small problem of one and of three classes' logits. A subclass defines :meth:`make_scorer`."""

    def make_scorer(self) -> Scorer:
        raise NotImplementedError("return the scorer that is tested")

    def inputs(self, rows: int, seed: int) -> Tensor:
        """Inputs (rows, ...)."""
        return torch.randn(rows, NUM_FEATURES, generator=torch.Generator().manual_seed(seed))

    def test_it_describes_itself(self) -> None:
        scorer = self.make_scorer()
        assert scorer.formula
        assert scorer.source
        assert scorer.meaning

    @OUTPUTS
    def test_each_point_has_a_finite_score_for_each_sample(self, num_outputs: int) -> None:
        scorer, given = self.make_scorer(), DenseScoreInputs(self, num_outputs)
        scorer.check(given.loss, given.train_inputs[:2], given.targets[:2], num_outputs)
        scores = checked_tensor(scorer.scores(given), (NUM_TRAIN, NUM_TEST), scorer, "scores", "the conformance tests")
        assert torch.equal(scores, self.make_scorer().scores(given))

    @OUTPUTS
    def test_scores_of_a_point_depend_on_no_other_point(self, num_outputs: int) -> None:
        given = DenseScoreInputs(self, num_outputs)
        whole = self.make_scorer().scores(given)
        for point in range(NUM_TEST):
            alone = self.make_scorer().scores(given.of_points(slice(point, point + 1)))
            torch.testing.assert_close(alone, whole[:, point : point + 1], rtol=1e-9, atol=1e-12)

    @OUTPUTS
    def test_scores_of_mislabelled_samples_need_no_points(self, num_outputs: int) -> None:
        scorer, given = self.make_scorer(), DenseScoreInputs(self, num_outputs)
        if not scorer.has_self_scores:
            pytest.skip("the scorer has no self_scores")
        found = scorer.self_scores(given.of_points(slice(0, 0)))
        checked_tensor(found, (NUM_TRAIN,), scorer, "self_scores", "the conformance tests")


class DenseScoreInputs:
    """:class:`~genrep_dist.core.scorers.base.ScoreInputs` of a linear model, whose base kernel has features of each output."""

    def __init__(self, tests: ScorerTests, num_outputs: int) -> None:
        generator = torch.Generator().manual_seed(1)

        def numbers(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.loss: Loss = get_loss("logistic" if num_outputs == 1 else "softmax")
        self.train_inputs, self.test_inputs = tests.inputs(NUM_TRAIN, 2), tests.inputs(NUM_TEST, 3)
        labels = torch.arange(NUM_TRAIN) % max(2, num_outputs)
        self.targets = labels.float() if num_outputs == 1 else labels
        self.outputs, self.test_outputs = numbers(NUM_TRAIN, num_outputs), numbers(NUM_TEST, num_outputs)
        self.weights = torch.nn.functional.one_hot(torch.arange(NUM_TEST) % num_outputs, num_outputs).double()
        self._train, self._test = numbers(NUM_TRAIN, num_outputs, 7), numbers(NUM_TEST, 7)

    def of_points(self, rows: slice) -> DenseScoreInputs:
        """The same for some of the test points."""
        some = object.__new__(DenseScoreInputs)
        some.__dict__.update(self.__dict__)
        some.test_inputs, some.test_outputs, some.weights = self.test_inputs[rows], self.test_outputs[rows], self.weights[rows]
        some._test = self._test[rows]
        return some

    def products(self, alpha: Tensor) -> Tensor:
        return torch.einsum("nc,ncp,mp->nm", alpha, self._train, self._test)

    def norms(self, alpha: Tensor) -> Tensor:
        norms: Tensor = torch.einsum("nc,ncp->np", alpha, self._train).norm(dim=1)
        return norms
