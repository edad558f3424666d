"""Remaining rows that are divided into new batches, against a plain torch loop over the subset."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genrep_dist.core.losses import get_loss
from genrep_dist.errors import PlanError, ProblemError
from genrep_dist.problems.protocol import Recipe
from genrep_dist.runner.determinism import with_fresh_retrainings
from genrep_dist.training.function_trainer import FunctionTrainer
from genrep_dist.training.loop import TrainingRun, train_models
from genrep_dist.training.packs.base import Pack, Solo
from genrep_dist.training.packs.mapped import MappedPack
from genrep_dist.training.packs.stacked import StackedPack
from genrep_dist.training.randomness import Randomness
from genrep_dist.units import Retraining
from genrep_dist.workflow.recipes import check_rebatching
from genrep_dist.workflow.retrain import _packs
from genrep_dist.workflow.single_rows import check_batches
from tests.experiments import experiment
from tests.own_training import AsRecipe, bce
from tests.toys import Blobs

PROBLEM = Blobs(train_size=45)
DATA = PROBLEM.train_data()
RECIPE = Recipe(epochs=3, batch_size=8, learning_rate=0.1, schedule="cosine", momentum=0.5)


def run_without(removed: Sequence[int], policy: str = "rebatch") -> TrainingRun:
    kept = torch.ones(len(DATA.ids), dtype=torch.bool)
    kept[list(removed)] = False
    randomness = Randomness.for_retraining(3, policy, DATA.ids[~kept].tolist())
    return TrainingRun(randomness, kept, rebatch=True)


def plain(run: TrainingRun, *, drop_last: bool) -> tuple[Tensor, int]:
    """Parameters after training on the subset by torch's optimizer and schedule, and the number of steps."""
    assert run.kept is not None
    model = run.randomness.build(PROBLEM.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    subset = set(torch.nonzero(run.kept).flatten().tolist())
    epochs = [[i for i in run.randomness.order(epoch, 45).tolist() if i in subset] for epoch in (1, 2, 3)]
    batches = [rows[i : i + 8] for rows in epochs for i in range(0, len(rows), 8)]
    batches = [rows for rows in batches if len(rows) == 8 or not drop_last]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    for rows in batches:
        optimizer.zero_grad()
        bce(model(DATA.inputs[rows]).squeeze(1), DATA.targets[rows]).backward()
        optimizer.step()
        schedule.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()]), len(batches)


def trained(runs: Sequence[TrainingRun], kind: type[Pack] = Solo, recipe: Recipe = RECIPE) -> list[Tensor]:
    models = [run.randomness.build(PROBLEM.model) for run in runs]
    assert train_models(models, get_loss("logistic"), recipe, DATA, runs, kind=kind) == [None] * len(runs)
    return [torch.cat([p.detach().flatten() for p in model.parameters()]) for model in models]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(("removed", "whole", "steps"), [([7], 5, 6), (range(22), 2, 3), (range(3, 16), 4, 4), ([], 5, 6)])
def test_the_loop_is_a_plain_one_over_the_subset(removed: Sequence[int], whole: int, steps: int, drop_last: bool) -> None:
    for policy in ("rebatch", "fresh-rebatch"):
        run = run_without(removed, policy)
        expected, count = plain(run, drop_last=drop_last)
        assert count == 3 * (whole if drop_last else steps)
        assert torch.allclose(trained([run], recipe=replace(RECIPE, drop_last=drop_last))[0], expected, rtol=0, atol=1e-6)


def test_with_nothing_removed_it_is_the_original_to_the_bit() -> None:
    assert torch.equal(trained([run_without([])])[0], trained([TrainingRun(Randomness(3))])[0])


@pytest.mark.parametrize("kind", [StackedPack, MappedPack])
def test_packs_of_all_sizes_train_the_same_models(kind: type[Pack]) -> None:
    runs = [run_without(torch.randperm(45, generator=torch.Generator().manual_seed(i))[:14].tolist()) for i in range(5)]
    together = trained(runs, kind)
    for run, found in zip(runs, together, strict=True):
        assert torch.allclose(found, plain(run, drop_last=False)[0], rtol=0, atol=1e-6)
    if kind is StackedPack:
        assert torch.equal(torch.stack(together), torch.stack([trained([run], kind)[0] for run in runs]))


