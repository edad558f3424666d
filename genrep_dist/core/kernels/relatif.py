"""RelatIF: influence relative to what a training sample does to the model as a whole (Barshan, Brunet and Dziugaite 2020)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from genrep_dist.core.kernels.base import DerivedInputs, Work
from genrep_dist.core.kernels.influence import BASES, InfluenceKernel
from genrep_dist.errors import MethodError

if TYPE_CHECKING:
    from torch import Tensor


class RelatifKernel(InfluenceKernel):
    """The influence kernel with each training sample's row divided by sqrt(g_i^T (H + delta I)^-1 g_i), g_i its loss gradient.

    That is the authors' l-RelatIF: influence among changes of the model that change its own predictions by one fixed amount. The divisor
    is the root of the sample's influence on its own loss. A sample without loss gradient has the kernel 0. It is no Mercer kernel, as rows
    are divided and columns are not. Curvature, system and damping are those of ``influence``, but for the true Hessian.
    """

    name = "relatif"
    formula = "df/dtheta(x_i)^T (H + delta I)^-1 df/dtheta(x) / sqrt(g_i^T (H + delta I)^-1 g_i), g_i = dL/dtheta(x_i)"
    source = "l-RelatIF, Barshan et al. 2020; Koh and Liang 2017"

    @property
    def base(self) -> str | None:
        if self.options.curvature not in BASES:
            raise MethodError(
                "RelatIF would solve a system with the true Hessian for each training sample",
                where=f"influence.curvature: {self.options.curvature}",
                expected="one of " + ", ".join(BASES),
                got=self.options.curvature,
                remedy="choose influence.curvature: ggn, or leave the method relatif out",
            )
        return BASES[self.options.curvature]

    def columns(self, inputs: DerivedInputs, own_outputs: Tensor | None = None) -> tuple[Tensor, dict[str, Any]]:
        block, certificate = super().columns(inputs, own_outputs)
        return self._divided(block, inputs), certificate

    def diagonal(self, inputs: DerivedInputs, own_outputs: Tensor) -> Tensor:
        return self._divided(super().diagonal(inputs, own_outputs).unsqueeze(2), inputs)[:, :, 0]

    def peak_bytes(self, num_train: int, num_outputs: int, num_parameters: int, num_test: int, dense_bytes: int, *, diagonal: bool) -> int:
        """That of a kernel with its diagonal: every training sample is a column of the system."""
        del diagonal
        return super().peak_bytes(num_train, num_outputs, num_parameters, num_test, dense_bytes, diagonal=True)

    def work(self, num_train: int, num_outputs: int, num_test: int) -> Work:
        """Two factorisations: of the kernel, and of the divisors."""
        one = super().work(num_train, num_outputs, num_test + num_train)
        return Work(2 * one.multiply_adds, 2 * one.gradient_rows)

    def _divided(self, block: Tensor, inputs: DerivedInputs) -> Tensor:
        """``block`` (N, C, M) with rows divided by the roots of the samples' influences on their own losses."""
        import torch

        alpha = inputs.loss.derivative(inputs.outputs(), inputs.targets.cpu()).double()
        divisors = self._own_products(inputs, alpha).clamp(min=0).sqrt()[:, None, None]
        return torch.where(divisors > 0, block / divisors, 0.0)
