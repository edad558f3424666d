"""Scorers, and TRAK: scores against slow formulas, through whole runs on small problems of one and of three outputs."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

import genrep_dist as gr
from genrep_dist.core.scorers import SCORERS
from genrep_dist.core.scorers.base import ScoreInputs, Scorer
from genrep_dist.core.scorers.bm25 import BM25, bm25
from genrep_dist.core.scorers.gradcos import GradCos
from genrep_dist.core.scorers.gradient_norm import GradientNorm
from genrep_dist.core.scorers.knn_shapley import KNNShapley, shapley_values
from genrep_dist.core.scorers.own_loss import OwnLoss
from genrep_dist.errors import ProblemError
from genrep_dist.testing import ScorerTests
from tests.experiments import ROOT, experiment
from tests.toys import Blobs

METHODS = ["own-loss", "gradient-norm", "gradcos", "graddot", "knn-shapley", "trak", "random"]
DAMPING = 0.01
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "one output": ("tests.toys:Blobs", {}, {}),
    "three outputs": ("tests.toys:Blobs", {"num_classes": 3}, {}),
    "margin": ("tests.toys:Blobs", {"num_classes": 3}, {"kind": "margin"}),
    "loss": ("tests.toys:Blobs", {}, {"kind": "loss"}),
}


class TestGradCos(ScorerTests):
    def make_scorer(self) -> Scorer:
        return GradCos()


class TestGradientNorm(ScorerTests):
    def make_scorer(self) -> Scorer:
        return GradientNorm()


class TestKNNShapley(ScorerTests):
    def make_scorer(self) -> Scorer:
        return KNNShapley()


class TestOwnLoss(ScorerTests):
    def make_scorer(self) -> Scorer:
        return OwnLoss()


class TestBM25(ScorerTests):
    def make_scorer(self) -> Scorer:
        return BM25()

    def inputs(self, rows: int, seed: int) -> Tensor:
        return torch.randint(0, 9, (rows, 6), generator=torch.Generator().manual_seed(seed))


def test_every_scorer_runs_through_the_suite() -> None:
    tested = {kind().make_scorer().name for kind in ScorerTests.__subclasses__() if kind.__module__ == __name__}
    assert tested == set(SCORERS)


class Constant(Scorer):
    """A scorer of another package, with a field of the experiment."""

    name = "constant"
    formula, source, meaning = "lambda", "this test", "the same for all"
    settings = ("influence",)

    def __init__(self, influence: Any) -> None:
        self.value = influence.damping

    def scores(self, inputs: ScoreInputs) -> Tensor:
        return torch.full((len(inputs.targets), len(inputs.weights)), float(self.value), dtype=torch.float64)


def test_a_scorer_from_outside(tmp_path: Path) -> None:
    def run(damping: float) -> gr.Run:
        fields: dict[str, Any] = {"methods": ["constant", "random"], "seeds": 1, "influence": {"damping": damping}}
        return gr.run(experiment(**fields), store=str(tmp_path), serial=True, search_path=[str(ROOT)])

    SCORERS.register("constant", Constant)
    try:
        done = run(3.0)
        assert (done.attributions("constant", 0) == 3.0).all()
        assert "scorer constant" in done.plan.keys.extensions
        assert (run(4.0).attributions("constant", 0) == 4.0).all()
    finally:
        SCORERS.unregister("constant")


class Slow:
    """The trained model of seed 0, with per-sample gradients by one backward pass each."""

    def __init__(self, run: gr.Run) -> None:
        problem = run.problem(0)
        ids = problem.test.ids.tolist()
        points = [ids.index(sample) for sample in run.test_ids(0).tolist()]
        self.model = problem.model.double()
        self.inputs, self.targets = problem.train.inputs.double(), problem.train.targets
        self.points, self.labels = problem.test.inputs[points].double(), problem.test.targets[points]
        self.kind = run.plan.experiment.target.kind

    def gradient(self, number: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(number, list(self.model.parameters()))])

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        out = self.model(x[None])
        if out.shape[1] == 1:
            return torch.nn.functional.binary_cross_entropy_with_logits(out[:, 0], y.reshape(1).double())
        return cross_entropy(out, y[None])

    def explained(self, x: Tensor, y: Tensor) -> Tensor:
        out: Tensor = self.model(x[None])[0]
        if self.kind == "loss":
            return self.loss(x, y)
        if self.kind == "margin":
            return out[y] - torch.cat([out[:y], out[y + 1 :]]).logsumexp(0)
        return out[0] if len(out) == 1 else out.max()

    def margin(self, x: Tensor, y: Tensor) -> Tensor:
        out: Tensor = self.model(x[None])[0]
        return out[0] * (2 * y.double() - 1) if len(out) == 1 else out[y] - torch.cat([out[:y], out[y + 1 :]]).logsumexp(0)

    def direction(self, x: Tensor, y: Tensor) -> float:
        """1 if the explained number grows with the confidence in the predicted class, by a finite step towards it."""
        out = self.model(x[None])[0].detach()
        step = torch.sign(out) if len(out) == 1 else one_hot(out.argmax(), len(out)) - 1 / len(out)

        def value(outputs: Tensor) -> float:
            model, self.model = self.model, lambda _x: outputs[None]  # type: ignore[assignment]
            try:
                return float(self.explained(x, y))
            finally:
                self.model = model

        if self.kind == "logit" and len(out) > 1:
            return 1.0  # of the predicted class
        return math.copysign(1.0, value(out + 1e-4 * step) - value(out - 1e-4 * step))


@pytest.mark.parametrize("case", CASES)
def test_scores_agree_with_one_gradient_at_a_time(case: str, tmp_path: Path) -> None:
    problem, options, target = CASES[case]
    declared = experiment(
        problem,
        options,
        methods=METHODS,
        seeds=1,
        deletion={"fractions": [0.0, 0.1]},
        target=target,
        influence={"damping": DAMPING, "damping_unit": "absolute"},
    )
    run = gr.run(declared, store=str(tmp_path), serial=True, search_path=[str(ROOT)])
    slow = Slow(run)
    losses = [slow.loss(x, y) for x, y in zip(slow.inputs, slow.targets, strict=True)]
    train = torch.stack([slow.gradient(loss) for loss in losses])
    test = torch.stack([slow.gradient(slow.explained(x, y)) for x, y in zip(slow.points, slow.labels, strict=True)])
    margins = torch.stack([slow.gradient(slow.margin(x, y)) for x, y in zip(slow.inputs, slow.targets, strict=True)])
    directions = torch.tensor([slow.direction(x, y) for x, y in zip(slow.points, slow.labels, strict=True)])
    norms, graddot = train.norm(dim=1, keepdim=True), -train @ test.T
    curvature = margins.T @ margins / len(margins)
    solved = torch.linalg.solve(curvature + DAMPING * torch.eye(len(curvature), dtype=torch.float64), test.T)
    expected = {
        "own-loss": -torch.stack(losses).detach()[:, None] * directions,
        "gradient-norm": -norms * directions,
        "gradcos": graddot / norms,
        "graddot": graddot,
        "trak": -train @ solved,
    }
    for name, scores in expected.items():
        found = run.attributions(name, 0)
        np.testing.assert_allclose(found, scores, rtol=1e-3, atol=1e-4 * float(scores.abs().max()), err_msg=name)
    again = run.explain("knn-shapley", 0, test_ids=run.test_ids(0).tolist())
    np.testing.assert_allclose(again, run.attributions("knn-shapley", 0), atol=1e-12)
    assert set(run.summary()["method"]) == set(METHODS)


def brute_force(similarity: npt.NDArray[Any], votes: npt.NDArray[Any], neighbours: int) -> npt.NDArray[Any]:
    count = len(votes)

    def utility(subset: tuple[int, ...]) -> float:
        nearest = sorted(subset, key=lambda i: (-similarity[i], i))[:neighbours]
        return sum(float(votes[i]) for i in nearest) / neighbours

    values = np.zeros(count)
    for player in range(count):
        others = [i for i in range(count) if i != player]
        for size in range(count):
            for subset in itertools.combinations(others, size):
                weight = 1 / (count * math.comb(count - 1, size))
                values[player] += weight * (utility((*subset, player)) - utility(subset))
    return values


@pytest.mark.parametrize("neighbours", [1, 3, 9])
def test_knn_shapley_is_the_shapley_value(neighbours: int) -> None:
    generator = np.random.default_rng(0)
    similarity = generator.integers(0, 4, (7, 2)).astype(float)  # with ties
    votes = generator.normal(size=(7, 2))
    found = shapley_values(torch.from_numpy(similarity), torch.from_numpy(votes), neighbours)
    expected = [brute_force(similarity[:, m], votes[:, m], neighbours) for m in range(2)]
    np.testing.assert_allclose(found, np.stack(expected, axis=1), atol=1e-12)


def test_bm25_is_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    documents = torch.randint(0, 12, (9, 6), generator=generator)
    queries = torch.randint(0, 14, (3, 5), generator=generator)
    found = bm25(documents, queries, k1=1.2, b=0.75, padding=0)
    texts = [[t for t in row.tolist() if t] for row in documents]
    mean = sum(map(len, texts)) / len(texts)
    for m, query in enumerate(queries.tolist()):
        for n, text in enumerate(texts):
            score = 0.0
            for token in filter(None, query):
                holding = sum(token in other for other in texts)
                idf = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
                count = text.count(token)
                score += idf * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * len(text) / mean))
            assert found[n, m] == pytest.approx(score, abs=1e-12)


def test_bm25_of_numbers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match=r"bm25 is defined for token numbers alone[\s\S]*float32"):
        gr.run(experiment(methods=["bm25", "random"]), store=str(tmp_path), serial=True, search_path=[str(ROOT)])


def test_noise_is_found_by_the_loss_of_samples(tmp_path: Path) -> None:
    """Flipped labels have large losses and gradients: both rank them first."""
    methods = ["own-loss", "gradient-norm", "gradcos", "random"]
    plain = experiment(methods=methods, seeds=2, deletion={"fractions": [0.0, 0.1]}).resolved()
    problem = {"name": "tests.toys:Blobs", "options": {"epochs": 12}, "flip_labels": {"share": 0.1, "seed": 0}}
    run = gr.run(gr.Experiment.model_validate({**plain, "problem": problem}), store=str(tmp_path), serial=True, search_path=[str(ROOT)])
    found = {(row["metric"], row["method"]): row["mean"] for row in run.metrics().iter_rows(named=True)}
    name = next(metric for metric, _ in found if metric.startswith("mislabel"))
    assert found[name, "own-loss"] > 0.9
    assert found[name, "gradient-norm"] > 0.9
    assert (name, "gradcos") not in found


def test_trak_without_margins_is_refused_before_training(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"methods": ["trak", "random"], "target": {"output": 1}}
    declared = experiment("tests.test_scorers:TwoNumbers", **fields)
    with pytest.raises(ProblemError, match="TRAK needs the margin of each training sample's class"):
        gr.run(declared, store=str(tmp_path), serial=True, search_path=[str(ROOT)])
    assert not list(tmp_path.rglob("train"))


class TwoNumbers(Blobs):
    """Two numbers to be predicted, with the squared loss."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = "squared"

    def model(self) -> torch.nn.Module:
        return torch.nn.Linear(5, 2)

    def train_data(self) -> gr.Dataset:
        data = super().train_data()
        return gr.Dataset(data.inputs, data.inputs[:, :2].clone(), data.ids)

    def test_data(self) -> gr.Dataset:
        data = super().test_data()
        return gr.Dataset(data.inputs, data.inputs[:, :2].clone(), data.ids)
