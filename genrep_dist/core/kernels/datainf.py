"""DataInf's kernel: gradients in the metric of an average of inverses (Kwon et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar

from genrep_dist.core.kernels.base import DerivedInputs
from genrep_dist.core.kernels.preconditioned import PreconditionedKernel

if TYPE_CHECKING:
    from torch import Tensor

    from genrep_dist.core.gradients.factored import NamedShapes
    from genrep_dist.core.solvers.datainf import DataInf

SOLVE_COPIES, NORM_COPIES, OUTPUT_COPIES = 3, 2, 4
"""Float64 copies of the test points' gradients (M, P) in a solve, of the squared norms (N, L) while blocks are put together, and of the
outputs (N, C) with the loss's derivatives.
"""


class DataInfKernel(PreconditionedKernel):
    """K = J S g with S_l = (1/N) sum_j (g_j g_j^T + delta_l I)^-1 of each layer l, g_j the loss gradients of training samples.

    S has the empirical Fisher matrix's rank-one terms, each inverted by itself. A layer is a module with trained parameters of its own: its
    weight and bias are one block. Damping is that of the section ``influence``, relative to the mean eigenvalue of each layer; the authors
    have 0.1. Its curvature and system are not read.
    """

    name = "datainf"
    formula = "df/dtheta(x_i)^T S df/dtheta(x), S = (1/N) sum_j (g_j g_j^T + delta I)^-1 by layers, g_j = dL/dtheta(x_j)"
    source = "DataInf, Kwon et al. 2024"
    passes: ClassVar[int] = 2

    def preconditioner(self, inputs: DerivedInputs) -> _Solved:
        from genrep_dist.core.gradients.inspection import inspect_model
        from genrep_dist.core.solvers.datainf import DataInf

        sizes = layer_sizes(inspect_model(inputs.model(), inputs.train_inputs[:2]).parameters)
        weights = inputs.loss.derivative(inputs.outputs(), inputs.targets.cpu())
        relative = self.options.damping_unit == "mean-eigenvalue"
        return _Solved(DataInf(lambda: _loss_gradients(inputs, weights), sizes, damping=self.options.damping, relative=relative))

    def preconditioner_bytes(self, num_outputs: int, num_parameters: int, num_test: int) -> int:
        return 8 * SOLVE_COPIES * num_test * num_parameters

    def peak_bytes(self, num_train: int, num_outputs: int, num_parameters: int, num_test: int, dense_bytes: int, *, diagonal: bool) -> int:
        """And for each training sample the squared norms by layers, the outputs and the loss's derivatives."""
        whole = super().peak_bytes(num_train, num_outputs, num_parameters, num_test, dense_bytes, diagonal=diagonal)
        return whole + 8 * num_train * (NORM_COPIES * self._base_sizes.modules + OUTPUT_COPIES * num_outputs)

    def summary(self) -> str:
        return f"DataInf, {super().summary()}" + (" of each layer" if self.options.damping_unit != "absolute" else "")


class _Solved:
    """As :class:`~genrep_dist.core.kernels.preconditioned.Preconditioner`."""

    def __init__(self, found: DataInf) -> None:
        self._found = found

    def solve(self, vectors: Tensor) -> Tensor:
        return self._found.solve(vectors)

    def certificate(self, vectors: Tensor, solution: Tensor) -> dict[str, Any]:
        del vectors, solution
        return asdict(self._found.certify())


def layer_sizes(parameters: NamedShapes) -> list[int]:
    """Numbers of each module's own parameters, which lie together in the vector of P."""
    modules = groupby(parameters, key=lambda entry: entry[0].rpartition(".")[0])
    return [sum(math.prod(shape) for _, shape in own) for _, own in modules]


def _loss_gradients(inputs: DerivedInputs, weights: Tensor) -> Iterator[Tensor]:
    """DL/dtheta (B, P) of the training samples by blocks, from the loss's derivatives ``weights`` (N, C): one backward pass a sample."""
    from genrep_dist.core.gradients.per_sample import per_sample_gradients

    model = inputs.model()
    dtype = next(parameter.dtype for parameter in model.parameters() if parameter.requires_grad)
    for start in range(0, len(weights), inputs.block_rows):
        rows = inputs.train_inputs[start : start + inputs.block_rows]
        yield per_sample_gradients(model, rows, weights[start : start + inputs.block_rows].to(rows.device, dtype))
