"""Importances that are solved for by the primal and by the dual system through a whole run: the same alpha, no gram in one of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import genrep_dist as gr
from genrep_dist.config.keys import Keys
from genrep_dist.core.kernels.base import KernelSizes
from genrep_dist.diagnostics import diagnose
from genrep_dist.errors import PlanError
from genrep_dist.plan import Plan, Shape
from genrep_dist.workflow.base import Rates
from genrep_dist.workflow.estimates import estimate_stages
from genrep_dist.workflow.planning import make_plan
from tests.experiments import ROOT, experiment

METHODS = ["ntk-final/surrogate", "ntk-final/descent", "last-layer-final/surrogate", "last-layer-final/descent"]


def asked(system: str, **fields: Any) -> gr.Experiment:
    """40 samples with three outputs of a network 5-8-3: 120 rows of a gram, 75 parameters."""
    sections = {"surrogate": {"system": system, "tolerance": 1e-9}, "descent": {"system": system}}
    about = {"methods": [*METHODS, "random"], "seeds": 1, "deletion": {"fractions": [0.0, 0.1]}, "name": f"toy-{system}"}
    return experiment(options={"num_classes": 3}, **{**about, **sections, **fields})


def run(store: Path, asked_for: gr.Experiment) -> gr.Run:
    return gr.run(asked_for, store=str(store), serial=True, search_path=[str(ROOT)])


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


@pytest.fixture(scope="module")
def runs(stores: Path) -> dict[str, gr.Run]:
    return {system: run(stores / "store", asked(system)) for system in ("primal", "dual")}


def test_both_systems_give_one_alpha(runs: dict[str, gr.Run]) -> None:
    primal, dual = runs["primal"], runs["dual"]
    assert (primal.plan.needs.grams, len(dual.plan.needs.grams)) == ((), 2)
    for method in METHODS:
        expected = dual.importance(method, 0)
        np.testing.assert_allclose(primal.importance(method, 0), expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    for one, other in zip(primal.certificate_records(), dual.certificate_records(), strict=True):
        assert (one["system"], one["kernel"], "system" in other) == ("primal", other["kernel"], False)
        assert one["efficiency_gap"] == pytest.approx(other["efficiency_gap"], rel=1e-3)
    residuals = [finding for finding in diagnose(primal) if finding.name == "surrogate residual"]
    assert [finding.colour for finding in residuals] == ["green", "green"]


def test_other_points_are_explained(runs: dict[str, gr.Run]) -> None:
    for method in METHODS:
        stored = runs["primal"].attributions(method, 0)
        phi = runs["primal"].explain(method, seed=0, test_ids=runs["primal"].test_ids(0).tolist())
        np.testing.assert_allclose(phi, stored, rtol=0, atol=1e-5 * np.abs(stored).max())


def test_neither_budget_nor_storing_changes_the_result(runs: dict[str, gr.Run], stores: Path) -> None:
    """Features that are held, read for each product, and computed for each product."""
    small = 2 * 4 * 120 * 75 - 2  # half of it is a byte less than what holding takes
    plans = []
    for features in ("auto", "stream"):
        found = run(
            stores / features, asked("primal", resources={"memory_budget": 8 * small, "features": features}, projection={"dim": 64})
        )
        plans.append(found.plan)
        held = run(stores / "store", asked("primal", name="held", projection={"dim": 64}))
        for method in METHODS:
            np.testing.assert_allclose(found.importance(method, 0), held.importance(method, 0), rtol=0, atol=1e-6)
    assert plans[1].stored_features == ()


NTK = KernelSizes(held=900, products=900, stored_bytes=3600, factored=True, gram_rows=10, dimension=7850)
SHAPE = Shape(num_train=5000, num_test=500, num_outputs=10, num_parameters=7850, kernels={"ntk": NTK})


def laid_out(system: str, shape: Shape = SHAPE, **fields: Any) -> Plan:
    about = experiment(methods=["ntk-final/surrogate", "random"], surrogate={"system": system}, **fields)
    recipe = {"epochs": 1, "precision": "full"}
    return make_plan(Keys(about, "data", "problem", recipe, recipe, shape.num_test), shape)


def stage(plan: Plan, name: str = "importances") -> Any:
    return next(one for one in plan.stages if one.name == name)


def test_the_plan_shows_the_choice_and_its_costs() -> None:
    plans = {system: laid_out(system) for system in ("auto", "dual", "primal")}
    assert "system" not in stage(plans["dual"]).what
    for system in ("auto", "primal"):
        what = stage(plans[system]).what
        assert "primal system: features of 7,850 numbers, read for each product, instead of a gram of 50,000 rows" in what
        assert plans[system].stored_features == (("ntk", 1),)
    assert stage(plans["dual"], "kernels").bytes_written > 5 * 10**9 > 10 * stage(plans["auto"], "kernels").bytes_written
    seconds = [estimate_stages(plans[system], Rates(1, 1, 1e3, 1e10), 1, {})["importances"] for system in ("auto", "dual")]
    assert seconds[0] < seconds[1]
    held = laid_out("auto", resources={"memory_budget": "8GiB"})
    assert "held in memory" in stage(held).what
    assert held.stored_features == ()
    assert 4 * 50_000 * 7850 < stage(held).peak_bytes < 8 * 2**30
    assert stage(plans["auto"]).peak_bytes < 2**30


def test_the_choice_depends_on_sizes_alone() -> None:
    for dimension, chosen in ((25_000, "primal"), (25_001, "dual"), (0, "dual")):
        plan = laid_out("auto", replace(SHAPE, kernels={"ntk": replace(NTK, dimension=dimension)}))
        assert f"{chosen} system" in stage(plan).what
        assert bool(plan.needs.grams) == (chosen == "dual")


def test_the_default_changes_no_key_and_a_named_system_does() -> None:
    keys = {system: laid_out(system).keys for system in ("dual", "auto", "primal")}
    assert len({key.solved("surrogate", 0, "ntk", 1) for key in keys.values()}) == 3
    assert "system" not in str(keys["dual"].experiment.result_fields())


def test_a_kernel_without_features_has_no_primal_system(tmp_path: Path) -> None:
    user = {"kernels": {"mine": {"class": "tests.test_explain:Inner"}}, "methods": ["mine-final/surrogate", "random"]}
    with pytest.raises(PlanError, match=r"surrogate.system: auto"):
        run(tmp_path, asked("primal", **user))
    found = run(tmp_path, asked("auto", **user))
    assert len(found.plan.needs.grams) == 1
