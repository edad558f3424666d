"""EK-FAC influence: the influence kernel with a Kronecker-factored curvature of corrected eigenvalues."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar

from genrep_dist.core.kernels.base import DerivedInputs
from genrep_dist.core.kernels.influence import refuse_flat_loss
from genrep_dist.core.kernels.preconditioned import PreconditionedKernel

if TYPE_CHECKING:
    from torch import Tensor, nn

    from genrep_dist.core.gradients.factored import FactoredGradients
    from genrep_dist.core.losses import Loss
    from genrep_dist.core.solvers.kronecker import KroneckerCurvature

FACTOR_COPIES, TABLE_COPIES, CURVATURE_COPIES = 4, 3, 6
"""Float64 copies of the layers' covariances with their eigenvectors, of the P eigenvalues, and of the loss's second derivatives."""


class EkfacKernel(PreconditionedKernel):
    """K = J (H_ek + delta)^-1 g, with H_ek the curvature of :class:`~genrep_dist.core.solvers.kronecker.KroneckerCurvature`.

    The pseudo-gradients are, by `ekfac.fisher`, those of the Gauss-Newton matrix (without a draw: roots of the loss's second derivative)
    or of the empirical Fisher matrix (the loss's own gradients). Damping is that of the section ``influence``; its curvature and system are
    not read. Linear layers and convolutions have Kronecker factors, all other parameters a diagonal.
    """

    name = "ekfac"
    formula = "df/dtheta(x_i)^T (H_ek + delta)^-1 df/dtheta(x), H_ek = Q diag(Lambda) Q^T by layers, Q = Q_S x Q_A"
    source = "EK-FAC, George et al. 2018; influence functions with it, Grosse et al. 2023"
    needs: ClassVar[tuple[str, ...]] = ("gradients", "layer inputs")
    settings: ClassVar[tuple[str, ...]] = ("influence", "ekfac")
    passes: ClassVar[int] = 2

    def __init__(self, influence: Any, ekfac: Any) -> None:
        super().__init__(influence)
        self.ekfac = ekfac

    def preconditioner_bytes(self, num_outputs: int, num_parameters: int, num_test: int) -> int:
        sizes = self._base_sizes
        return 8 * (FACTOR_COPIES * sizes.kronecker_numel + TABLE_COPIES * num_parameters + sizes.kronecker_work_numel)

    def peak_bytes(self, num_train: int, num_outputs: int, num_parameters: int, num_test: int, dense_bytes: int, *, diagonal: bool) -> int:
        rows = num_train * num_outputs
        whole = super().peak_bytes(num_train, num_outputs, num_parameters, num_test, dense_bytes, diagonal=diagonal)
        return whole + 8 * CURVATURE_COPIES * rows * num_outputs

    def summary(self) -> str:
        fisher = "Gauss-Newton matrix" if self.ekfac.fisher == "ggn" else "empirical Fisher matrix"
        whose = {"layer": " of each layer", "model": ""}[self.ekfac.relative_to] if self.options.damping_unit != "absolute" else ""
        numbers = self._base_sizes.kronecker_numel
        factors = f", {numbers:,} numbers of Kronecker factors" if numbers else ""
        return f"EK-FAC of the {fisher}, {super().summary()}{whose}{factors}"

    def check_curvature(self, flat_share: float) -> None:
        """The Gauss-Newton matrix of a loss that is linear on all samples is zero; the empirical Fisher matrix is not."""
        if self.ekfac.fisher == "ggn" and not self.options.allow_zero_curvature:
            refuse_flat_loss(flat_share, "ekfac.fisher: ggn", "ntk", "set ekfac.fisher: empirical")

    def model_notes(self, model: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor) -> list[str]:
        """The parameters without Kronecker factors."""
        from genrep_dist.core.gradients.inspection import inspect_model
        from genrep_dist.core.gradients.kronecker_layers import kronecker_layers

        del loss, targets
        inspection = inspect_model(model, inputs)
        covered = {name for layer in kronecker_layers(inspection) for name in layer.parameters}
        others = [name for name, _ in inspection.parameters if name not in covered]
        if not others:
            return []
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        return [f"ekfac has no Kronecker factors, but a diagonal, which is coarser, for {', '.join(others[:3])}{more}"]

    def preconditioner(self, inputs: DerivedInputs) -> _Solved:
        from genrep_dist.core.gradients.inspection import inspect_model
        from genrep_dist.core.gradients.kronecker_layers import kronecker_layers
        from genrep_dist.core.solvers.kronecker import KroneckerCurvature

        inspection = inspect_model(inputs.model(), inputs.train_inputs[:2])
        weights, flat = self._weights(inputs)
        relative = self.options.damping_unit == "mean-eigenvalue"
        curvature = KroneckerCurvature(
            kronecker_layers(inspection),
            inspection.parameters,
            lambda: _blocks(inputs, weights),
            damping=self.options.damping,
            relative=relative,
            scope=self.ekfac.relative_to,
        )
        return _Solved(curvature, flat)

    def _weights(self, inputs: DerivedInputs) -> tuple[Tensor, dict[str, float]]:
        """Weights (N, C, R) of the outputs in each sample's pseudo-gradients, and the share of samples without curvature."""
        from genrep_dist.core.losses import flat_share
        from genrep_dist.core.solvers.gauss_newton import square_root

        outputs, targets = inputs.outputs(), inputs.targets.cpu()
        if self.ekfac.fisher == "empirical":
            return inputs.loss.derivative(outputs, targets).to(outputs).unsqueeze(2), {}
        curvature = inputs.loss.second_derivative(outputs, targets).to(outputs)
        flat = flat_share(curvature)
        self.check_curvature(flat)
        return square_root(curvature), {"flat_share": flat}


class _Solved:
    """A curvature as the :class:`~genrep_dist.core.kernels.preconditioned.Preconditioner` of its inverse."""

    def __init__(self, curvature: KroneckerCurvature, flat: dict[str, float]) -> None:
        self._curvature, self._flat = curvature, flat

    def solve(self, vectors: Tensor) -> Tensor:
        return self._curvature.solve(vectors)

    def certificate(self, vectors: Tensor, solution: Tensor) -> dict[str, Any]:
        return {**asdict(self._curvature.certify(vectors, solution)), **self._flat}


def _blocks(inputs: DerivedInputs, weights: Tensor) -> Iterator[tuple[FactoredGradients, Tensor | None]]:
    """Gradients of all training samples as factors, with the weights (B, C, R) of their outputs; of one sum, by one backward pass."""
    from genrep_dist.core.gradients.per_sample import iter_factored_gradients

    model = inputs.model()
    dtype = next(parameter.dtype for parameter in model.parameters() if parameter.requires_grad)
    for start in range(0, len(weights), inputs.block_rows):
        rows, mixing = inputs.train_inputs[start : start + inputs.block_rows], weights[start : start + inputs.block_rows]
        single = mixing[:, :, 0].to(rows.device, dtype) if mixing.shape[2] == 1 else None
        done = 0
        for block in iter_factored_gradients(model, rows, single):
            yield block, None if single is not None else mixing[done : done + len(block)]
            done += len(block)
