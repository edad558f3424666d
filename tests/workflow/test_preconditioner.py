"""Kernels in the optimizer's metric: the identity with a preconditioner that does not change, and refusals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import genrep_dist as gr
from genrep_dist.errors import GenRepError, MethodError
from genrep_dist.store import Store
from genrep_dist.training.loop import predict
from genrep_dist.training.optimizers import OPTIMIZERS
from genrep_dist.training.optimizers.sgd import SGD
from genrep_dist.workflow.prepare import prepare
from tests.experiments import ROOT, experiment
from tests.toys import Linear

METHODS = ["ntk-adam-final/tracking", "ntk-final/tracking", "random"]


class Scaled(SGD):
    """Plain SGD in a fixed metric: every element of a parameter has its own D."""

    def metric(self, parameter: Tensor) -> Tensor:
        return 1 + torch.arange(parameter.numel(), dtype=parameter.dtype).view(parameter.shape) % 5

    def update(self, parameters: list[Tensor], gradients: list[Tensor], state: list[dict[str, Tensor]], rate: float) -> None:
        super().update(parameters, [g.to_dense() / self.metric(p) for p, g in zip(parameters, gradients, strict=True)], state, rate)

    def preconditioner(self, parameter: Tensor, state: object) -> Tensor:
        return self.metric(parameter)

    def identity_gap_reasons(self) -> list[str]:
        return ["each step is divided by D"]


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    OPTIMIZERS.register("scaled", Scaled)
    yield
    OPTIMIZERS.unregister("scaled")


def gaps(folder: Path, **recipe: object) -> tuple[float, float]:
    """The largest |f_T - f_0 - sum_i alpha_i K(x_i, x)| relative to the largest change: K in the metric, and plain."""
    asked = experiment("tests.toys:Linear", recipe=recipe, methods=METHODS, seeds=1, deletion={"fractions": [0.0, 0.1]})
    run = gr.run(asked, store=str(folder), serial=True, search_path=[str(ROOT)])
    inputs, _, ids = Linear().test_data()
    rows, model = [ids.tolist().index(sample) for sample in run.test_ids(0)], Linear().model()
    outputs = []
    for which in ("initial", "final"):
        model.load_state_dict(run.checkpoint(0, which))
        outputs.append(predict(model, inputs[rows]).double().numpy()[:, 0])
    change = outputs[1] - outputs[0]
    found = []
    for method in METHODS[:2]:
        explained = run.attributions(method, 0).sum(axis=0)
        found.append(float(np.abs(explained - change).max() / np.abs(change).max()))
    return found[0], found[1]


def test_tracking_adds_up_in_a_metric_that_does_not_change(tmp_path: Path) -> None:
    """A model that is linear in its parameters, trained in minibatches at a changing rate."""
    ours, plain = gaps(tmp_path, optimizer="scaled", schedule="one_cycle", epochs=3)
    assert ours < 1e-4
    assert plain > 0.1


def test_an_optimizer_without_a_metric_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match=r"ntk-adam[\s\S]*sgd[\s\S]*use the kernel ntk"):
        prepare(experiment("tests.toys:Linear", methods=METHODS), Store(str(tmp_path)), [str(ROOT)])


def test_there_is_none_before_the_first_step() -> None:
    for checkpoint in ("initial", "epoch0"):
        with pytest.raises(GenRepError, match=f"ntk-adam-{checkpoint}"):
            experiment("tests.toys:Linear", methods=[f"ntk-adam-{checkpoint}/target"])
