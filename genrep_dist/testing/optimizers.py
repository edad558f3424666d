"""Conformance tests of optimizers.

.. code-block:: python

    from genrep_dist.testing import OptimizerTests

    class TestMyOptimizer(OptimizerTests):
        def make_optimizer(self):
            return MyOptimizer(genrep_dist.Recipe(epochs=1, batch_size=8, learning_rate=0.1))
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from genrep_dist.training.optimizers.base import OptimizedParameters, Optimizer

RATE, STEPS, SLOTS = 0.05, 4, 3
SHAPES = ((4, 3), (4,), (2, 1, 3))
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


class OptimizerTests:
    """One rule for one model and for several that train together. A subclass defines :meth:`make_optimizer`."""

    def make_optimizer(self) -> Optimizer:
        raise NotImplementedError("return the optimizer that is tested")

    def test_it_describes_itself(self) -> None:
        optimizer = self.make_optimizer()
        assert optimizer.description
        reasons = optimizer.identity_gap_reasons()
        assert all(reason and not reason.endswith(".") for reason in reasons)
        assert reasons == self.make_optimizer().identity_gap_reasons()

    @DTYPES
    def test_a_step_changes_parameters_in_place(self, dtype: torch.dtype) -> None:
        parameters = _numbers(0, dtype)
        before = [p.clone() for p in parameters]
        optimized = OptimizedParameters(self.make_optimizer(), parameters)
        places = [p.data_ptr() for p in parameters]
        optimized.step(_numbers(1, dtype), RATE)
        assert [p.data_ptr() for p in parameters] == places
        assert all(p.dtype == dtype and bool(torch.isfinite(p).all()) for p in parameters)
        assert any(not torch.equal(p, old) for p, old in zip(parameters, before, strict=True))

    @DTYPES
    def test_models_in_a_pack_train_as_alone(self, dtype: torch.dtype) -> None:
        optimizer = self.make_optimizer()
        if not optimizer.is_elementwise:
            pytest.skip("models train one by one under this rule")
        alone = [_numbers(slot, dtype) for slot in range(SLOTS)]
        together = _stacked(alone)
        solo = [OptimizedParameters(self.make_optimizer(), parameters) for parameters in alone]
        pack = OptimizedParameters(optimizer, together, slots=SLOTS)
        for step in range(STEPS):
            gradients = [_numbers(100 + step * SLOTS + slot, dtype) for slot in range(SLOTS)]
            idle = [1] if step == 2 else []
            for slot in idle:  # a model that takes no part in a step has no gradients there
                gradients[slot] = [torch.zeros_like(gradient) for gradient in gradients[slot]]
            pack.step(_stacked(gradients), RATE, idle)
            for slot in set(range(SLOTS)) - set(idle):
                solo[slot].step(gradients[slot], RATE)
        for slot in range(SLOTS):
            for one, several in zip(alone[slot], together, strict=True):
                assert torch.equal(one, several[slot]), "round after each operation: no add(alpha=...), addcmul or lerp"

    def test_without_gap_reasons_a_step_subtracts_the_rate_times_the_gradient(self) -> None:
        optimizer = self.make_optimizer()
        if optimizer.identity_gap_reasons():
            pytest.skip("the rule states why the tracking identities do not hold")
        parameters = _numbers(0, torch.float64)
        optimized = OptimizedParameters(optimizer, parameters)
        for step in range(STEPS):
            before, gradients = [p.clone() for p in parameters], _numbers(step + 1, torch.float64)
            optimized.step(gradients, RATE)
            for parameter, old, gradient in zip(parameters, before, gradients, strict=True):
                torch.testing.assert_close(parameter, old - RATE * gradient)

    def test_sparse_gradients_are_steps_of_dense_ones(self) -> None:
        if not self.make_optimizer().accepts_sparse_gradients:
            pytest.skip("the rule takes no sparse gradients")
        gradient = torch.zeros(5, 2, dtype=torch.float64)
        gradient[[1, 3]] = 1.0
        found = []
        for one in (gradient, gradient.to_sparse(1)):
            parameter = torch.ones(5, 2, dtype=torch.float64)
            OptimizedParameters(self.make_optimizer(), [parameter]).step([one], RATE)
            found.append(parameter)
        torch.testing.assert_close(found[0], found[1])
        assert torch.equal(found[0][[0, 2, 4]], torch.ones(3, 2, dtype=torch.float64))


def _numbers(seed: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]


def _stacked(models: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [torch.stack(list(tensors)) for tensors in zip(*models, strict=True)]
