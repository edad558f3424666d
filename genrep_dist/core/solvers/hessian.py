"""Influence with the true Hessian of the mean training loss, no P x P matrix (Eq. 15): its products with vectors, and the kernel's blocks.

The walk: ``product = hessian_product(...)``, ``damping = declare_damping(product, ...)``, :func:`conjugate_gradients` or :func:`lissa` for
the gradients of all test points at once, then :func:`influence_block` for each block of training samples.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from genrep_dist.core.gradients.dense import check_model, outputs
from genrep_dist.core.kernels.blocks import ntk_block
from genrep_dist.core.losses import Loss
from genrep_dist.core.solvers.hessian_solvers import (
    Damping,
    HessianCertificate,
    Product,
    bad_argument,
    conjugate_gradients,
    declare_damping,
    lissa,
    require_finite,
)
from genrep_dist.errors import ProblemError

__all__ = [
    "Damping",
    "HessianCertificate",
    "Product",
    "conjugate_gradients",
    "declare_damping",
    "hessian_product",
    "influence_block",
    "lissa",
]


class _Outputs(nn.Module):
    """The model with its outputs brought to the form (B, C)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        return outputs(self.model, inputs)


def hessian_product(
    model: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor, *, batch_size: int, dtype: torch.dtype = torch.float64
) -> Product:
    """V (P, K) -> H V (P, K) float64, exact, with H = (1/n) sum_i d2 L(f_theta(x_i), y_i)/dtheta2 over the ``n`` rows of ``inputs``.

    Parameters are the trainable ones in the order of :func:`features.parameter_vector`, at the values that they have now: later changes
    of the model do not reach the product. H holds the loss alone; an L2 term lam/2 |theta|^2 of the training adds lam to the damping.

    H = (1/n) sum_i (J_i^T h_i J_i + sum_c g_ic d2f_c(x_i)/dtheta2), with g and h the loss's derivatives in f. It is the Hessian of
    sum_i <g_i, f - f_i> + <f - f_i, h_i (f - f_i)>/2 at f = f_i, which is differentiated forward over reverse. So of the loss only
    ``derivative`` and ``second_derivative`` are asked, as numbers at the outputs; neither has to be differentiable, nor convex.
    Where a piecewise linear network has a kink the derivative is torch's choice of side.

    ``batch_size`` bounds the pairs (row, column) that are worked on at once, and so the memory: some 4 times the activations of
    ``batch_size`` samples, whatever K is, besides n C (C + 2) numbers. It changes results only by rounding. ``dtype`` is that of the
    computation, of floating-point ``inputs`` too; sums over batches are float64. Float32 is faster, but its rounding of about
    1e-7 |H| |V| bounds the residual that a solver can reach.

    Raises ProblemError for a model in train mode, data and loss that do not fit, or an operation without a second derivative
    (at the first product); NonFiniteError when outputs or the loss's derivatives hold NaN or Inf, naming rows of ``inputs``.
    """
    _check_data(model, inputs, targets, batch_size)
    n, wrapped = len(inputs), _Outputs(model).eval()
    tensors = {
        name: (tensor.detach().to(dtype, copy=True) if tensor.is_floating_point() else tensor.detach().clone())
        for name, tensor in (*wrapped.named_parameters(), *wrapped.named_buffers())
    }
    order = [name for name, parameter in wrapped.named_parameters() if parameter.requires_grad and parameter.is_floating_point()]
    sizes = [tensors[name].numel() for name in order]
    constant = {name: tensor for name, tensor in tensors.items() if name not in order}
    centre = {name: tensors[name] for name in order}
    device = next(iter(centre.values())).device

    def forward(parameters: dict[str, Tensor], rows: slice) -> Tensor:
        batch = inputs[rows]
        result: Tensor = functional_call(wrapped, {**constant, **parameters}, (batch.to(dtype) if batch.is_floating_point() else batch,))
        return result

    with torch.no_grad():
        fitted = torch.cat([forward(centre, slice(i, i + batch_size)) for i in range(0, n, batch_size)])
        slope, curvature = _loss_at(loss, fitted, targets)

    def quadratic(parameters: dict[str, Tensor], rows: slice) -> Tensor:
        change = forward(parameters, rows) - fitted[rows]
        return (change * (slope[rows] + 0.5 * torch.einsum("ncd,nd->nc", curvature[rows], change))).sum()

    def column(vector: Tensor, rows: slice) -> Tensor:
        parts = zip(order, torch.split(vector, sizes), strict=True)
        tangent = {name: part.reshape(centre[name].shape) for name, part in parts}
        image = jvp(lambda parameters: grad(quadratic)(parameters, rows), (centre,), (tangent,))[1]
        return torch.cat([image[name].reshape(-1) for name in order])

    def product(vectors: Tensor) -> Tensor:
        if vectors.dim() != 2 or vectors.shape[0] != sum(sizes):
            raise ProblemError(
                "vectors do not fit the Hessian", where="hessian_product", expected=f"({sum(sizes)}, K)", got=f"{tuple(vectors.shape)}"
            )
        columns = vectors.to(device, dtype)
        width = min(columns.shape[1], batch_size)
        height = batch_size // width if width else n
        result = torch.zeros(columns.shape, dtype=torch.float64, device=device)
        # Fused attention has no second derivative; the plain formula has.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            for left in range(0, columns.shape[1], max(1, width)):
                chosen = slice(left, left + width)
                for start in range(0, n, height):
                    rows = slice(start, start + height)
                    try:
                        result[:, chosen] += vmap(lambda vector, rows=rows: column(vector, rows), 1, 1)(columns[:, chosen])
                    except NotImplementedError as error:
                        raise _no_second_derivative(model, error) from error
        return (result / n).to(vectors.device)

    return product


