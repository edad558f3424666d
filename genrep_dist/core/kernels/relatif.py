"""RelatIF: influence relative to what a training sample does to the model as a whole (Barshan, Brunet and Dziugaite 2020)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from genrep_dist.core.kernels.base import DerivedInputs, RowWriter, Work
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
        return _divided(block, self._divisors(inputs)), certificate

    def write_rows(self, inputs: DerivedInputs, write: RowWriter) -> dict[str, Any]:
        if self._sized(inputs).reads_gram:
            return super().write_rows(inputs, write)
        divisors = self._divisors(inputs)
        return super().write_rows(inputs, lambda start, rows: write(start, _divided(rows, divisors[start : start + len(rows)])))

    def diagonal(self, inputs: DerivedInputs, own_outputs: Tensor) -> Tensor:
        return _divided(super().diagonal(inputs, own_outputs).unsqueeze(2), self._divisors(inputs))[:, :, 0]

    def peak_bytes(self, num_train: int, num_outputs: int, num_parameters: int, num_test: int, dense_bytes: int, *, diagonal: bool) -> int:
        """That of a kernel with its diagonal: every training sample is a column of the system."""
        del diagonal
        return super().peak_bytes(num_train, num_outputs, num_parameters, num_test, dense_bytes, diagonal=True)

    def work(self, num_train: int, num_outputs: int, num_test: int) -> Work:
        """Two factorisations: of the kernel, and of the divisors."""
        one = super().work(num_train, num_outputs, num_test + num_train)
        return Work(2 * one.multiply_adds, 2 * one.gradient_rows)

    def _divisors(self, inputs: DerivedInputs) -> Tensor:
        """The roots (N,) of the samples' influences on their own losses."""
        alpha = inputs.loss.derivative(inputs.outputs(), inputs.targets.cpu()).double()
        return self._own_products(inputs, alpha).clamp(min=0).sqrt()


def _divided(block: Tensor, divisors: Tensor) -> Tensor:
    """``block`` (B, C, M) with rows divided by ``divisors`` (B,), and 0 where these are."""
    import torch

    own = divisors[:, None, None]
    return torch.where(own > 0, block / own, 0.0)
