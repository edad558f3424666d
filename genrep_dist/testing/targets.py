"""Conformance tests of targets.

.. code-block:: python

    from genrep_dist.testing import TargetTests

    class TestMyTarget(TargetTests):
        def make_target(self):
            return MyTarget("predicted")
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from genrep_dist.core.function_targets import FunctionTarget, TargetInputs
from genrep_dist.core.losses import Loss, get_loss
from genrep_dist.core.targets import TARGETS, Target
from genrep_dist.errors import PlanError

POINTS, STEP = 12, 1e-4


class TargetTests:
    """An output of the model at each point, chosen by its own outputs alone, or a function of them. A subclass defines :meth:`make_target`.

    For :class:`~genrep_dist.core.function_targets.FunctionTarget`, ``loss`` is the training loss of its points, whose labels are classes.
    """

    loss: str | Loss | None = None
    """None: logistic for one output, softmax for several."""

    def make_target(self) -> Target:
        raise NotImplementedError("return the target that is tested")

    @pytest.mark.parametrize("num_outputs", [1, 2, 5])
    def test_the_choice_is_an_output_of_each_point_by_itself(self, num_outputs: int) -> None:
        target, outputs = self.make_target(), _outputs(num_outputs)
        try:
            target.check(num_outputs)
        except PlanError:
            return  # not defined for such a model, which a plan would say
        before = outputs.copy()
        chosen = target.explained_outputs(outputs)
        np.testing.assert_array_equal(outputs, before, err_msg="choose changed the outputs")
        np.testing.assert_array_equal(chosen, target.explained_outputs(outputs))
        single = [int(target.explained_outputs(row[None])[0]) for row in outputs]
        np.testing.assert_array_equal(chosen, single, err_msg="the choice depends on the other points")
        np.testing.assert_array_equal(chosen, target.explained_outputs(outputs.astype(np.float64)))

    @pytest.mark.parametrize("num_outputs", [1, 2, 5])
    def test_the_derivative_of_a_function_is_that_of_its_value(self, num_outputs: int) -> None:
        target, outputs = self.make_target(), torch.from_numpy(_outputs(num_outputs)).double()
        try:
            target.check(num_outputs)
        except PlanError:
            return
        if not isinstance(target, FunctionTarget):
            return
        labels = torch.arange(POINTS) % max(2, num_outputs)
        chosen = torch.from_numpy(target.explained_outputs(outputs.numpy(), labels.numpy()))
        inputs = TargetInputs(chosen, labels, get_loss(self.loss or ("logistic" if num_outputs == 1 else "softmax")))
        found = target.derivative(outputs, inputs)
        assert found.shape == outputs.shape
        for output in range(num_outputs):
            step = STEP * torch.nn.functional.one_hot(torch.tensor(output), num_outputs)
            difference = (target.value(outputs + step, inputs) - target.value(outputs - step, inputs)) / (2 * STEP)
            assert difference.shape == (POINTS,)
            torch.testing.assert_close(found[:, output], difference, rtol=1e-4, atol=1e-4)

    def test_it_is_defined_for_some_model(self) -> None:
        refused = 0
        for num_outputs in range(1, 11):
            try:
                self.make_target().check(num_outputs)
            except PlanError:
                refused += 1
        assert refused < 10

    def test_it_has_a_name(self) -> None:
        target = self.make_target()
        assert target.name not in TARGETS or TARGETS.get(target.name) is type(target)


def _outputs(num_outputs: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(num_outputs).standard_normal((POINTS, num_outputs)).astype(np.float32)