def influence_block(jacobian: Tensor, solution: Tensor) -> Tensor:
    """K_inf (B, C, M) = J (H + delta I)^-1 g_test for ``jacobian`` (B, C, P) of training samples and ``solution`` (P, M) (Eq. 15).

    Computed in the wider of the two dtypes, which is the result's; a narrower ``jacobian`` is copied to it.
    """
    dtype = torch.promote_types(jacobian.dtype, solution.dtype)
    return ntk_block(jacobian.to(dtype), solution.to(dtype).T)


def _loss_at(loss: Loss, fitted: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The loss's derivatives in f (N, C) and (N, C, C) at the outputs ``fitted`` (N, C)."""
    require_finite(fitted, "the model's outputs on training rows")
    slope, curvature = loss.derivative(fitted, targets).to(fitted), loss.second_derivative(fitted, targets).to(fitted)
    n, num_outputs = fitted.shape
    if slope.shape != fitted.shape or curvature.shape != (n, num_outputs, num_outputs):
        raise ProblemError(
            "the loss's derivatives have the wrong form",
            where=f"loss {loss.name}",
            expected=f"derivative {(n, num_outputs)}, second_derivative {(n, num_outputs, num_outputs)}",
            got=f"{tuple(slope.shape)}, {tuple(curvature.shape)}",
        )
    require_finite(slope, f"derivatives of loss {loss.name} on training rows")
    require_finite(curvature.flatten(1), f"second derivatives of loss {loss.name} on training rows")
    return slope, curvature


def _check_data(model: nn.Module, inputs: Tensor, targets: Tensor, batch_size: int) -> None:
    check_model(model)
    training = [f"{name!r}" if name else type(model).__name__ for name, module in model.named_modules() if module.training]
    if training:
        raise ProblemError(
            "the Hessian is taken in eval mode only: dropout and batch statistics would make it random",
            where=f"model, {len(training)} layers, the first: {training[0]}",
            expected="model.eval() for every layer",
            got="training=True",
            remedy="call model.eval() first",
        )
    if len(inputs) != len(targets) or not len(inputs):
        got = f"{len(inputs)} and {len(targets)}"
        raise ProblemError("rows do not fit", where="hessian_product", expected="as many inputs as targets, at least one", got=got)
    if batch_size < 1:
        raise bad_argument("batch_size", "at least 1", batch_size)


def _no_second_derivative(model: nn.Module, error: NotImplementedError) -> ProblemError:
    return ProblemError(
        "the model uses an operation without a second derivative",
        where=f"model {type(model).__name__}",
        expected="operations that torch can differentiate twice, forward over reverse",
        got=str(error).splitlines()[0],
        remedy="choose the curvature 'ggn', which needs first derivatives only, or write the operation with others",
    )
