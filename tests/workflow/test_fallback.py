"""Whole runs of models that layer rules cannot serve: their kernels are those of plain autograd, and the plan says why they are slow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import genrep_dist as gr
from genrep_dist.core.gradients.reference import one_by_one
from genrep_dist.errors import NonFiniteError, ProblemError
from genrep_dist.problems.protocol import Dataset
from genrep_dist.store import Store
from genrep_dist.workflow.prepare import prepare
from tests.core.fallback_models import Checked, OwnFunction
from tests.experiments import ROOT, experiment
from tests.toys import Blobs


class _Narrow(Blobs):
    """Blobs of four features and two outputs."""

    def __init__(self) -> None:
        super().__init__(train_size=16, test_size=6, num_classes=2, epochs=2)
        self.loss = "softmax"

    def _data(self, seed: int, rows: int, first_id: int) -> Dataset:
        data = super()._data(seed, rows, first_id)
        return Dataset(data.inputs[:, :4], data.targets.long(), data.ids)


class CheckedRows(_Narrow):
    def model(self) -> nn.Module:
        return Checked()


class FunctionRows(_Narrow):
    def model(self) -> nn.Module:
        return OwnFunction()


class ScriptedRows(_Narrow):
    def model(self) -> nn.Module:
        scripted: nn.Module = torch.jit.script(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)))
        return scripted


class ComplexRows(_Narrow):
    def model(self) -> nn.Module:
        return Complex()


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.spectrum, self.head = nn.Parameter(torch.randn(3, dtype=torch.cfloat)), nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(torch.fft.irfft(torch.fft.rfft(inputs) * self.spectrum, n=4)))
        return out


class Noisy(nn.Module):
    """Draws random numbers in evaluation mode, too."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(inputs) + torch.rand(1))
        return out


class NoisyRows(_Narrow):
    def model(self) -> nn.Module:
        return Noisy()


class Root(nn.Module):
    """The gradient of the norm of zero is NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4, bias=False), nn.Linear(1, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.head((self.body(inputs) ** 2).sum(1, keepdim=True).sqrt())
        return out


class RootRows(_Narrow):
    def model(self) -> nn.Module:
        return Root()

    def _data(self, seed: int, rows: int, first_id: int) -> Dataset:
        data = super()._data(seed, rows, first_id)
        if seed == 0:
            data.inputs[5] = 0
        return data


def _experiment(problem: type[_Narrow], methods: list[str], **fields: Any) -> Any:
    name = f"tests.workflow.test_fallback:{problem.__name__}"
    return experiment(name, methods=methods, seeds=1, deletion={"fractions": [0.0, 0.1]}, **fields)


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize(
    ("problem", "reason"),
    [(CheckedRows, "calling .item()"), (ScriptedRows, "Jitted"), (ComplexRows, "complex")],
)
def test_a_kernel_is_that_of_plain_autograd(problem: type[_Narrow], reason: str, tmp_path: Path) -> None:
    run = gr.run(_experiment(problem, ["ntk-final/tracking"]), store=str(tmp_path), serial=True, search_path=[str(ROOT)])
    assert any("loop" in line and reason in line for line in run.plan.warnings)
    kernel, loaded = run.kernel("ntk", "final", 0), run.problem(0)
    train = torch.stack([one_by_one(loaded.model, row) for row in run.context.train.inputs])
    points = run.context.test_points(0)
    test = torch.stack([one_by_one(loaded.model, row, int(c)) for row, c in zip(points.inputs, points.outputs, strict=True)])
    expected = torch.einsum("ncp,mp->ncm", train, test).numpy()
    np.testing.assert_allclose(kernel, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert run.plan.shape.num_parameters == train.shape[2]


def test_the_other_kernels_of_a_model_that_no_rule_serves(tmp_path: Path) -> None:
    """Projected features, the true Hessian, and the last layer's kernels, which need no gradients of the other layers."""
    methods = ["ntk-final/surrogate", "influence-function", "last-layer-final/surrogate", "representer-point"]
    influence = {"curvature": "hessian", "damping": 1.0, "tolerance": 1e-4}
    fields = {"projection": {"dim": 16}, "influence": influence}
    run = gr.run(_experiment(FunctionRows, methods, **fields), store=str(tmp_path / "a"), serial=True, search_path=[str(ROOT)])
    assert any("products with the Hessian: twice backward" in line for line in run.plan.warnings)
    last = {"influence": {"curvature": "last-layer", "damping": 1.0}}
    run = gr.run(
        _experiment(FunctionRows, ["influence-function", "last-layer-final/target"], **last),
        store=str(tmp_path / "b"),
        serial=True,
        search_path=[str(ROOT)],
    )
    assert not any("loop" in line for line in run.plan.warnings)
    assert np.isfinite(run.attributions("influence-function", 0)).all()


def test_gradients_that_are_not_defined_are_refused_before_training(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(ProblemError, match="differ in evaluation mode"):
        prepare(_experiment(NoisyRows, ["ntk-final/tracking"]), store, [str(ROOT)])
    with pytest.raises(ProblemError, match="differ in evaluation mode"):
        prepare(_experiment(NoisyRows, ["influence-function"], influence={"curvature": "hessian"}), store, [str(ROOT)])


def test_a_sample_with_a_gradient_of_nan_is_named(tmp_path: Path) -> None:
    bad = int(RootRows().train_data().ids[5])
    with pytest.raises(NonFiniteError, match=rf"(?s)gradient of a training sample is NaN or Inf.*sample ids \[{bad}\]"):
        gr.run(_experiment(RootRows, ["random"]), store=str(tmp_path), serial=True, search_path=[str(ROOT)])


class TooFast(_Narrow):
    """A rate at which training diverges by itself: no sample is to blame."""

    def __init__(self) -> None:
        super().__init__()
        self.recipe = replace(self.recipe, learning_rate=1e30, epochs=4)

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))


def test_a_rate_that_is_too_large_names_no_single_sample(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="training diverged"):
        gr.run(_experiment(TooFast, ["random"]), store=str(tmp_path), serial=True, search_path=[str(ROOT)])
