"""Conformance tests of kernels.

.. code-block:: python

    from genrep_dist.testing import FeatureKernelTests

    class TestMyKernel(FeatureKernelTests):
        def make_kernel(self):
            return MyKernel()

Models are small networks with one and with three outputs; override :meth:`make_model` for a kernel that is defined for others.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genrep_dist.core.gradients.factored import FactoredGradients
from genrep_dist.core.gradients.per_sample import per_sample_gradients
from genrep_dist.core.gradients.reference import one_by_one
from genrep_dist.core.kernels.base import DerivedKernel, FeatureKernel, Kernel, PairwiseKernel
from genrep_dist.core.kernels.last_layer import LastLayerKernel
from genrep_dist.core.losses import Loss, get_loss

NUM_TRAIN, NUM_TEST, NUM_FEATURES = 9, 4, 5
ROUNDING = 1e-4
"""Of float32 features, relative to the product of norms."""
OUTPUTS = pytest.mark.parametrize("num_outputs", [1, 3])


class KernelTests:
    """What all kinds of kernels share: a description, and a model to be computed for."""

    def make_kernel(self) -> Kernel:
        raise NotImplementedError("return the kernel that is tested")

    def make_model(self, num_outputs: int) -> nn.Module:
        """A network for inputs (B, 5), in evaluation mode."""
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(NUM_FEATURES, 6), nn.Tanh(), nn.Linear(6, num_outputs)).eval()

    def inputs(self, rows: int, seed: int) -> Tensor:
        """Inputs (rows, ...) of the model."""
        return torch.randn(rows, NUM_FEATURES, generator=torch.Generator().manual_seed(seed))

    def outputs(self, rows: int, num_outputs: int) -> Tensor:
        """The declared outputs (rows,)."""
        return torch.arange(rows) % num_outputs

    def test_it_describes_itself(self) -> None:
        kernel = self.make_kernel()
        assert kernel.formula
        assert kernel.source
        assert set(kernel.key_settings()) <= set(kernel.settings)


class FeatureKernelTests(KernelTests):
    """A feature kernel against its own slow reference, and against the properties of an inner product."""

    def make_kernel(self) -> FeatureKernel:
        raise NotImplementedError("return the kernel that is tested")

    def block(self, num_outputs: int) -> Tensor:
        kernel, model = self.make_kernel(), self.make_model(num_outputs)
        outputs = self.outputs(NUM_TEST, num_outputs)
        train = kernel.features(model, self.inputs(NUM_TRAIN, 1))
        test = _prepared(kernel.features(model, self.inputs(NUM_TEST, 2), outputs))
        return kernel.block(train, test, outputs, num_outputs)

    @OUTPUTS
    def test_a_block_agrees_with_the_reference(self, num_outputs: int) -> None:
        kernel, model = self.make_kernel(), self.make_model(num_outputs)
        outputs = self.outputs(NUM_TEST, num_outputs)
        expected, scale = kernel.reference(model, self.inputs(NUM_TRAIN, 1), self.inputs(NUM_TEST, 2), outputs, num_outputs)
        block = self.block(num_outputs)
        assert block.shape == expected.shape == scale.shape == (NUM_TRAIN, num_outputs, NUM_TEST)
        tolerance = kernel.tolerance()
        bound = ROUNDING if tolerance is None else tolerance[0]
        assert bool(((block.double() - expected).abs() <= bound * scale + 1e-30).all())

    @OUTPUTS
    def test_rows_do_not_depend_on_the_batch(self, num_outputs: int) -> None:
        kernel, model = self.make_kernel(), self.make_model(num_outputs)
        inputs, outputs = self.inputs(NUM_TRAIN, 1), self.outputs(NUM_TEST, num_outputs)
        test = _prepared(kernel.features(model, self.inputs(NUM_TEST, 2), outputs))
        single = [kernel.block(kernel.features(model, inputs[i : i + 1]), test, outputs, num_outputs) for i in range(NUM_TRAIN)]
        whole = self.block(num_outputs)
        torch.testing.assert_close(torch.cat(single), whole, rtol=1e-4, atol=1e-5 * float(whole.abs().max()))

    @OUTPUTS
    def test_the_diagonal_is_that_of_a_block(self, num_outputs: int) -> None:
        kernel, model = self.make_kernel(), self.make_model(num_outputs)
        inputs, own = self.inputs(NUM_TRAIN, 1), self.outputs(NUM_TRAIN, num_outputs)
        features = kernel.features(model, inputs)
        block = kernel.block(features, _prepared(kernel.features(model, inputs, own)), own, num_outputs)
        samples = torch.arange(NUM_TRAIN)
        diagonal = kernel.diagonal(features, own, num_outputs)
        torch.testing.assert_close(diagonal.double(), block[samples, :, samples].double(), rtol=1e-4, atol=1e-5 * float(block.abs().max()))

    @OUTPUTS
    def test_the_gram_is_positive_semi_definite(self, num_outputs: int) -> None:
        kernel, model = self.make_kernel(), self.make_model(num_outputs)
        features = kernel.features(model, self.inputs(NUM_TRAIN, 1))
        dense = features.to_dense() if isinstance(features, FactoredGradients) else features
        flat = dense.reshape(-1, dense.shape[-1]).double()
        sizes = kernel.sizes(model, self.inputs(2, 1))
        assert len(flat) == NUM_TRAIN * sizes.gram_rows
        assert kernel.factored == sizes.factored == isinstance(features, FactoredGradients)
        eigenvalues = torch.linalg.eigvalsh(flat @ flat.T)
        assert float(eigenvalues[0]) >= -1e-6 * float(eigenvalues[-1])

    def test_weights_of_training_samples_combine_the_outputs(self) -> None:
        """Of a kernel that takes weights, where outputs do not share features: the block of features of one output."""
        kernel, model, inputs, num_outputs = self.make_kernel(), self.make_model(3), self.inputs(NUM_TRAIN, 1), 3
        if kernel.takes_weights and kernel.sizes(model, inputs[:2]).gram_rows == num_outputs:
            weights = torch.randn(NUM_TRAIN, num_outputs, generator=torch.Generator().manual_seed(3))
            features = kernel.features(model, inputs, weights)
            rows = features if isinstance(features, FactoredGradients) else features.unsqueeze(1)
            test = _prepared(kernel.features(model, self.inputs(NUM_TEST, 2), self.outputs(NUM_TEST, num_outputs)))
            found = kernel.block(rows, test, torch.zeros(NUM_TEST, dtype=torch.int64), 1).squeeze(1)
            expected = torch.einsum("bc,bcm->bm", weights, self.block(num_outputs))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))

    @OUTPUTS
    def test_sizes_are_those_of_the_features(self, num_outputs: int) -> None:
        kernel, model = self.make_kernel(), self.make_model(num_outputs)
        sizes = kernel.sizes(model, self.inputs(2, 1))
        assert min(sizes.held, sizes.products, sizes.gram_rows) > 0
        features = kernel.features(model, self.inputs(NUM_TRAIN, 1))
        if not isinstance(features, FactoredGradients):
            assert features.dtype == torch.float32
            assert (sizes.held, sizes.stored_bytes) == (features[0].numel(), 4 * features[0].numel())
        assert kernel.num_parameters(model, self.inputs(2, 1)) <= sum(p.numel() for p in model.parameters())


class PairwiseKernelTests(KernelTests):
    """A kernel of pairs of inputs: symmetric, positive semi-definite, and the same for any batch."""

    def make_kernel(self) -> PairwiseKernel:
        raise NotImplementedError("return the kernel that is tested")

    @OUTPUTS
    def test_it_is_a_mercer_kernel_of_single_pairs(self, num_outputs: int) -> None:
        kernel, model, inputs = self.make_kernel(), self.make_model(num_outputs), self.inputs(NUM_TRAIN, 1)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with torch.no_grad():
            gram = kernel.pairs(model, inputs, inputs)
            single = torch.stack([torch.cat([kernel.pairs(model, a[None], b[None])[0] for b in inputs]) for a in inputs])
        assert gram.shape == (NUM_TRAIN, NUM_TRAIN)
        assert gram.is_floating_point()
        torch.testing.assert_close(gram, single, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(gram, gram.T, rtol=1e-4, atol=1e-5)
        eigenvalues = torch.linalg.eigvalsh(gram.double())
        assert float(eigenvalues[0]) >= -1e-5 * float(eigenvalues[-1])
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "the kernel changed the model"


class DerivedKernelTests(KernelTests):
    """A derived kernel on dense float64 gradients of a small model."""

    def make_kernel(self) -> DerivedKernel:
        raise NotImplementedError("return the kernel that is tested")

    @OUTPUTS
    def test_a_kernel_of_the_training_set_with_itself_is_symmetric_and_positive(self, num_outputs: int) -> None:
        kernel, own = self.make_kernel(), self.outputs(NUM_TRAIN, num_outputs)
        inputs = DenseInputs(self.make_model(num_outputs), self.inputs(NUM_TRAIN, 1), self.inputs(NUM_TRAIN, 1), own)
        block, certificate = kernel.columns(inputs)
        assert block.shape == (NUM_TRAIN, num_outputs, NUM_TRAIN)
        assert float(certificate["residual"]) < 1e-3
        square = block[torch.arange(NUM_TRAIN), own]
        torch.testing.assert_close(square, square.T, rtol=1e-3, atol=1e-3 * float(square.abs().max()))
        eigenvalues = torch.linalg.eigvalsh((square + square.T) / 2)
        assert float(eigenvalues[0]) >= -1e-3 * float(eigenvalues[-1])

    @OUTPUTS
    def test_the_rows_that_it_writes_are_those_of_the_columns(self, num_outputs: int) -> None:
        kernel, outputs, found = self.make_kernel(), self.outputs(NUM_TEST, num_outputs), list[Tensor]()
        inputs = DenseInputs(self.make_model(num_outputs), self.inputs(NUM_TRAIN, 1), self.inputs(NUM_TEST, 2), outputs)

        def write(start: int, block: Tensor) -> None:
            if start == 0:
                found.clear()
            assert start == sum(map(len, found)), "blocks are consecutive rows"
            found.append(block)

        certificate = kernel.write_rows(inputs, write)
        block, other = kernel.columns(inputs)
        assert torch.equal(torch.cat(found), block)
        assert certificate == other

    @OUTPUTS
    def test_the_diagonal_is_that_of_the_columns(self, num_outputs: int) -> None:
        kernel, own = self.make_kernel(), self.outputs(NUM_TRAIN, num_outputs)
        if not kernel.has_diagonal:
            pytest.skip("the kernel has no diagonal")
        outputs = self.outputs(NUM_TEST, num_outputs)
        inputs = DenseInputs(self.make_model(num_outputs), self.inputs(NUM_TRAIN, 1), self.inputs(NUM_TEST, 2), outputs)
        columns, _ = kernel.columns(inputs, own)
        plain, _ = kernel.columns(inputs)
        samples = torch.arange(NUM_TRAIN)
        torch.testing.assert_close(columns[:, :, :NUM_TEST], plain, rtol=1e-8, atol=1e-10)
        diagonal = kernel.diagonal(inputs, own)
        torch.testing.assert_close(columns[samples, :, NUM_TEST + samples], diagonal, rtol=1e-8, atol=1e-10)

    def test_memory_and_work_are_positive_and_grow(self) -> None:
        kernel = self.make_kernel()
        small, large = (kernel.peak_bytes(n, 1, 100, 4, 1000, diagonal=False) for n in (100, 1000))
        assert 0 < small <= large
        works = [kernel.work(n, 1, 4) for n in (100, 1000)]
        assert works[0].multiply_adds + works[0].gradient_rows < works[1].multiply_adds + works[1].gradient_rows
        assert kernel.summary()


class DenseInputs:
    """:class:`~genrep_dist.core.kernels.base.DerivedInputs` of a small float64 model, by one backward pass for each sample and output."""

    def __init__(self, model: nn.Module, train: Tensor, test: Tensor, outputs: Tensor) -> None:
        self._model = model.double()
        self._test, self._outputs = test.double(), outputs
        self.train_inputs, self.block_rows, self.product_rows = train.double(), 4, 4
        with torch.no_grad():
            self._predictions: Tensor = self._model(self.train_inputs)
        num_outputs = self._predictions.shape[1]
        self.loss: Loss = get_loss("logistic" if num_outputs == 1 else "softmax")
        self.targets = (torch.arange(len(train)) % 2).double() if num_outputs == 1 else torch.arange(len(train)) % num_outputs

    def model(self) -> nn.Module:
        return self._model

    def gram(self, kernel: str) -> Tensor:
        rows = self._features(kernel, self.train_inputs).flatten(0, 1)
        return rows @ rows.T

    def cross(self, kernel: str) -> Tensor:
        return torch.einsum("ncp,mp->ncm", self._features(kernel, self.train_inputs), self.test_features(kernel))

    def outputs(self) -> Tensor:
        return self._predictions

    def num_parameters(self, kernel: str) -> int:
        return int(self._features(kernel, self.train_inputs).shape[2])

    def width(self, kernel: str) -> int:
        return self.num_parameters(kernel)

    def train_features(self, kernel: str, start: int, stop: int) -> Tensor:
        return self._features(kernel, self.train_inputs)[start:stop]

    def test_features(self, kernel: str) -> Tensor:
        return self._features(kernel, self._test)[torch.arange(len(self._test)), self._outputs]

    def train_gradients(self, start: int, stop: int) -> Tensor:
        return per_sample_gradients(self._model, self.train_inputs[start:stop])

    def test_gradients(self) -> Tensor:
        return per_sample_gradients(self._model, self._test, self._outputs)

    def seed(self, purpose: str) -> int:
        return len(purpose)

    def _features(self, kernel: str, inputs: Tensor) -> Tensor:
        """Jacobians (B, C, P) with respect to all parameters, or to the last layer's for the kernel of that name."""
        jacobians = torch.stack([one_by_one(self._model, sample) for sample in inputs])
        if kernel != LastLayerKernel.name:
            return jacobians
        last = list(self._model.children())[-1]
        return jacobians[:, :, -sum(p.numel() for p in last.parameters()) :]


def _prepared(features: Any) -> Any:
    return features.as_operand() if isinstance(features, FactoredGradients) else features
