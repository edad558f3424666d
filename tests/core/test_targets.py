"""Targets: values and derivatives against their definitions and autograd, and gradients and kernels of weighted outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from genrep_dist.core.function_targets import FunctionTarget, TargetInputs
from genrep_dist.core.gradients.factored import FactoredGradients
from genrep_dist.core.gradients.per_sample import per_sample_gradients
from genrep_dist.core.gradients.reference import one_by_one
from genrep_dist.core.kernels import KERNELS
from genrep_dist.core.kernels.base import FeatureKernel
from genrep_dist.core.kernels.blocks import per_output
from genrep_dist.core.losses import get_loss
from genrep_dist.core.targets import TARGETS, Target, class_labels
from genrep_dist.errors import PlanError, ProblemError
from genrep_dist.workflow.features import point_reference

KINDS = ("margin", "log_probability", "loss", "probability")


def random(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def probabilities(outputs: Tensor) -> Tensor:
    """p (M, C), or (M, 2) of a single logit."""
    return torch.cat([1 - outputs.sigmoid(), outputs.sigmoid()], dim=1) if outputs.shape[1] == 1 else outputs.softmax(dim=1)


def made(kind: str, output: str | int | None = None) -> Target:
    target = TARGETS.get(kind)
    return target(target.default_output if output is None else output)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("output", ["label", "predicted", 0])
@pytest.mark.parametrize("num_outputs", [1, 2, 5])
def test_a_kind_is_what_its_name_says(kind: str, output: str | int, num_outputs: int) -> None:
    outputs = random(7, num_outputs, seed=num_outputs)
    labels = torch.arange(7) % max(2, num_outputs)
    target = made(kind, None if kind == "loss" else output)
    assert isinstance(target, FunctionTarget)
    chosen = torch.from_numpy(target.explained_outputs(outputs.numpy(), labels.numpy()))
    inputs = TargetInputs(chosen, labels, get_loss("logistic" if num_outputs == 1 else "softmax"))
    # A single output is that of class 1, whatever the prediction.
    of_outputs = {"label": labels, "predicted": outputs.argmax(dim=1), 0: torch.zeros(7, dtype=torch.int64)}[output]
    own = labels if kind == "loss" or output == "label" else torch.ones_like(labels) if num_outputs == 1 else of_outputs
    p = probabilities(outputs).gather(1, own[:, None]).squeeze(1)
    expected = {"margin": (p / (1 - p)).log(), "log_probability": p.log(), "loss": -p.log(), "probability": p}[kind]
    torch.testing.assert_close(target.value(outputs, inputs), expected, rtol=1e-10, atol=1e-10)
    variable = outputs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(target.value(variable, inputs).sum(), variable)
    torch.testing.assert_close(target.derivative(outputs, inputs), gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("num_outputs", [1, 3])
def test_margins_and_log_probabilities_of_certain_predictions_are_exact(num_outputs: int) -> None:
    outputs = torch.zeros(2, num_outputs, dtype=torch.float64)
    outputs[:, -1] = torch.tensor([200.0, -200.0], dtype=torch.float64)
    labels = torch.full((2,), max(1, num_outputs - 1))
    inputs, others = TargetInputs(labels, labels, get_loss("softmax")), np.log(max(1, num_outputs - 1))
    margin, log_p = made("margin"), made("log_probability")
    assert isinstance(margin, FunctionTarget)
    assert isinstance(log_p, FunctionTarget)
    torch.testing.assert_close(margin.value(outputs, inputs), outputs[:, -1] - others, rtol=1e-14, atol=0)
    for target in (margin, log_p):
        assert torch.isfinite(target.derivative(outputs, inputs)).all()
    assert float(log_p.value(outputs, inputs)[1]) == pytest.approx(-200 - others)
    assert float(log_p.derivative(outputs, inputs)[0, -1]) > 0, "lost to cancellation"


def test_which_class_the_rise_of_a_number_supports() -> None:
    assert made("margin").supports(2, 2)
    assert not made("probability").supports(1, 2)
    assert not made("loss").supports(2, 2)
    assert made("loss").supports(1, 2)


@pytest.mark.parametrize(
    ("targets", "num_outputs", "expected"),
    [
        (np.array([0, 2, 1]), 3, [0, 2, 1]),
        (np.array([[0.0], [1.0]], dtype=np.float32), 1, [0, 1]),
        (np.array([0, 3]), 3, None),
        (np.array([0.5, 1.0]), 1, None),
        (np.array([-1.0, 1.0]), 1, None),
        (np.array([[0.2, 0.8], [1.0, 0.0]]), 2, None),
    ],
)
def test_labels_are_class_numbers_only(targets: Any, num_outputs: int, expected: list[int] | None) -> None:
    found = class_labels(targets, num_outputs)
    assert (found if found is None else found.tolist()) == expected


@pytest.mark.parametrize("kind", ["logit", "margin", "probability"])
def test_labels_that_are_not_there_are_refused(kind: str) -> None:
    with pytest.raises(ProblemError, match=r"needs the labels(.|\n)*targets="):
        made(kind, "label").explained_outputs(np.zeros((2, 3)))


@pytest.mark.parametrize("kind", ["loss", "problem"])
def test_a_number_of_the_whole_point_has_no_output(kind: str) -> None:
    made(kind).check(3)
    with pytest.raises(PlanError, match=r"remove target\.output"):
        made(kind, 1).check(3)


class Sloped(nn.Module):
    """Parameters for layer rules, for torch.func (PReLU of two outputs) and bare ones."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.slopes, self.outer = nn.Linear(4, 6), nn.PReLU(6), nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.outer(self.slopes(self.inner(inputs)))
        return result


