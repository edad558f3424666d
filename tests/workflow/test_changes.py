"""Changes other than removals: weights and labels, against closed forms and plain loops, alone, in packs, in the ledger and in metrics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

import genrep_dist as gr
from genrep_dist.core.changes import Change
from genrep_dist.core.losses import get_loss
from genrep_dist.errors import ConfigError, PlanError, ProblemError
from genrep_dist.evaluation.metrics.base import RetrainRequest
from genrep_dist.problems.protocol import Recipe
from genrep_dist.store import Store
from genrep_dist.store.ledger import LedgerRow
from genrep_dist.training.function_trainer import FunctionTrainer
from genrep_dist.training.loop import TrainingRun, train_models
from genrep_dist.training.packs.base import Solo
from genrep_dist.training.packs.mapped import MappedPack
from genrep_dist.training.packs.stacked import StackedPack
from genrep_dist.training.randomness import Randomness
from genrep_dist.units import Retraining
from genrep_dist.workflow.changes import targets_of, weights_of
from genrep_dist.workflow.prepare import prepare
from genrep_dist.workflow.relabelling import check_relabelling
from genrep_dist.workflow.requests import StoredSeed, _Requests
from genrep_dist.workflow.retrain import retrain
from tests.diagnostics.runs import doctor
from tests.experiments import ROOT, experiment
from tests.oracles import test_deletion_closed_form as oracle
from tests.own_training import AsRecipe, bce
from tests.toys import Blobs

LAM = oracle.Ridge.recipe.weight_decay


def optimum(problem: str, weights: Any, targets: Any) -> Any:
    """The minimiser of sum_i w_i L_i / sum_i w_i + (lam/2) |theta|^2, by the closed form or Newton's method."""
    features = oracle.with_bias(oracle.Ridge().train_data().inputs)
    scale, theta = weights / weights.sum(), np.zeros(5)
    for _ in range(50):
        outputs = features @ theta
        mean, slope = (outputs, np.ones(40)) if problem == "Ridge" else (1 / (1 + np.exp(-outputs)), None)
        slope = mean * (1 - mean) if slope is None else slope
        gradient = features.T @ (scale * (mean - targets)) + LAM * theta
        theta = theta - np.linalg.solve((features.T * (scale * slope)) @ features + LAM * np.eye(5), gradient)
    return theta


