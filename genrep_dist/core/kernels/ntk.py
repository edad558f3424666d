"""The neural tangent kernel: inner products of gradients with respect to all trained parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from genrep_dist.core.kernels.base import FeatureKernel, KernelSizes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from genrep_dist.core.gradients.factored import FactoredGradients
    from genrep_dist.core.gradients.factored_projection import FactoredProjection
    from genrep_dist.core.gradients.inspection import ModelInspection
    from genrep_dist.core.gradients.projection import Projection
    from genrep_dist.core.kernels.base import Rows

MEASURED_ROWS = 2
"""Rows on which layers are inspected; stored bytes are measured on all rows that are given."""
PROJECTION_DEVIATIONS = 6
"""Standard deviations within which every one of a few thousand million projected products lies."""


class NeuralTangentKernel(FeatureKernel):
    """K[b, c, m] = <df_c(x_b)/dtheta, df_{c_m}(x_m)/dtheta> (Eq. 13), from factored gradients or random projections of them."""

    name = "ntk"
    formula = "<df/dtheta(x_i), df/dtheta(x)>"
    source = "neural tangent kernel, Jacot et al. 2018; Tsai et al. 2023, Eq. 13"
    needs: ClassVar[tuple[str, ...]] = ("gradients",)
    settings = ("projection",)
    factored = True
    takes_weights = True

    def __init__(self, projection: Any = None) -> None:
        self.projection = projection

    def notes(self) -> list[str]:
        if self.projection is None:
            return []
        is_factored = self.projection.kind == "factored"
        size = f"{self.projection.dim:,} random numbers" + (" of each layer" if is_factored else "")
        off = f"at most {self._projection().error:.2g}" if is_factored else f"about {self.projection.dim**-0.5:.2g}"
        return [
            f"Features of the NTK are projected to {size} ({self.projection.kind}, seed {self.projection.seed}): kernel values are off by "
            f"{off} of |g_i| |g_j|, and so is all that is computed from them."
        ]

    def sizes(self, model: nn.Module, inputs: Tensor) -> KernelSizes:
        from genrep_dist.core.gradients.inspection import feature_sizes, inspect_model, slow_layers
        from genrep_dist.core.gradients.kronecker_layers import kronecker_sizes
        from genrep_dist.core.gradients.model import num_parameters

        inspection = inspect_model(model, inputs[:MEASURED_ROWS])
        sizes = feature_sizes(inspection)
        held, stored, products = sizes.numel, 0, sizes.multiply_adds
        kronecker = kronecker_sizes(inspection)
        if self.projection is not None:
            kept = inspection.num_outputs * self._width(inspection)
            held, stored, products = held + kept, 4 * kept, inspection.num_outputs * kept
        return KernelSizes(
            gram_rows=inspection.num_outputs,
            held=held,
            expanded=sizes.operand_numel,
            products=products,
            stored_bytes=stored,
            factored=True,
            slow_layers=tuple(slow_layers(inspection)),
            dimension=self._width(inspection) if self.projection is not None else num_parameters(model),
            modules=len({name.rpartition(".")[0] for name, _ in inspection.parameters}),
            kronecker_numel=kronecker.factor_numel,
            kronecker_work_numel=kronecker.work_numel,
        )

    def num_parameters(self, model: nn.Module, inputs: Tensor) -> int:
        from genrep_dist.core.gradients.model import num_parameters

        del inputs
        return num_parameters(model)

    def features(self, model: nn.Module, inputs: Tensor, outputs: Tensor | None = None) -> FactoredGradients:
        import torch

        from genrep_dist.core.gradients.factored import FactoredGradients
        from genrep_dist.core.gradients.per_sample import iter_factored_gradients

        # A pass at a time, so that gradients in float64 are never held for more rows than that.
        rows = FactoredGradients.cat([part.to(torch.float32) for part in iter_factored_gradients(model, inputs, outputs)])
        return rows if self.projection is None else self._projection().project(rows)

    def rows_per_pass(self, model: nn.Module, inputs: Tensor) -> int | None:
        from genrep_dist.core.gradients.inspection import inspect_model

        return inspect_model(model, inputs[:MEASURED_ROWS]).batch_size

    def block(self, train: Rows, test: Any, outputs: Tensor, num_outputs: int) -> Tensor:
        del outputs  # the test features are of the declared outputs already
        products: Tensor = test.inner(train)
        return products.T.reshape(len(train), num_outputs, -1)

    def diagonal(self, rows: Rows, outputs: Tensor, num_outputs: int) -> Tensor:
        del num_outputs
        return rows.self_product(outputs)  # type: ignore[union-attr]

    def reference(self, model: nn.Module, train: Tensor, test: Tensor, outputs: Tensor, num_outputs: int) -> tuple[Tensor, Tensor]:
        import torch

        from genrep_dist.core.gradients.reference import one_by_one
        from genrep_dist.core.kernels.blocks import ntk_block

        gradients = torch.stack([one_by_one(model, x, c).double() for x, c in zip(test, outputs.tolist(), strict=True)])
        block = torch.empty(len(train), num_outputs, len(test), dtype=torch.float64)
        norms = torch.empty(len(train), num_outputs, 1, dtype=torch.float64)
        for row, sample in enumerate(train):
            for output in range(num_outputs):  # one at a time: a whole Jacobian may not fit memory
                gradient = one_by_one(model, sample, output).double()
                block[row, output], norms[row, output] = ntk_block(gradient[None, None], gradients)[0, 0], gradient.norm()
        return block, norms * gradients.norm(dim=1).cpu()

    def tolerance(self) -> tuple[float, str] | None:
        if self.projection is None:
            return None
        deviation = self._projection().error
        each = " of each layer" if self.projection.kind == "factored" else ""
        reason = f"{PROJECTION_DEVIATIONS} standard deviations of a projection to {self.projection.dim:,} numbers{each}, {deviation:.2g}"
        return PROJECTION_DEVIATIONS * deviation, reason

    def _width(self, inspection: ModelInspection) -> int:
        """Numbers of a projected gradient."""
        return self._projection().width(inspection.weights, inspection.rest_numel)

    def _projection(self) -> Projection | FactoredProjection:
        from genrep_dist.core.gradients.factored_projection import FactoredProjection
        from genrep_dist.core.gradients.projection import Projection

        if self.projection.kind == "factored":
            return FactoredProjection(self.projection.dim, self.projection.seed)
        return Projection(self.projection.dim, self.projection.kind, self.projection.seed)
