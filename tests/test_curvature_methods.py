"""EK-FAC, DataInf and RelatIF through a whole run: kernels, self-influence, other points, the plan and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import genrep_dist as gr
from genrep_dist.core.kernels.base import DerivedKernel
from genrep_dist.errors import MethodError, PlanError
from genrep_dist.plan import Plan
from genrep_dist.testing.kernels import DenseInputs
from genrep_dist.workflow.derived import DerivedStage
from genrep_dist.workflow.planning import make_plan
from tests.experiments import ROOT, experiment

METHODS = ["ekfac", "datainf", "relatif", "random"]


def declared(**fields: Any) -> gr.Experiment:
    about: dict[str, Any] = {
        "name": "curvature",
        "problem": {"name": "tests.toys:Blobs", "options": {"num_classes": 3}, "flip_labels": {"share": 0.1}},
        "seeds": 1,
        "test_points": 3,
        "methods": METHODS,
        "deletion": {"fractions": [0.0, 0.1]},
    }
    return gr.Experiment.model_validate({**about, **fields})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> gr.Run:
    return gr.run(declared(), store=str(tmp_path_factory.mktemp("store")), serial=True, search_path=[str(ROOT)])


def slow_inputs(run: gr.Run) -> DenseInputs:
    """The trained model in float64 with one backward pass for each sample and output."""
    problem = run.problem(0)
    ids = problem.test.ids.tolist()
    points = problem.test.inputs[[ids.index(sample) for sample in run.test_ids(0).tolist()]]
    with torch.no_grad():
        explained = problem.model(points).argmax(dim=1)
    inputs = DenseInputs(problem.model, problem.train.inputs, points, explained)
    inputs.targets = problem.train.targets
    return inputs


@pytest.mark.parametrize("name", ["ekfac", "datainf", "relatif"])
def test_the_kernel_is_that_of_plain_gradients(run: gr.Run, name: str) -> None:
    kernel = run.plan.experiment.kernel(name)
    assert isinstance(kernel, DerivedKernel)
    inputs = slow_inputs(run)
    own = inputs.targets
    expected, _ = kernel.columns(inputs)
    np.testing.assert_allclose(run.kernel(name, "final", 0), expected, rtol=0, atol=1e-3 * float(expected.abs().max()))
    key = run.plan.keys.diagonal(0, name, run.plan.keys.epochs)
    diagonal = kernel.diagonal(inputs, own)
    found = run.store.artifact("diagonal", key).read("diagonal")
    np.testing.assert_allclose(found, diagonal, rtol=0, atol=1e-3 * float(diagonal.abs().max()))
    phi = run.explain(name, seed=0, test_ids=run.test_ids(0).tolist())
    np.testing.assert_allclose(phi, run.attributions(name, 0), rtol=0, atol=1e-5 * np.abs(phi).max())


def test_scores_are_the_target_derivative_times_the_kernel(run: gr.Run) -> None:
    alpha: Tensor = torch.from_numpy(run.importance("target", 0))
    for name in ("ekfac", "datainf", "relatif"):
        expected = np.einsum("nc,ncm->nm", alpha, run.kernel(name, "final", 0))
        np.testing.assert_allclose(run.attributions(name, 0), expected, rtol=1e-6, atol=1e-9 * np.abs(expected).max())


def test_the_plan_shows_the_matrix_and_its_bytes(run: gr.Run) -> None:
    (stage,) = [stage for stage in run.plan.stages if stage.name == "influence"]
    # Layers 5-8 and 8-3 with biases: 8^2 + 6^2 + 3^2 + 9^2 numbers.
    assert "EK-FAC of the Gauss-Newton matrix, damping 0.1 times the mean eigenvalue of H of each layer, 190 numbers of Kron" in stage.what
    assert "DataInf, damping 0.1 times the mean eigenvalue of H of each layer" in stage.what
    assert {kernel for kernel, _ in run.plan.needs.grams} == set()  # the primal system of relatif is the smaller one
    assert stage.peak_bytes > 0
    alone = planned(run, declared(methods=["ekfac", "random"]))
    assert (alone.needs.grams, alone.needs.cross, alone.stored_features) == ((), (), ())


def planned(run: gr.Run, experiment: gr.Experiment, **shape: Any) -> Plan:
    return make_plan(replace(run.plan.keys, experiment=experiment), replace(run.plan.shape, **shape))


def test_a_budget_that_is_too_small_is_refused(run: gr.Run) -> None:
    small = planned(run, declared(methods=["ekfac"], resources={"memory_budget": 2**28}), num_parameters=20_000_000)
    with pytest.raises(PlanError, match=r"kernel ekfac \(EK-FAC[\s\S]*explain fewer test points at once"):
        DerivedStage().check_budget(small)


def test_settings_enter_the_addresses_that_they_change(run: gr.Run) -> None:
    def keys(name: str, **fields: Any) -> str:
        return planned(run, declared(**fields)).keys.kernel(0, name, 4)

    for name in ("ekfac", "datainf"):
        assert keys(name) == keys(name, projection={"dim": 16})
        assert keys(name) != keys(name, influence={"damping": 1.0})
    assert keys("relatif") != keys("relatif", projection={"dim": 16})
    assert keys("ekfac") != keys("ekfac", ekfac={"fisher": "empirical"})
    assert keys("datainf") == keys("datainf", ekfac={"fisher": "empirical"})


def test_relatif_with_the_true_hessian_is_refused_before_training(tmp_path: Path) -> None:
    asked = experiment(methods=["relatif", "random"], influence={"curvature": "hessian", "damping": 1.0})
    with pytest.raises(MethodError, match="RelatIF would solve a system with the true Hessian"):
        gr.run(asked, store=str(tmp_path), serial=True, search_path=[str(ROOT)])
    assert not list(tmp_path.rglob("train"))
