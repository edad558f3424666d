"""The neural tangent kernel in the metric of an adaptive optimizer."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from genrep_dist.core.kernels.base import FeatureKernel, KernelSizes
from genrep_dist.core.kernels.ntk import NeuralTangentKernel

if TYPE_CHECKING:
    from torch import Tensor, nn

    from genrep_dist.core.gradients.factored import FactoredGradients
    from genrep_dist.core.gradients.inspection import ModelInspection


class PreconditionedTangentKernel(NeuralTangentKernel):
    """K[b, c, m] = df_c(x_b)/dtheta D^-1 df_{c_m}(x_m)/dtheta, with D the optimizer's preconditioner at the checkpoint.

    A step of the optimizer is -eta D^-1 gradient, so with a constant D and no momentum, tracking's sum over the training set is the change
    of a model that is linear in its parameters. Adam's D is sqrt(v) + eps. Features are dense, since D mixes with the layers' factors.
    """

    name = "ntk-adam"
    formula = "<df/dtheta(x_i), D^-1 df/dtheta(x)>"
    source = "neural tangent kernel in the metric of the optimizer, D = sqrt(v) + eps for Adam"
    needs = ("gradients", "preconditioner")
    needs_preconditioner = True

    def __init__(self, projection: Any = None) -> None:
        super().__init__(projection)
        self._root: Tensor | None = None
        """D^-1/2 (P,) float64; None: D = 1, for sizes."""

    @classmethod
    def supports(cls, checkpoint: str, *, needs_gram: bool) -> bool:
        """Not at the initial parameters, where the optimizer has not seen a gradient."""
        del needs_gram
        return checkpoint not in ("initial", "epoch0")

    def at_preconditioner(self, preconditioner: Tensor) -> FeatureKernel:
        bound = copy.copy(self)
        bound._root = preconditioner.double().rsqrt()
        return bound

    def notes(self) -> list[str]:
        return [
            *super().notes(),
            f"Kernel {self.name} is in the optimizer's metric at the checkpoint. Tracking then sums up what training did to a model that "
            "is linear in its parameters if the metric never changed and there was no momentum; `genrep doctor` measures the gap.",
        ]

    def sizes(self, model: nn.Module, inputs: Tensor) -> KernelSizes:
        sizes = super().sizes(model, inputs)
        dense = sizes.gram_rows * self.num_parameters(model, inputs)
        if self.projection is not None:
            return replace(sizes, held=sizes.held + dense)
        return replace(sizes, held=2 * dense, expanded=0, products=dense, stored_bytes=4 * dense)

    def _width(self, inspection: ModelInspection) -> int:
        # Whole gradients are scaled, so no layer has factors.
        return self._projection().width((), sum(math.prod(shape) for _, shape in inspection.parameters))

    def features(self, model: nn.Module, inputs: Tensor, outputs: Tensor | None = None) -> FactoredGradients:
        from genrep_dist.core.gradients.factored import FactoredGradients
        from genrep_dist.core.gradients.per_sample import per_sample_gradients

        dense = per_sample_gradients(model, inputs, outputs)
        dense = dense.unsqueeze(1) if outputs is not None else dense
        if self._root is not None:
            dense.mul_(self._root.to(dense))
        shapes = (("preconditioned", (dense.shape[2],)),)
        rows = FactoredGradients((), (), dense.float(), shapes, shapes)
        return rows if self.projection is None else self._projection().project(rows)

    def reference(self, model: nn.Module, train: Tensor, test: Tensor, outputs: Tensor, num_outputs: int) -> tuple[Tensor, Tensor]:
        import torch

        from genrep_dist.core.gradients.reference import one_by_one

        root = 1.0 if self._root is None else self._root.to(train.device)
        points = torch.stack([one_by_one(model, x, c).double() * root for x, c in zip(test, outputs.tolist(), strict=True)])
        block = torch.empty(len(train), num_outputs, len(test), dtype=torch.float64)
        norms = torch.empty(len(train), num_outputs, 1, dtype=torch.float64)
        for row, sample in enumerate(train):
            for output in range(num_outputs):
                gradient = one_by_one(model, sample, output).double() * root
                block[row, output], norms[row, output] = points @ gradient, gradient.norm()
        return block, norms * points.norm(dim=1).cpu()
