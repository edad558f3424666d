from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from pydantic import BaseModel, create_model

from genrep_dist.config import Experiment, load_experiment
from genrep_dist.config.digests import json_digest, non_default_fields
from genrep_dist.config.keys import NUMBERS_VERSION, Keys, sample_test_positions
from genrep_dist.core.kernels.base import KernelSizes
from genrep_dist.errors import PlanError
from genrep_dist.plan import Plan, Shape
from genrep_dist.problems.protocol import Recipe
from genrep_dist.units import RowsUnit
from genrep_dist.workflow.gradients import feature_passes
from genrep_dist.workflow.gram_tiles import reads
from genrep_dist.workflow.kernels import gram_units
from genrep_dist.workflow.planning import make_plan, power_warnings
from genrep_dist.workflow.stages import artifacts_of

NTK = KernelSizes(held=5000, products=5000, stored_bytes=4 * 5000, factored=True)
LAST_LAYER = KernelSizes(held=33, products=33, stored_bytes=4 * 33, gradient_passes=0.2)
SHAPE = Shape(num_train=1000, num_test=200, num_outputs=1, num_parameters=5000, kernels={"ntk": NTK, "last-layer": LAST_LAYER})
RECIPE = {
    "epochs": 20,
    "batch_size": 32,
    "learning_rate": 0.1,
    "schedule": "constant",
    "momentum": 0.0,
    "weight_decay": 0.0,
    "precision": "full",
}


METHODS = (
    *("ntk-final/tracking", "ntk-final/target", "ntk-final/surrogate", "ntk-initial/tracking", "ntk-middle/tracking"),
    *("last-layer-final/tracking", "tracincp", "random"),
)


def keys(*overrides: str, recipe: dict[str, Any] = RECIPE, experiment: str = "demo") -> Keys:
    declared = load_experiment(experiment, [f"methods=[{', '.join(METHODS)}]", *overrides])
    return Keys(declared, "data", "problem", recipe, recipe, SHAPE.num_test)


def shape_with(ntk: KernelSizes, **changes: Any) -> Shape:
    return replace(SHAPE, kernels={**SHAPE.kernels, "ntk": ntk}, **changes)


def plan(*overrides: str, shape: Shape = SHAPE) -> Plan:
    return make_plan(keys(*overrides), shape)


def everything(k: Keys) -> set[str]:
    """All keys of seed 0."""
    methods = k.experiment.parsed_methods
    return {
        k.train(0),
        k.features(0, "ntk", 20),
        k.kernel(0, "ntk", 20),
        k.gram(0, "ntk", 20),
        k.solved("surrogate", 0, "ntk", 20),
        k.retraining(0, [1, 2], "same"),
        *(k.attribution(0, method) for method in methods),
    }


@pytest.mark.parametrize(
    "override", ["resources.workers=9", "resources.memory_budget=1GiB", "resources.features=store", "tracking.uri=x", "name=other"]
)
def test_where_and_how_work_runs_changes_no_key(override: str) -> None:
    assert everything(keys()) == everything(keys(override))


@pytest.mark.parametrize("change", [{"learning_rate": 0.2}, {"epochs": 21}, {"momentum": 0.5}, {"schedule": "cosine"}])
def test_the_recipe_changes_every_key(change: dict[str, Any]) -> None:
    assert not everything(keys()) & everything(keys(recipe=RECIPE | change))


def test_data_and_problem_change_every_key() -> None:
    assert not everything(keys()) & everything(replace(keys(), data="other"))
    assert not everything(keys()) & everything(replace(keys(), problem="other"))


def test_what_a_field_changes_and_what_it_leaves() -> None:
    plain, other = keys(), keys("surrogate.lambda=0.5")
    assert plain.gram(0, "ntk", 20) == other.gram(0, "ntk", 20)
    assert plain.solved("surrogate", 0, "ntk", 20) != other.solved("surrogate", 0, "ntk", 20)
    fractions = keys("deletion.fractions=[0.0, 0.5]")
    assert everything(plain) == everything(fractions)
    assert plain.results != fractions.results
    points = keys("test_points=4")
    assert plain.train(0) == points.train(0)
    assert plain.kernel(0, "ntk", 20) != points.kernel(0, "ntk", 20)