class Branching(Sloped):
    """A model that only runs one sample at a time."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) * (2.0 if float(inputs.sum()) > 0 else 1.0)


@pytest.mark.parametrize("make", [lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), Sloped, Branching])
def test_the_gradient_of_weighted_outputs_is_the_weighted_jacobian(make: Any) -> None:
    torch.manual_seed(0)
    model, inputs, weights = make().double().eval(), random(5, 4), random(5, 3, seed=1)
    expected = torch.stack([w @ one_by_one(model, x) for x, w in zip(inputs, weights, strict=True)])
    torch.testing.assert_close(per_sample_gradients(model, inputs, weights), expected, rtol=1e-10, atol=1e-12)


def test_a_weighted_sum_takes_one_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 9)).eval(), random(5, 4).float()
    per_sample_gradients(model, inputs)  # inspected
    passes, grad = list[int](), torch.autograd.grad

    def counted(*arguments: Any, **options: Any) -> Any:
        passes.append(1)
        return grad(*arguments, **options)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    per_sample_gradients(model, inputs, torch.ones(5, 9))
    assert len(passes) == 1
    per_sample_gradients(model, inputs)
    assert len(passes) == 10


@pytest.mark.parametrize("name", ["ntk", "last-layer"])
def test_kernels_of_weighted_outputs_combine_those_of_all_outputs(name: str) -> None:
    torch.manual_seed(0)
    model, train, test = (
        nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).eval(),
        random(5, 4).float(),
        random(2, 4, seed=1).float(),
    )
    kernel, weights = KERNELS.get(name)(), random(2, 3, seed=2)
    assert isinstance(kernel, FeatureKernel)
    assert kernel.takes_weights
    rows, prepared = kernel.features(model, train), kernel.features(model, test, weights)
    expected, _ = point_reference(kernel, model, train, test, weights, 3)
    found = kernel.block(rows, prepared.as_operand() if isinstance(prepared, FactoredGradients) else prepared, weights, 3)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_scalar_kernel_is_weighted_by_output() -> None:
    scalar, weights = random(4, 2), random(2, 3, seed=1)
    each = [per_output(scalar, torch.full((2,), c), 3) for c in range(3)]
    expected = sum((w * block for w, block in zip(weights.unbind(1), each, strict=True)), torch.zeros(()))
    torch.testing.assert_close(per_output(scalar, weights, 3), expected)
