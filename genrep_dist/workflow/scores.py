"""Scores of methods that are no importance times a kernel: what their scorers are given."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from genrep_dist.core.gradients.factored import FactoredGradients
from genrep_dist.core.methods import Method
from genrep_dist.core.scorers.base import Scorer
from genrep_dist.plan import Plan
from genrep_dist.problems.protocol import Dataset
from genrep_dist.workflow.context import TestPoints, WorkerContext
from genrep_dist.workflow.features import feature_kernel, kernel_at, pass_rows, point_block, point_features, train_features
from genrep_dist.workflow.returned import checked_tensor
from genrep_dist.workflow.terms import product_block


def scores_of(method: Method, seed: int, context: WorkerContext, points: TestPoints) -> Tensor:
    """Phi (N, M) float64 of a scorer's method for ``points``."""
    scorer = context.experiment.scorer(method.importance)
    inputs = _Inputs(scorer, seed, context, points)
    shape = len(context.train.ids), len(points)
    return checked_tensor(scorer.scores(inputs), shape, scorer, "scores", f"seed {seed}").double().cpu()


def self_scores_of(method: Method, seed: int, context: WorkerContext) -> Tensor:
    """(N,) float64 of a scorer's method: large where a sample is likely to be mislabelled."""
    scorer, points = context.experiment.scorer(method.importance), context.test_points(seed)
    inputs = _Inputs(scorer, seed, context, points.part(slice(0, 0)))
    return checked_tensor(scorer.self_scores(inputs), (len(context.train.ids),), scorer, "self_scores", f"seed {seed}").double().cpu()


def check_scorers(plan: Plan, loss: object, train: Dataset) -> None:
    """Raise ProblemError for a scorer that is not defined for the problem."""
    for method in plan.experiment.parsed_methods:
        if method.scorer_class is not None:
            scorer = plan.experiment.scorer(method.importance)
            scorer.check(loss, train.inputs[:2], train.targets[:2], plan.shape.num_outputs)  # type: ignore[arg-type]


class _Inputs:
    """:class:`~genrep_dist.core.scorers.base.ScoreInputs` of one seed, from a worker's context."""

    def __init__(self, scorer: Scorer, seed: int, context: WorkerContext, points: TestPoints) -> None:
        self._scorer, self._seed, self._context, self._points = scorer, seed, context, points
        epoch = context.keys.epochs
        self.loss = context.loss
        self.train_inputs, self.targets = context.train.inputs.cpu(), context.train.targets.cpu()
        self.outputs = context.train_outputs(seed, epoch).double()
        self.test_inputs = points.inputs.cpu()
        model = context.model(seed, epoch)
        self.test_outputs = context.predict(model, points.inputs).cpu().double() if len(points) else self.outputs[:0]
        chosen = context.output_weights(seed, epoch, points).cpu()
        self.weights = (chosen if chosen.is_floating_point() else one_hot(chosen, self.outputs.shape[1])).double()

    def products(self, alpha: Tensor) -> Tensor:
        return torch.cat([self._products(alpha[start:stop], start) for start, stop in self._blocks()])

    def norms(self, alpha: Tensor) -> Tensor:
        return torch.cat([self._norms(alpha[start:stop], start) for start, stop in self._blocks()])

    def _products(self, alpha: Tensor, start: int) -> Tensor:
        context, seed, epoch, base, where = self._context, self._seed, self._context.keys.epochs, self._base, self._where
        if feature_kernel(context, base).takes_weights and not self._shares_features:
            return product_block(context, base, seed, epoch, alpha, start, self._points, where)
        rows = train_features(context, base, seed, epoch, start, start + len(alpha))
        prepared = point_features(context, base, seed, epoch, self._points)
        outputs = context.output_weights(seed, epoch, self._points)
        block = point_block(feature_kernel(context, base), rows, prepared, outputs, alpha.shape[1], where)
        return torch.einsum("nc,ncm->nm", alpha, block.double().cpu())

    def _norms(self, alpha: Tensor, start: int) -> Tensor:
        context, base = self._context, self._base
        kernel = kernel_at(context, base, self._seed, context.keys.epochs)
        first = torch.zeros(len(alpha), dtype=torch.int64, device=context.device)
        weights = None if self._shares_features else alpha.to(context.device)
        rows = train_features(context, base, self._seed, context.keys.epochs, start, start + len(alpha), weights)
        if weights is None:
            squares = kernel.diagonal(rows, first, alpha.shape[1])[:, 0].double().cpu() * alpha.square().sum(dim=1)
        else:
            one_output = rows if isinstance(rows, FactoredGradients) else rows.unsqueeze(1)
            squares = kernel.diagonal(one_output, first, 1)[:, 0].double().cpu()
        return squares.sqrt()

    @property
    def _base(self) -> str:
        assert self._scorer.base is not None, self._scorer
        return self._scorer.base

    @property
    def _where(self) -> str:
        return f"method {self._scorer.name}, kernel {self._base}, seed {self._seed}"

    @property
    def _shares_features(self) -> bool:
        """Whether all outputs have the same features."""
        return not feature_kernel(self._context, self._base).factored

    def _blocks(self) -> Iterator[tuple[int, int]]:
        context, count = self._context, len(self._context.train.ids)
        step = pass_rows(context, feature_kernel(context, self._base), context.model(self._seed, context.keys.epochs))
        return ((start, min(start + step, count)) for start in range(0, count, step))