def test_nothing_removed_is_the_original_whatever_the_policy() -> None:
    k = keys()
    assert k.retraining(3, [], "fresh") == k.retraining(3, [], "same", replicate=2)
    assert k.retraining(3, [1], "fresh") != k.retraining(3, [1], "same")
    assert k.retraining(3, [2, 1], "same") == k.retraining(3, [1, 2], "same")


def test_test_points_are_drawn_by_seed() -> None:
    assert sample_test_positions(1, 200, 10) == sample_test_positions(1, 200, 10)
    assert sample_test_positions(1, 200, 10) != sample_test_positions(2, 200, 10)
    assert len(set(sample_test_positions(1, 10, 10))) == 10


def test_checkpoints_of_tracincp() -> None:
    assert keys().tracincp_epochs() == [0, 5, 10, 15, 20]
    assert keys("tracincp.checkpoints=1").tracincp_epochs() == [20]
    assert keys("tracincp.checkpoints=[3, 8]").tracincp_epochs() == [3, 8]
    assert keys("tracincp.checkpoints=[3, 8]").saved_epochs() == [0, 3, 8, 10, 20]


def test_only_what_a_gram_needs_is_stored() -> None:
    assert plan().stored_features == (("ntk", 20),)
    assert plan("methods=[ntk-final/tracking]").stored_features == ()
    assert plan("resources.features=stream").stored_features == ()
    assert ("ntk", 0) in plan("resources.features=store").stored_features


def test_a_gpu_computes_anew_what_a_disk_would_take_longer_to_keep() -> None:
    """By the plan's guesses: 1e13 operations a second, and 1e9 bytes."""
    heavy = shape_with(replace(NTK, stored_bytes=20_000), forward_flop=10**9, on_gpu=True)
    light = replace(heavy, forward_flop=10**6)
    assert plan(shape=heavy).stored_features == (("ntk", 20),)
    assert plan(shape=light).stored_features == ()
    assert plan("resources.features=store", shape=light).stored_features != ()
    assert plan("resources.features=stream", shape=heavy).stored_features == ()
    # A CPU, and a network whose operations are not known.
    for cautious in (replace(light, on_gpu=False), replace(light, forward_flop=0)):
        assert plan(shape=cautious).stored_features == (("ntk", 20),)
    assert "gradients" not in {stage.name for stage in plan(shape=light).stages}


@pytest.mark.parametrize("budget", ["1GiB", "6MiB", "2MiB"])
def test_passes_over_features_are_counted_as_tiles_read_them(budget: str) -> None:
    laid_out = plan(f"resources.memory_budget={budget}", "methods=[ntk-final/surrogate]")
    read = 0
    for unit in gram_units(laid_out, 0, "ntk", 20):
        rows, across = ((at * unit.tile, min((at + 1) * unit.tile, 1000)) for at in (unit.row, unit.column))
        read += sum(stop - start for start, stop in reads(rows, across, unit.block))
    assert feature_passes(laid_out, "ntk", 20) == pytest.approx(1 + read / 1000, rel=0.1)


def test_units_cover_every_row_and_the_upper_half_of_the_tiles() -> None:
    laid_out = plan("resources.memory_budget=4MiB")
    features = next(artifacts_of(laid_out, "gradients"))
    rows = [row for unit in features.units if isinstance(unit, RowsUnit) for row in range(unit.start, unit.stop)]
    assert rows == list(range(1000))
    tiles = [(unit.row, unit.column) for unit in gram_units(laid_out, 0, "ntk", 20)]
    count = max(row for row, _ in tiles) + 1
    assert count > 1
    assert sorted(tiles) == [(i, j) for i in range(count) for j in range(i, count)]