def test_models_that_take_other_steps_train_in_other_packs() -> None:
    rows = [Retraining(str(i), 0, "rebatch", tuple(range(i % 3 + 1))) for i in range(11)] + [Retraining("f", 0, "fresh", (1, 2, 3, 4))]
    packs = list(_packs(rows, 3))
    assert sorted(row.key for pack in packs for row in pack) == sorted(row.key for row in rows)
    assert all(len({(row.policy, len(row.removed)) for row in pack}) == 1 and len(pack) <= 3 for pack in packs)


@pytest.mark.parametrize("drop_last", [False, True])
def test_own_functions_get_the_batches_of_the_loop(drop_last: bool) -> None:
    problem: Any = AsRecipe(train_size=45)
    recipe = Recipe(epochs=3, batch_size=8, learning_rate=0.1, drop_last=drop_last)
    sizes = []

    def function(model: nn.Module, data: Any, run: Any) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            for inputs, targets, _ids in run.batches(8, drop_last=drop_last):
                sizes.append(len(targets))
                optimizer.zero_grad()
                bce(model(inputs).squeeze(1), targets).backward()
                optimizer.step()

    trainer = FunctionTrainer(problem, function, get_loss("logistic"), recipe, DATA, epochs=3)
    run = run_without(range(5, 25))
    found = torch.cat([p.detach().flatten() for p in trainer.train(run).parameters()])
    assert sizes == 3 * ([8] * 3 if drop_last else [8, 8, 8, 1])
    assert torch.allclose(found, trained([run], recipe=recipe)[0], rtol=0, atol=1e-6)
    sizes.clear()
    trainer.train(replace(run, rebatch=False))
    assert len(sizes) == 3 * (5 if drop_last else 6)


def test_less_than_a_batch_is_refused_where_it_would_be_dropped() -> None:
    recipe = replace(RECIPE, drop_last=True)
    with pytest.raises(ProblemError, match="no batch is left"):
        trained([run_without(range(38))], recipe=recipe)
    for field in ({"lds": {"subsets": 4, "fraction": 0.1, "retrain": "rebatch"}}, {"deletion": {"counts": [0, 38], "retrain": "rebatch"}}):
        with pytest.raises(PlanError, match=rf"{next(iter(field))}\.retrain"):
            check_rebatching(plan(**field), recipe)
    check_rebatching(plan(lds={"subsets": 4, "fraction": 0.2, "retrain": "rebatch"}), recipe)
    check_rebatching(plan(lds={"subsets": 4, "fraction": 0.1}), recipe)


def test_batches_of_one_row_are_foreseen() -> None:
    fault = "batch normalization fails"
    check_batches(plan(deletion={"counts": [0, 1, 2], "retrain": "rebatch"}), RECIPE, fault)
    check_batches(plan(deletion={"counts": [0, 4], "retrain": "rebatch"}), replace(RECIPE, drop_last=True), fault)
    with pytest.raises(PlanError, match="batch of one row"):
        check_batches(plan(deletion={"counts": [0, 1, 4, 6], "retrain": "rebatch"}), RECIPE, fault)


def test_single_rows_are_expected_by_the_size_of_each_removal() -> None:
    """Small removals leave no single row: they do not count as the large one does."""

    def expected(counts: list[int]) -> float:
        with pytest.raises(PlanError) as refused:
            check_batches(plan(deletion={"counts": counts}), RECIPE, "batch normalization fails")
        found = re.search(r"at most about ([0-9.e-]+) batches of one row", str(refused.value))
        assert found is not None
        return float(found[1])

    large = expected([0, 20])
    assert expected([0, 1, 2, 20]) == pytest.approx(large, rel=0.05)


def test_random_trainings_are_judged_with_fresh_numbers() -> None:
    declared = experiment(deletion={"counts": [0, 1], "retrain": "rebatch"}, loo={"samples": 4}, lds={"retrain": "fresh-rebatch"})
    found = with_fresh_retrainings(declared)
    assert (found.deletion.retrain, found.loo.retrain if found.loo else None, found.lds.retrain if found.lds else None) == (
        "fresh-rebatch",
        "fresh",
        "fresh-rebatch",
    )


def plan(**fields: Any) -> Any:
    """What the checks read of a plan."""
    declared = experiment(**({"deletion": {"counts": [0]}} | fields))

    class Sizes:
        num_train = 45

    class Small:
        experiment, shape, most_removed = declared, Sizes, 0

    return Small
