"""Influence by the primal and by the dual system through a whole run: the same kernel, the same self-influence, no gram in one of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import genrep_dist as gr
from genrep_dist.config.ekfac import EkfacSection
from genrep_dist.config.keys import Keys
from genrep_dist.config.sections import InfluenceSection
from genrep_dist.core.kernels import KERNELS
from genrep_dist.core.kernels.base import DerivedKernel, KernelSizes
from genrep_dist.errors import PlanError
from genrep_dist.plan import Plan, Shape
from genrep_dist.store import Store
from genrep_dist.workflow import kernel_sizes
from genrep_dist.workflow.base import Rates
from genrep_dist.workflow.estimates import estimate_stages
from genrep_dist.workflow.planning import make_plan
from genrep_dist.workflow.room import check_room
from tests.experiments import ROOT, experiment

SETTINGS: dict[str, dict[str, Any]] = {
    "ggn": {},
    "last-layer": {"influence": {"curvature": "last-layer"}},
    "projected": {"projection": {"dim": 16}},
}
WIDTHS = {"ggn": 75, "last-layer": 27, "projected": 16}
"""Numbers of a feature vector of a network 5-8-3. There are 40 samples with three outputs each."""


def asked(setting: str, system: str) -> gr.Experiment:
    section = {"damping": 1e-3, "damping_unit": "mean-eigenvalue", **SETTINGS[setting].get("influence", {}), "system": system}
    about = {
        "name": f"{setting}-{system}",
        "problem": {"name": "tests.toys:Blobs", "options": {"num_classes": 3}, "flip_labels": {"share": 0.1}},
        "seeds": 1,
        "test_points": 2,
        "methods": ["influence-function", "random"],
        "deletion": {"fractions": [0.0, 0.1]},
    }
    return gr.Experiment.model_validate({**about, **SETTINGS[setting], "influence": section})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], gr.Run]:
    store = str(tmp_path_factory.mktemp("store"))
    return {
        (setting, system): gr.run(asked(setting, system), store=store, serial=True, search_path=[str(ROOT)])
        for setting in SETTINGS
        for system in ("auto", "dual")
    }


@pytest.mark.parametrize("setting", list(SETTINGS))
def test_both_systems_give_one_kernel(runs: dict[tuple[str, str], gr.Run], setting: str) -> None:
    primal, dual = runs[setting, "auto"], runs[setting, "dual"]
    assert (primal.plan.needs.grams, primal.plan.needs.cross, primal.plan.stored_features) == ((), (), ())
    assert len(dual.plan.needs.grams) == 1
    (one,), (other,) = primal.certificate_records(), dual.certificate_records()
    assert one["residual"] < 1e-10
    assert one["damping"] == pytest.approx(other["damping"], rel=1e-5)
    assert (one["system"], one["size"], other["system"]) == ("primal", WIDTHS[setting], "dual")
    expected = dual.kernel("influence", "final", 0)
    np.testing.assert_allclose(primal.kernel("influence", "final", 0), expected, rtol=0, atol=2e-4 * np.abs(expected).max())
    diagonals = []
    for run in (primal, dual):
        key = run.plan.keys.diagonal(0, "influence", 4)
        diagonals.append(run.store.artifact("diagonal", key).read("diagonal"))
    np.testing.assert_allclose(diagonals[0], diagonals[1], rtol=0, atol=2e-4 * np.abs(diagonals[1]).max())


def test_the_choice_is_shown_and_other_points_are_explained_by_it(runs: dict[tuple[str, str], gr.Run]) -> None:
    for setting, width in WIDTHS.items():
        texts = {system: _stage(runs[setting, system].plan).what for system in ("auto", "dual")}
        assert f"primal system of {width} rows, which takes less memory than the dual one of 120" in texts["auto"]
        assert texts["dual"].endswith("dual system of 120 rows")
        run = runs[setting, "auto"]
        phi = run.explain("influence-function", seed=0, test_ids=run.test_ids(0).tolist())
        stored = run.attributions("influence-function", 0)
        np.testing.assert_allclose(phi, stored, rtol=0, atol=1e-5 * np.abs(stored).max())


NTK = KernelSizes(held=900, products=900, stored_bytes=3600, factored=True, gram_rows=10, dimension=7850)
SHAPE = Shape(num_train=5000, num_test=500, num_outputs=10, num_parameters=7850, kernels={"ntk": NTK})


def laid_out(system: str = "auto", budget: str = "2GiB", shape: Shape = SHAPE) -> Plan:
    about = experiment(methods=["influence-function", "random"], influence={"system": system}, resources={"memory_budget": budget})
    recipe = {"epochs": 1, "precision": "full"}
    return make_plan(Keys(about, "data", "problem", recipe, recipe, shape.num_test), shape)


def _stage(plan: Plan) -> Any:
    return next(stage for stage in plan.stages if stage.name == "influence")


def refusal(plan: Plan, store: Store) -> PlanError:
    with pytest.raises(PlanError, match=r"memory budget is too small[\s\S]*at least [0-9,]+ bytes[\s\S]*[0-9,]+ bytes") as found:
        check_room(plan, store, lambda _: 1, 2**50)
    return found.value


def test_ten_classes_of_784_pixels_fit_2_gib_by_the_primal_system_alone(tmp_path: Any) -> None:
    store, primal = Store(str(tmp_path)), laid_out()
    assert 8 * 7850**2 < _stage(primal).peak_bytes < 1.2 * 2**30
    check_room(primal, store, lambda _: 1, 2**33)
    assert "influence.system: primal" in refusal(laid_out("dual"), store).remedy
    seconds = [estimate_stages(plan, Rates(1, 1, 1e3, 1e10), 1, {})["influence"] for plan in (primal, laid_out("dual"))]
    assert 10 < seconds[0] < seconds[1] / 20


def test_the_choice_depends_on_sizes_alone(tmp_path: Any) -> None:
    assert "primal" in _stage(laid_out(budget="256MiB")).what
    store = Store(str(tmp_path))
    assert "influence.curvature: hessian" in refusal(laid_out(budget="256MiB"), store).remedy
    assert "influence.system" not in refusal(laid_out(budget="256MiB"), store).remedy
    for dimension, chosen in ((50_000, "primal"), (75_000, "primal"), (90_000, "dual"), (0, "dual")):
        sizes = replace(NTK, dimension=dimension)
        assert ("primal system of" in _stage(laid_out(shape=replace(SHAPE, kernels={"ntk": sizes}))).what) == (chosen == "primal")
    # A larger system that was named is planned, and refused with the smaller one as a remedy.
    wide = replace(SHAPE, num_train=200, kernels={"ntk": replace(NTK, dimension=95_000)})
    assert "influence.system: dual" in refusal(laid_out("primal", shape=wide), store).remedy


def test_the_default_changes_no_key_and_a_named_system_does() -> None:
    keys = [laid_out(system).keys for system in ("auto", "dual", "primal")]
    assert len({key.kernel(0, "influence", 1) for key in keys}) == 3
    assert "system" not in str(keys[0].experiment.result_fields())


def test_a_kernel_that_other_methods_need_stays_planned() -> None:
    assert laid_out().needs.cross == laid_out().needs.grams == ()
    both = experiment(methods=["influence-function", "ntk-final/surrogate", "random"])
    recipe = {"epochs": 1, "precision": "full"}
    found = make_plan(Keys(both, "data", "problem", recipe, recipe, 500), SHAPE).needs
    assert (found.cross, found.grams) == ((("ntk", 1),), (("ntk", 1),))


@pytest.mark.parametrize("budget", ["512MiB", "2GiB", "4GiB"])
def test_a_true_hessian_of_ten_outputs_fits_the_budget(tmp_path: Any, budget: str) -> None:
    """Whole Jacobians are cut to the budget. Products, which hold activations only, take passes as long as ever."""
    about = experiment(
        methods=["influence-function", "random"],
        influence={"curvature": "hessian", "damping": 0.01, "max_iterations": 10},
        resources={"memory_budget": budget},
    )
    recipe, shape = {"epochs": 1, "precision": "full"}, replace(SHAPE, num_parameters=109_386, backward_bytes=10_000, kernels={})
    plan = make_plan(Keys(about, "data", "problem", recipe, recipe, 500), shape)
    check_room(plan, Store(str(tmp_path)), lambda _: 1, 2**34)
    assert _stage(plan).peak_bytes <= plan.budget_bytes
    assert 1 <= plan.dense_rows <= 100 < plan.product_rows
    # Where whole Jacobians fit, both are one number.
    fitting = make_plan(plan.keys, replace(shape, num_parameters=1000))
    assert fitting.dense_rows == fitting.product_rows == 512


@pytest.mark.parametrize("num_classes", [2, 3])
def test_derived_kernels_are_the_same_bytes_however_their_rows_are_divided(
    num_classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = ["influence-function", "trak", "ekfac", "datainf", "relatif", "random"]
    fields: dict[str, Any] = {
        "name": "divided",
        "problem": {"name": "tests.toys:Blobs", "options": {"num_classes": num_classes}},
        "seeds": 1,
        "test_points": 3,
        "target": {"output": num_classes - 2},
        "methods": methods,
        "influence": {"system": "primal"},
        "deletion": {"counts": [0, 2]},
        "attributions": {"top": 6},
    }
    runs = []
    for numbers in (kernel_sizes.CHUNK_NUMEL, 7 * 3 * (1 if num_classes == 2 else 3)):
        monkeypatch.setattr(kernel_sizes, "CHUNK_NUMEL", numbers)
        store = str(tmp_path / str(numbers))
        runs.append(gr.run(gr.Experiment.model_validate(fields), store=store, serial=True, search_path=[str(ROOT)]))
    whole, divided = runs
    keys = divided.plan.keys
    for name in methods[:-1]:
        kernel = divided.plan.experiment.method(name).kernel
        readers = [one.store.artifact("kernel", keys.kernel(0, kernel, 4)).reader("kernel") for one in runs]
        assert [one.chunks[0] for one in readers] == [40, 7]
        np.testing.assert_array_equal(readers[0].read(), readers[1].read())
        for found, expected in zip(divided.strongest(name, 0), whole.strongest(name, 0), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_the_memory_of_derived_kernels_does_not_grow_with_their_rows() -> None:
    """But for outputs and second derivatives of the loss, K of the dual system, and norms of DataInf."""
    sizes = KernelSizes(gram_rows=1, held=50, factored=True, dimension=50, modules=2)
    sections = {"influence": InfluenceSection.model_validate({"system": "primal"}), "ekfac": EkfacSection.model_validate({})}
    made = {
        name: KERNELS.get(name)(**{field: sections.get(field) for field in KERNELS.get(name).settings})
        for name in ("influence", "trak", "relatif", "ekfac", "datainf")
    }
    for name, kernel in made.items():
        assert isinstance(kernel, DerivedKernel)
        few, many = (
            kernel.at_base(sizes).at_sizes(rows, 1, 50).peak_bytes(rows, 1, 50, 1000, 10**6, diagonal=False) for rows in (10**5, 10**6)
        )
        assert kernel.at_sizes(10**5, 1, 50).is_blockwise
        assert (many - few) / 9e5 <= 8 * 8, name