def test_retrainings_are_counted_as_requested_and_as_distinct() -> None:
    laid_out = plan("seeds=2", "test_points=3", "methods=[ntk-final/tracking, random]", "deletion.signs=[negative, positive]")
    assert laid_out.retrainings_requested == 2 * 3 * 2 * 2 * 6
    assert laid_out.retrainings_at_most == 2 * 3 * 2 * 2 * 5


def test_bytes_of_a_stored_gram_and_features() -> None:
    stages = {stage.name: stage for stage in plan("seeds=2").stages}
    assert stages["gradients"].bytes_written == 2 * 1000 * 5000 * 4
    assert stages["kernels"].bytes_written > 2 * 1000 * 1000 * 4 // 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("test_points=201", r"more test points[\s\S]*at most 200[\s\S]*201"),
        ("deletion.fractions=[0.9999]", r"whole training set[\s\S]*1000 of 1000"),
        ("target.output=1", r"not an output of the model[\s\S]*0 to 0"),
        ("methods=[ntk-epoch21/tracking]", r"beyond the end of training[\s\S]*epochs 0 to 20[\s\S]*epoch 21"),
        ("tracincp.checkpoints=[0, 40]", r"tracincp\.checkpoints[\s\S]*epoch 40"),
        ("resources.memory_budget=100kB", r"too small for one training sample's features[\s\S]*at least [0-9,]+ bytes[\s\S]*100,000 bytes"),
    ],
)
def test_the_impossible_is_refused_before_the_first_task(override: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        plan(override)


def test_experiments_resolve_to_plain_data() -> None:
    experiment = load_experiment("demo")
    assert Experiment.model_validate(experiment.resolved()) == experiment


def test_a_plan_fits_the_budget_that_it_was_given(tmp_path: Path) -> None:
    for budget in (2, 8, 64, 1024):
        laid_out = plan(f"resources.memory_budget={budget}MiB")
        # The surrogate's landmarks must not depend on the budget, or else its numbers would: 4 MB for 1,000 rows.
        stages = [stage for stage in laid_out.stages if budget > 8 or stage.name != "importances"]
        assert all(stage.peak_bytes <= budget * 2**20 for stage in stages), budget


def test_factored_features_are_planned_by_what_they_take() -> None:
    large = replace(NTK, held=1_000_000, products=1_000_000, stored_bytes=4_000_000, factored=False)
    dense = shape_with(large, num_parameters=1_000_000)
    small = KernelSizes(held=30_000, expanded=100_000, products=120_000, stored_bytes=40_000, factored=True)
    factored = shape_with(small, num_parameters=1_000_000)
    asked = ("seeds=1", "resources.memory_budget=512MiB")
    rows, slim = plan(*asked, shape=dense), plan(*asked, shape=factored)
    assert {stage.name: stage for stage in slim.stages}["gradients"].bytes_written == 1000 * 40_000
    assert {stage.name: stage for stage in rows.stages}["gradients"].bytes_written == 1000 * 4_000_000
    assert slim.block_rows["ntk"] > 10 * rows.block_rows["ntk"]
    for stage in slim.stages:
        if stage.name in ("gradients", "kernels"):
            assert stage.peak_bytes <= 512 * 2**20
    # A true Hessian is multiplied with whole Jacobians: their blocks are as small as ever.
    assert slim.dense_rows <= 512 * 2**20 // 2 // (3 * 4 * 1_000_000)
    assert slim.keys.gram(0, "ntk", 20) == rows.keys.gram(0, "ntk", 20)


def test_layers_that_need_more_than_one_backward_pass_are_named() -> None:
    slow = shape_with(replace(NTK, slow_layers=("body (LSTM): one by one, as LSTM is not among the layers that are known",)))
    assert any("body (LSTM)" in warning for warning in plan(shape=slow).warnings)
    assert not any("body (LSTM)" in warning for warning in plan().warnings)


def test_a_projection_is_in_every_key_that_it_changes_and_in_no_other() -> None:
    plain, projected = keys(), keys("projection.dim=64")
    for name in ("features", "kernel", "gram"):
        assert getattr(plain, name)(0, "ntk", 20) != getattr(projected, name)(0, "ntk", 20)
        assert getattr(plain, name)(0, "last-layer", 20) == getattr(projected, name)(0, "last-layer", 20)
    assert plain.kernel(0, "influence", 20) != projected.kernel(0, "influence", 20)
    assert plain.train(0) == projected.train(0)
    assert projected.features(0, "ntk", 20) != keys("projection.dim=64", "projection.kind=sparse").features(0, "ntk", 20)
    assert any("projected to 64" in warning for warning in plan("projection.dim=64").warnings)


def test_a_new_field_with_a_neutral_default_changes_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """In every section of an experiment, in the experiment itself, and in a recipe."""
    before, question = everything(keys()), keys().results
    sections = sections_of(Experiment)
    assert len(sections) > 10
    for section in sections:
        extended = create_model(f"{section.__name__}Extended", __base__=section, dummy=(int, 7))
        monkeypatch.setattr(section, "model_fields", extended.model_fields, raising=False)
        monkeypatch.setattr(section, "dummy", 7, raising=False)
    assert "dummy" in Experiment.model_fields
    assert everything(keys()) == before
    assert keys().results == question
    monkeypatch.setattr(Experiment, "dummy", 8)
    assert keys().results != question, "the test does not reach the digests"


def sections_of(model: type[BaseModel]) -> set[type[BaseModel]]:
    """A pydantic model and all those that stand in its fields."""
    found = {model}
    for field in model.model_fields.values():
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                found |= sections_of(part)
    return found


def test_a_new_recipe_field_with_a_neutral_default_changes_no_key() -> None:
    @dataclass(frozen=True)
    class Longer(Recipe):
        dummy: int = 7

    plain, longer = Recipe(20, 32, 0.1), Longer(20, 32, 0.1)
    assert non_default_fields(plain) == non_default_fields(longer) == {"epochs": 20, "batch_size": 32, "learning_rate": 0.1}
    assert non_default_fields(Longer(20, 32, 0.1, dummy=8))["dummy"] == 8


@pytest.mark.parametrize("removed", [(), (7,), (30, 2, 11), list(np.arange(5))])
@pytest.mark.parametrize(("policy", "replicate"), [("same", 0), ("fresh", 3)])
def test_the_key_of_a_retraining_is_a_digest_of_canonical_json(removed: Sequence[int], policy: str, replicate: int) -> None:
    found = keys()
    plain = [policy, replicate] if len(removed) else ["same", 0]
    expected = json_digest([NUMBERS_VERSION, "retraining", found.training, 4, *plain, sorted(map(int, removed))])
    assert found.retraining(4, removed, policy, replicate) == expected


def test_two_names_of_one_method_are_told() -> None:
    def told(*methods: str) -> list[str]:
        return [text for text in plan(f"methods=[{','.join(methods)}]", "blocks={}").warnings if "names of one method" in text]

    (warning,) = told("graddot", "tracincp", "ntk-final/target", "random")
    assert warning.startswith("graddot and ntk-final/target are names of one method")
    assert told("graddot", "tracincp", "ntk-final/tracking", "random") == []


def test_seeds_that_are_too_few_for_any_p_value_are_told_with_the_number_that_would_do() -> None:
    def warning(*overrides: str) -> str:
        return "".join(power_warnings(plan(*overrides).experiment))

    # Seven methods against random: 7 * 2 / 2^8 is 0.055.
    assert "the smallest with 8 seeds and 7 comparisons is 0.055" in warning("seeds=8")
    assert "with 9 seeds one can" in warning("seeds=8")
    assert warning("seeds=9") == ""
    assert "one seed gives no p-value" in warning("seeds=1")
    assert "10 seeds one can" in warning("seeds=9", "baseline=tracincp"), "14 comparisons"
    assert warning("seeds=2", "methods=[tracincp]") == "", "nothing is compared"
    fields = {name: value for name, value in keys().experiment.resolved().items() if name != "seeds"}
    growing = Experiment.model_validate({**fields, "stop": {"half_width": 0.1, "min_seeds": 2, "max_seeds": 8}})
    assert any("the smallest with 8 seeds" in text for text in power_warnings(growing))
