"""TRAK's kernel: gradients in the metric of the margins' gradient products (Park et al. 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from genrep_dist.core.kernels.influence import InfluenceKernel
from genrep_dist.errors import ProblemError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from genrep_dist.core.kernels.base import DerivedInputs
    from genrep_dist.core.losses import Loss


class TrakKernel(InfluenceKernel):
    """K = J (G + delta I)^-1 g with G = (1/N) sum_j J_j^T w_j w_j^T J_j, w_j the derivative of sample j's margin in the outputs.

    With the importance `target` and the target `margin` that is TRAK of one model: -dL/df = (1 - p) w. For a loss whose outputs are those
    of no classes w is 1 for one output, and the kernel that of the Gauss-Newton matrix of the squared loss. Damping and the system, dual or
    primal, are those of the section ``influence``; its curvature is not read. TRAK projects the gradients (``projection``) and has no
    damping; without a projection G has no inverse where P is above N.
    """

    name = "trak"
    formula = "df/dtheta(x_i)^T (G + delta I)^-1 df/dtheta(x), G = (1/N) sum_j dm_j/dtheta dm_j/dtheta^T of the margins m_j"
    source = "TRAK, Park et al. 2023, Eq. 14"

    @classmethod
    def supports(cls, checkpoint: str, *, needs_gram: bool) -> bool:
        """At every checkpoint: the margins' matrix is positive semi-definite wherever it is taken."""
        del checkpoint
        return not needs_gram

    def key_settings(self) -> tuple[str, ...]:
        return ("influence", "projection")

    @property
    def base(self) -> str | None:
        return "ntk"

    def summary(self) -> str:
        return super().summary().replace(f"curvature {self.options.curvature}", "curvature of the margins", 1)

    def check_curvature(self, flat_share: float) -> None:
        """The margins have gradients whatever the loss."""
        del flat_share

    def model_notes(self, model: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor) -> list[str]:
        """None. Raises ProblemError for targets without margins, before anything is trained."""
        import torch

        from genrep_dist.core.gradients.model import model_outputs

        del loss
        with torch.no_grad():
            margin_slopes(model_outputs(model, inputs).detach().cpu(), targets.cpu())
        return []

    def _curvature(self, inputs: DerivedInputs) -> Tensor:
        """The margins' w w^T (N, C, C) at the training outputs."""
        slopes = margin_slopes(inputs.outputs(), inputs.targets.cpu())
        return slopes.unsqueeze(2) * slopes.unsqueeze(1)


def margin_slopes(outputs: Tensor, targets: Tensor) -> Tensor:
    """The derivative w (N, C) of the margin log p_y / (1 - p_y) in ``outputs`` (N, C), for class numbers ``targets`` (N,).

    For one output it is 1: only its square is used. ProblemError for several outputs without class numbers.
    """
    import torch

    from genrep_dist.core.function_targets import MarginTarget, TargetInputs
    from genrep_dist.core.losses import get_loss

    if outputs.shape[1] == 1:
        return torch.ones_like(outputs)
    if targets.dim() != 1 or targets.is_floating_point():
        raise ProblemError(
            "TRAK needs the margin of each training sample's class",
            where="methods: trak, or trak-final/...",
            expected="class numbers int64 (N,) as targets, or a model of one output",
            got=f"{targets.dtype} {tuple(targets.shape)}",
            remedy="leave this method out; the kernel influence has no such need",
        )
    return MarginTarget("label").derivative(outputs, TargetInputs(targets, targets, get_loss("softmax")))