@pytest.fixture(scope="module", params=["Ridge", "Logistic"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any]:
    asked = experiment(
        f"tests.oracles.test_deletion_closed_form:{request.param}",
        methods=["ntk-final/target", "influence-final/target", "tracincp", "ntk-final/tracking", "random"],
        deletion={"counts": [0]},
        lds={"subsets": 6, "weight": 0.25},
        loo={"samples": 4, "weight": 2.0},
        relabel={"samples": 12, **({"label": 0.5} if request.param == "Ridge" else {})},
        influence={"damping": LAM},
        seeds=1,
    )
    return request.param, gr.run(asked, store=str(tmp_path_factory.mktemp("store")), serial=True)


def test_weights_and_labels_give_the_optimum_of_the_changed_problem(finished: tuple[str, Any]) -> None:
    problem, run = finished
    own = {"Ridge": oracle.Ridge, "Logistic": oracle.Logistic}[problem]()
    data, features = own.train_data(), oracle.with_bias(own.test_data().inputs)
    ids, place = data.ids.tolist(), {int(one): row for row, one in enumerate(data.ids)}
    for change in (
        Change.of(ids[2:4], {ids[5]: 3.0, ids[6]: 0.2}),
        Change.of(labels={ids[8]: 1.0, ids[9]: 0.0, ids[10]: 0.25}),
        Change.of(ids[:1], {ids[1]: 0.5}, {ids[1]: 1.0, ids[30]: 0.0}),
    ):
        key = run.plan.keys.retraining(0, change, "same")
        found = retrain(Retraining(key, 0, "same", change.removed, 0, change.weights, change.labels), run.context)
        weights, targets = np.ones(40), data.targets.numpy().copy()
        for sample, weight in (*((sample, 0.0) for sample in change.removed), *change.weights):
            weights[place[sample]] = weight
        for sample, (label,) in change.labels:
            targets[place[sample]] = label
        assert np.abs(found.outputs[:, 0] - features @ optimum(problem, weights, targets)).max() < 1e-7


def test_metrics_of_weights_and_labels(finished: tuple[str, Any]) -> None:
    problem, run = finished
    own = {"Ridge": oracle.Ridge, "Logistic": oracle.Logistic}[problem]()
    data, place = own.train_data(), {int(one): row for row, one in enumerate(own.train_data().ids)}
    ledger = run.store.ledger(run.plan.keys.training)
    requests = pl.read_parquet(next(Path(run.store.uri).glob("experiments/toy/requests-*.parquet")))
    changes = ledger.changes(requests["key"])
    of_metric = {name: [changes[key] for key in requests.filter(metric=name).sort("subset")["key"]] for name in ("lds", "loo", "relabel")}
    assert [len(change.weights) for change in of_metric["lds"]] == [20] * 6
    assert {weight for change in of_metric["loo"] for _, weight in change.weights} == {2.0}
    assert [len(change.labels) for change in of_metric["relabel"]] == [1] * 12
    assert not any(change.removed for changes in of_metric.values() for change in changes)

    means = run.judged()["points"].group_by("metric", "method").agg(pl.col("value").mean())
    mean = {(metric, method): value for metric, method, value in means.iter_rows()}
    # Influence predicts small changes of a convex problem; an order without information does not.
    for metric in ("lds", "loo_correlation", "relabel_correlation"):
        assert mean[metric, "influence-final/target"] > 0.9, metric
    assert ("relabel_correlation", "ntk-final/tracking") not in mean
    assert ("relabel_correlation", "random") in mean

    # What is predicted, from K and the derivative of the loss by hand.
    all_ids = data.ids.numpy(), own.test_data().ids.numpy()
    seed = StoredSeed(run.plan, run.store, 0, *all_ids, open_context=lambda: run.context)
    labels = {sample: label for change in of_metric["relabel"] for sample, (label,) in change.labels}
    kernel, found = run.kernel("ntk", "final", 0), seed.score_changes("ntk-final/target", labels)
    expected = np.zeros_like(kernel)
    for sample, label in labels.items():
        row = place[sample]
        expected[row] = (label - float(data.targets[row])) * kernel[row]
        assert problem == "Ridge" or label == 1 - float(data.targets[row])
    assert found is not None
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_the_doctor_trains_changed_models_again(finished: tuple[str, Any]) -> None:
    _, run = finished
    found = doctor(run)
    assert found.worst_of("ledger").colour == found.worst_of("retraining").colour == "green"


def test_weight_zero_is_a_removal() -> None:
    assert Change.of([7], {3: 0.0, 5: 1.0}) == Change.of([3, 7]) == Change((3, 7))
    assert Change.of([3, 7]).identity == [[3, 7]]
    assert len(Change.of([7], {3: 0.5}, {3: 1, 9: 2})) == 3
    assert not Change.of((), {5: 1.0})
    assert Randomness.for_retraining(1, "fresh", Change.of([3], {7: 0})) == Randomness.for_retraining(1, "fresh", [7, 3])
    streams = {
        Randomness.for_retraining(1, "fresh", change).stream
        for change in (Change.of([3]), Change.of([], {3: 0.5}), Change.of([], {}, {3: 1}))
    }
    assert len(streams) == 3


def test_a_request_of_weight_zero_is_the_row_of_the_removal(finished: tuple[str, Any]) -> None:
    _, run = finished
    ids = run.train_ids(0)
    seed = StoredSeed(run.plan, run.store, 0, ids, ids)
    collected = _Requests(run.plan)
    collected._add("a", seed, RetrainRequest(ids[:2]))
    collected._add("b", seed, RetrainRequest(ids[:1], weights={int(ids[1]): 0.0, int(ids[2]): 1.0}))
    assert len(collected.retrainings) == 1
    for request in (
        RetrainRequest(ids[:1], weights={int(ids[0]): 2.0}),
        RetrainRequest(ids[:1], labels={int(ids[0]): 1.0}),
        RetrainRequest(ids[:0], weights={int(ids[0]): -1.0}),
        RetrainRequest(ids[:0], weights={-5: 2.0}),
        RetrainRequest(ids[:0], labels={int(ids[0]): float("nan")}),
    ):
        with pytest.raises(PlanError, match="cannot be made"):
            collected._add("c", seed, request)


DATA = Blobs(train_size=45).train_data()
RECIPE = Recipe(epochs=3, batch_size=8, learning_rate=0.1, momentum=0.5)


def some_runs() -> list[TrainingRun]:
    runs = [TrainingRun(Randomness(3))]
    for index in range(1, 6):
        kept, generator = torch.ones(45, dtype=torch.bool), torch.Generator().manual_seed(index)
        kept[torch.randperm(45, generator=generator)[: 4 * (index % 3)]] = False
        weights = 3 * torch.rand(45, generator=generator, dtype=torch.float64) if index % 2 else None
        targets = torch.where(torch.rand(45, generator=generator) < 0.2, 1 - DATA.targets, DATA.targets) if index > 2 else None
        runs.append(TrainingRun(Randomness(3), kept, weights=weights, targets=targets))
    return runs


def trained(runs: list[TrainingRun], kind: Any) -> list[torch.Tensor]:
    models = [run.randomness.build(Blobs().model) for run in runs]
    assert train_models(models, get_loss("logistic"), RECIPE, DATA, runs, kind=kind) == [None] * len(runs)
    return [torch.cat([p.detach().flatten() for p in model.parameters()]) for model in models]


def plain(run: TrainingRun) -> torch.Tensor:
    model = run.randomness.build(Blobs().model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    weights = torch.ones(45) if run.weights is None else run.weights.float()
    targets = DATA.targets if run.targets is None else run.targets
    for epoch in (1, 2, 3):
        for batch in torch.split(run.randomness.order(epoch, 45), 8):
            rows = batch if run.kept is None else batch[run.kept[batch]]
            losses = bce(model(DATA.inputs[rows]).squeeze(1), targets[rows], reduction="none")
            optimizer.zero_grad()
            ((weights[rows] * losses).sum() / weights[rows].sum()).backward()
            optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("kind", [StackedPack, MappedPack])
def test_packs_train_the_models_of_a_plain_loop(kind: Any) -> None:
    runs = some_runs()
    together = torch.stack(trained(runs, kind))
    assert torch.allclose(together, torch.stack([plain(run) for run in runs]), rtol=0, atol=2e-6)
    assert torch.allclose(together, torch.stack([trained([run], Solo)[0] for run in runs]), rtol=0, atol=2e-6)
    if kind is StackedPack:
        assert torch.equal(together, torch.stack([trained([run], kind)[0] for run in runs]))
        assert torch.equal(together[1:4], torch.stack(trained(runs[1:4], kind)))


def test_weights_of_one_change_no_bit() -> None:
    run = TrainingRun(Randomness(3), weights=torch.ones(45, dtype=torch.float64), targets=DATA.targets.clone())
    for kind in (Solo, StackedPack):
        assert torch.equal(trained([run], kind)[0], trained([TrainingRun(Randomness(3))], kind)[0])


def test_own_functions_get_labels_and_weights() -> None:
    problem: Any = AsRecipe(train_size=45)
    recipe = replace(RECIPE, momentum=0.0)

    def weighted(model: nn.Module, data: Any, run: Any) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        assert torch.equal(run.weights(data.ids)[:5], own[kept][:5].float())
        assert torch.equal(data.targets, targets[kept])
        for _ in range(3):
            for inputs, given, ids in run.batches(8):
                weights = run.weights(ids)
                optimizer.zero_grad()
                ((weights * bce(model(inputs).squeeze(1), given, reduction="none")).sum() / weights.sum()).backward()
                optimizer.step()

    def unweighted(model: nn.Module, data: Any, run: Any) -> None:
        return

    run = some_runs()[5]
    assert run.weights is not None
    assert run.targets is not None
    own, targets, kept = run.weights, run.targets, run.kept
    assert kept is not None
    loss = get_loss("logistic")
    model = FunctionTrainer(problem, weighted, loss, recipe, DATA, epochs=3).train(run)
    other = run.randomness.build(problem.model)
    train_models([other], loss, recipe, DATA, [run])
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(one, two, rtol=0, atol=1e-6)
    with pytest.raises(ProblemError, match="does not weight its samples"):
        FunctionTrainer(problem, unweighted, loss, recipe, DATA, epochs=3).train(run)


def test_weights_that_an_own_function_ignores_are_refused_before_training(tmp_path: Path) -> None:
    asked = experiment("tests.own_training:AsRecipe", methods=["random"], lds={"subsets": 4, "weight": 0.5})
    with pytest.raises(ProblemError, match="metrics: lds"):
        prepare(asked, Store(str(tmp_path)), [str(ROOT)])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lds": {"weight": 1.0}}, "another weight than 1"),
        ({"loo": {"weight": -0.5}}, "weight"),
        ({"relabel": {"samples": 3, "size": 2}}, "at least two sets"),
        ({"relabel": {"samples": [4, 4]}}, "different ids"),
    ],
)
def test_impossible_settings(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        experiment(**fields)


def test_relabelling_that_the_data_do_not_allow() -> None:
    ridge = oracle.Ridge().train_data()
    for fields, data, error in (
        ({"samples": 41}, ridge, PlanError),
        ({"samples": [1, 2]}, ridge, PlanError),
        ({"samples": 4}, ridge, ProblemError),
        ({"samples": 4, "label": 2.0}, Blobs(num_classes=2)._data(0, 40, 0)._replace(targets=torch.arange(40) % 2), ProblemError),
        ({"samples": 4, "label": 0.5}, Blobs(num_classes=3).train_data(), ProblemError),
    ):
        with pytest.raises(error):
            check_relabelling(experiment(relabel=fields), data, 1 if data is ridge else 2)


def test_targets_of_every_form() -> None:
    wide = DATA._replace(targets=torch.zeros(45, 3))
    change = Change.of(labels={int(DATA.ids[7]): [1, 0.5, 0]})
    found = targets_of(change, wide, 3, "")
    assert found is not None
    assert found[7].tolist() == [1, 0.5, 0]
    assert int((found != 0).sum()) == 2
    weights = weights_of(Change.of([], {int(DATA.ids[9]): 0.25}), DATA)
    assert weights is not None
    assert weights.tolist() == [0.25 if row == 9 else 1.0 for row in range(45)]


def test_the_ledger_keeps_changes_through_a_compaction(tmp_path: Path) -> None:
    ledger = Store(str(tmp_path)).ledger("t")
    outputs = np.ones((4, 1))
    change = Change.of([1], {2: 0.1, 5: 3.0}, {2: [0, 1], 8: 4})
    removal = ledger.write([LedgerRow("b", 0, "same", 0, (1, 2), outputs, 0.5)])
    ledger.write(
        [
            LedgerRow("a", 0, "same", 0, change.removed, outputs, 0.5, change.weights, change.labels),
            LedgerRow("c", 0, "same", 0, (), outputs, 0.5),
        ]
    )
    before = ledger.scan().sort("key").collect()
    expected = {"a": change, "b": Change((1, 2)), "c": Change()}
    assert ledger.changes(["a", "b", "c", "d"]) == expected
    assert before["num_removed"].to_list() == [4, 2, 0]
    assert pl.read_parquet(tmp_path / removal).columns == before.columns
    ledger.compact()
    assert len(ledger.parts()) == 1
    assert ledger.scan().sort("key").collect().equals(before)
    assert ledger.changes(expected) == expected
