"""Attributions for other points: at the run's own points they are the run's own, whatever the method; elsewhere they follow the formula."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import genrep_dist as gr
from genrep_dist.errors import MethodError, NonFiniteError, NotCommittedError
from tests.experiments import METHODS, ROOT, experiment
from tests.toys import trainings


def run(store: Path, **fields: Any) -> gr.Run:
    return gr.run(experiment(**fields), store=str(store), serial=True, search_path=[str(ROOT)])


@pytest.fixture(scope="module", params=[2, 3])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> gr.Run:
    folder = tmp_path_factory.mktemp("explain")
    return run(
        folder / "store",
        problem="tests.toys:Counting",
        options={"folder": str(folder), "num_classes": request.param},
        methods=[*METHODS, "rbf-final/target"],
        kernels={"rbf": {"class": "tests.test_explain:Inner"}},
        resources={"memory_budget": "64KiB"},
        deletion={"fractions": [0.0, 0.1]},
    )


class Inner:
    """A kernel of one's own."""

    def __call__(self, model: torch.nn.Module, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        del model
        return torch.exp(-(torch.cdist(left, right) ** 2) / 10)


@pytest.mark.parametrize("method", [*METHODS, "rbf-final/target"])
def test_at_the_runs_own_points_it_is_the_run(finished: gr.Run, method: str) -> None:
    before = trainings(Path(finished.plan.experiment.problem.options["folder"]))
    expected = finished.attributions(method, 1)
    ids = finished.test_ids(1).tolist()
    phi = finished.explain(method, 1, test_ids=ids)
    np.testing.assert_allclose(phi, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())
    if method != "random":
        samples = finished.problem(1).test
        rows = [samples.ids.tolist().index(sample) for sample in ids]
        np.testing.assert_array_equal(finished.explain(method, 1, inputs=samples.inputs[rows].numpy()), phi)
    assert trainings(Path(finished.plan.experiment.problem.options["folder"])) == before, "nothing is trained"


@pytest.mark.parametrize("method", ["ntk-final/target", "tracincp", "influence-function", "rbf-final/target"])
def test_many_points_are_explained_some_at_a_time(finished: gr.Run, method: str) -> None:
    """More than fit the budget: each has the scores that it has alone."""
    inputs = torch.randn(40, 5, generator=torch.Generator().manual_seed(1))
    phi = finished.explain(method, 0, inputs=inputs)
    assert phi.shape == (40, 40)
    for point in (0, 17, 39):
        alone = finished.explain(method, 0, inputs=inputs[point : point + 1])
        np.testing.assert_allclose(phi[:, point : point + 1], alone, rtol=1e-4, atol=1e-6 * np.abs(alone).max())


def test_new_points_follow_the_formula(finished: gr.Run) -> None:
    """Against backward passes, one for each pair of sample and point: alpha_i <grad f(x_i), grad f(x)>."""
    problem = finished.problem(0)
    inputs = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    phi = finished.explain("ntk-final/target", 0, inputs=inputs)
    alpha = finished.importance("target", 0).reshape(len(problem.train.ids), -1)

    def gradient(x: torch.Tensor, output: int) -> torch.Tensor:
        problem.model.zero_grad()
        problem.model(x[None])[0, output].backward()
        return torch.cat([p.grad.flatten() for p in problem.model.parameters() if p.grad is not None]).clone()

    outputs = alpha.shape[1]
    with torch.no_grad():
        explained = problem.model(inputs).argmax(dim=1)
    for column, x in enumerate(inputs):
        at = gradient(x, int(explained[column]))
        for row in range(0, 40, 7):
            own = sum(alpha[row, c] * float(gradient(problem.train.inputs[row], c) @ at) for c in range(outputs))
            assert phi[row, column] == pytest.approx(own, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("method", [*METHODS, "rbf-final/target"])
def test_the_strongest_of_many_points_are_those_of_all_scores(finished: gr.Run, method: str) -> None:
    """Also of more points than fit the budget at once."""
    where: dict[str, Any] = {"inputs": torch.randn(30, 5, generator=torch.Generator().manual_seed(2))}
    if method == "random":
        where = {"test_ids": finished.test.ids.tolist()}
    phi, ids = finished.explain(method, 0, **where), finished.train_ids(0)
    for sign, (found, scores) in finished.explain(method, 0, **where, top=7).items():
        order = np.array([np.lexsort((ids, column)) for column in (phi.T if sign == "negative" else -phi.T)])[:, :7]
        expected = np.take_along_axis(phi.T, order, axis=1)
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5 * np.abs(phi).max())
        assert (found == ids[order]).mean() > 0.98, "but for ties in rounding"
    with pytest.raises(MethodError, match="1 to 40"):
        finished.explain(method, 0, **where, top=41)


def test_a_method_that_was_not_asked_for_but_needs_nothing_new(finished: gr.Run) -> None:
    assert finished.explain("ntk-initial/target", 0, test_ids=finished.test_ids(0)[:1].tolist()).shape == (40, 1)
    with pytest.raises(NotCommittedError):
        finished.explain("ntk-final/descent", 0, inputs=np.zeros((1, 5), "f"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, "which points"),
        ({"inputs": np.zeros((1, 5), "f"), "test_ids": [1]}, "which points"),
        ({"test_ids": [1]}, r"no such test samples[\s\S]*got: \[1\]"),
        ({"test_ids": []}, "no such test samples"),
        ({"inputs": np.zeros((1, 4), "f")}, r"torch.float32 \(M, 5\)[\s\S]*\(1, 4\)"),
        ({"inputs": np.zeros((1, 5), "i8")}, "torch.int64"),
        ({"inputs": np.zeros((0, 5), "f")}, "not of the form"),
    ],
)
def test_what_cannot_be_explained(finished: gr.Run, arguments: dict[str, Any], expected: str) -> None:
    with pytest.raises(MethodError, match=expected):
        finished.explain("ntk-final/target", 0, **arguments)
    with pytest.raises(MethodError, match="random scores test_ids"):
        finished.explain("random", 0, inputs=np.zeros((1, 5), "f"))


@pytest.mark.parametrize("count", [0, -1, 2.5, "7", True, 10**6])
def test_how_many_is_a_whole_number_of_samples(finished: gr.Run, count: Any) -> None:
    with pytest.raises(MethodError, match="a whole number from 1 to"):
        finished.strongest(METHODS[0], 0, count=count)
    with pytest.raises(MethodError, match="a whole number from 1 to"):
        finished.explain(METHODS[0], 0, test_ids=[int(finished.test_ids(0)[0])], top=count)


def test_nan_is_refused(finished: gr.Run) -> None:
    with pytest.raises(NonFiniteError, match=r"rows \[1\]"):
        finished.explain("ntk-final/target", 0, inputs=np.array([[0.0] * 5, [np.nan] * 5], "f"))


def test_a_driver_that_explains_computes_in_full_precision(finished: gr.Run) -> None:
    """TF32 is torch's default for convolutions on a GPU, and no unit has set it back in this process."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    try:
        cudnn.allow_tf32 = matmul.allow_tf32 = True
        opened = gr.open_run(finished.store, finished.name)
        opened.explain("ntk-final/target", 0, test_ids=[int(opened.test_ids(0)[0])])
        assert (cudnn.allow_tf32, matmul.allow_tf32) == (False, False)
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before
