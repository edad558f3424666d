"""DataInf and RelatIF against dattri's, which works in float32.

dattri's numbers are <g_test, S g_i> of two losses; with the logit that is explained in place of the test loss they are the minus of ours.
Its Hessian is that of the mean loss, its regularization our absolute damping. The Hessian of a linear model is its Gauss-Newton matrix.
Its l-RelatIF multiplies the sample's transformed gradient with the gradient of the *test* target at the sample, which is the sample's own
loss gradient where both targets are the loss: so RelatIF is compared with the loss explained.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from genrep_dist.config.sections import InfluenceSection
from genrep_dist.core.attribution import attribute
from genrep_dist.core.gradients.per_sample import per_sample_gradients
from genrep_dist.core.importances.target import target_importance
from genrep_dist.core.kernels.base import DerivedKernel
from genrep_dist.core.kernels.datainf import DataInfKernel
from genrep_dist.core.kernels.relatif import RelatifKernel
from genrep_dist.testing.kernels import DenseInputs

# The library's own warnings are its to mend.
pytestmark = pytest.mark.filterwarnings("ignore")
NUM_TRAIN, NUM_TEST, NUM_CLASSES, DAMPING = 24, 5, 3, 0.05


class LossInputs(DenseInputs):
    """With the loss of the test samples as the explained number; their labels are ``outputs``."""

    def test_gradients(self) -> Tensor:
        with torch.no_grad():
            weights = self.loss.derivative(self._model(self._test), self._outputs)
        return per_sample_gradients(self._model, self._test, weights)

    def test_features(self, kernel: str) -> Tensor:
        del kernel
        return self.test_gradients()

    def cross(self, kernel: str) -> Tensor:
        return torch.einsum("ncp,mp->ncm", self.train_features(kernel, 0, len(self.targets)), self.test_gradients())


def given(hidden: int) -> LossInputs:
    torch.manual_seed(0)
    layers = [nn.Linear(5, hidden), nn.Tanh()] if hidden else []
    generator = torch.Generator().manual_seed(1)
    train, test = (torch.randn(count, 5, generator=generator) for count in (NUM_TRAIN, NUM_TEST))
    model = nn.Sequential(*layers, nn.Linear(hidden or 5, NUM_CLASSES)).eval()
    return LossInputs(model, train, test, torch.arange(NUM_TEST) % NUM_CLASSES)


def ours(kernel: DerivedKernel, inputs: LossInputs) -> Tensor:
    """phi (N, M)."""
    return attribute(target_importance(inputs.loss, inputs.outputs(), inputs.targets), kernel.columns(inputs)[0])


def dattris(attributor: Any, inputs: LossInputs, **options: Any) -> Tensor:
    test, labels = inputs._test.float(), inputs._outputs
    train = DataLoader(TensorDataset(inputs.train_inputs.float(), inputs.targets), batch_size=NUM_TRAIN)
    attributor.cache(train)
    found: Tensor = attributor.attribute(train, DataLoader(TensorDataset(test, labels), batch_size=NUM_TEST), **options)
    return found


def task(inputs: LossInputs) -> Any:
    from dattri.task import AttributionTask

    model = copy.deepcopy(inputs.model()).float()

    def loss(parameters: Any, batch: Any) -> Tensor:
        rows, labels = batch
        outputs = functional_call(model, parameters, (rows if rows.dim() > 1 else rows[None],))
        return functional.cross_entropy(outputs, labels.reshape(-1).long())

    return AttributionTask(loss, model, [model.state_dict()])


SECTION = InfluenceSection.model_validate({"damping": DAMPING, "damping_unit": "absolute"})


def test_datainf_is_dattris() -> None:
    algorithm = pytest.importorskip("dattri.algorithm.influence_function", reason="dattri is not installed")
    inputs = given(hidden=4)
    found = ours(DataInfKernel(SECTION), inputs)
    with torch.no_grad():
        theirs = -dattris(algorithm.IFAttributorDataInf(task(inputs), regularization=DAMPING), inputs)
    torch.testing.assert_close(found.float(), theirs.float(), rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


def test_relatif_is_dattris() -> None:
    algorithm = pytest.importorskip("dattri.algorithm.influence_function", reason="dattri is not installed")
    inputs = given(hidden=0)
    found = ours(RelatifKernel(SECTION), inputs)
    with torch.no_grad():
        theirs = -dattris(algorithm.IFAttributorExplicit(task(inputs), regularization=DAMPING), inputs, relatif_method="l")
    torch.testing.assert_close(found.float(), theirs.float(), rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))
