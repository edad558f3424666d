"""The true Hessian of the mean training loss for the influence kernel (Eq. 15): its products with vectors, and the kernel's blocks.

Usage: ``product = hessian_product(...)``; ``damping = declare_damping(product, ...)``; :func:`conjugate_gradients` or :func:`lissa` for the
gradients of all test points; then :func:`influence_block` for each block of training samples. No P x P matrix is formed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from genrep_dist.core.gradients.model import as_outputs, check_model, require_eval, trainable_parameters
from genrep_dist.core.losses import Loss
from genrep_dist.core.solvers.checks import require, require_finite
from genrep_dist.core.solvers.hessian_system import Matmat
from genrep_dist.errors import ProblemError


def hessian_product(
    model: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor, *, batch_size: int, dtype: torch.dtype = torch.float64
) -> Matmat:
    """V (P, K) -> H V (P, K) float64, exact, with H = (1/n) sum_i d2 L(f_theta(x_i), y_i)/dtheta2 over the n rows of ``inputs``.

    Parameters are the trainable ones in the order of :func:`parameter_vector`. Their values are copied: later changes of the model do not
    affect the product. H is that of the loss alone; an L2 term lam/2 |theta|^2 of the training adds lam to the damping.

    H = (1/n) sum_i (J_i^T h_i J_i + sum_c g_ic d2f_c(x_i)/dtheta2), with g and h the loss's derivatives in f. This is the Hessian of
    sum_i <g_i, f - f_i> + <f - f_i, h_i (f - f_i)>/2 at f = f_i, differentiated forward over reverse. So only the values of the loss's
    ``derivative`` and ``second_derivative`` are used; they need not be differentiable, and the loss need not be convex. At a kink of a
    piecewise linear network the derivative is that of torch.

    ``batch_size`` bounds the pairs (row, column) of one pass and so the memory: about 4 times the activations of ``batch_size`` samples for
    any K, and n C (C + 2) numbers. It changes results only by rounding. ``dtype`` is that of the computation; floating-point ``inputs`` are
    converted. Sums over batches are float64. Float32 is faster, but its rounding of about 1e-7 |H| |V| bounds the residual of a solver.

    Raises ProblemError for a model in train mode, for data and a loss that do not fit, and at the first product for an operation without
    a second derivative; NonFiniteError with the row numbers if outputs or the loss's derivatives hold NaN or Inf.
    """
    _check_data(model, inputs, targets, batch_size)
    n = len(inputs)
    tensors = {
        name: (tensor.detach().to(dtype, copy=True) if tensor.is_floating_point() else tensor.detach().clone())
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }
    order = list(trainable_parameters(model))
    sizes = [tensors[name].numel() for name in order]
    constant = {name: tensor for name, tensor in tensors.items() if name not in order}
    centre = {name: tensors[name] for name in order}
    device = next(iter(centre.values())).device

    def forward(parameters: dict[str, Tensor], rows: slice) -> Tensor:
        batch = inputs[rows]
        raw = functional_call(model, {**constant, **parameters}, (batch.to(dtype) if batch.is_floating_point() else batch,))
        return as_outputs(raw, len(batch))

    with torch.no_grad():
        fitted = torch.cat([forward(centre, slice(i, i + batch_size)) for i in range(0, n, batch_size)])
        gradient, curvature = _loss_derivatives(loss, fitted, targets)

    def quadratic(parameters: dict[str, Tensor], rows: slice) -> Tensor:
        change = forward(parameters, rows) - fitted[rows]
        return (change * (gradient[rows] + 0.5 * torch.einsum("ncd,nd->nc", curvature[rows], change))).sum()

    def column(vector: Tensor, rows: slice) -> Tensor:
        parts = zip(order, torch.split(vector, sizes), strict=True)
        tangent = {name: part.reshape(centre[name].shape) for name, part in parts}
        image = jvp(lambda parameters: grad(quadratic)(parameters, rows), (centre,), (tangent,))[1]
        return torch.cat([image[name].reshape(-1) for name in order])

    def product(vectors: Tensor) -> Tensor:
        if vectors.dim() != 2 or vectors.shape[0] != sum(sizes):
            expected, got = f"({sum(sizes)}, K)", f"{tuple(vectors.shape)}"
            raise ProblemError("vectors do not fit the Hessian", where="hessian_product", expected=expected, got=got)
        columns = vectors.to(device, dtype)
        width = min(columns.shape[1], batch_size)
        height = batch_size // width if width else n
        result = torch.zeros(columns.shape, dtype=torch.float64, device=device)
        # Fused attention has no second derivative.
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
    """K_inf (B, C, M) = J (H + delta I)^-1 g_test (Eq. 15) for ``jacobian`` (B, C, P) of training samples and ``solution`` (P, M).

    The result has the wider of the two dtypes, in which it is computed. Raises ProblemError for shapes that do not fit.
    """
    if jacobian.dim() != 3 or solution.dim() != 2 or jacobian.shape[2] != solution.shape[0]:
        got = f"jacobian {tuple(jacobian.shape)}, solution {tuple(solution.shape)}"
        raise ProblemError("gradients do not fit the solution", where="influence_block", expected="(B, C, P) and (P, M)", got=got)
    dtype = torch.promote_types(jacobian.dtype, solution.dtype)
    return (jacobian.to(dtype).flatten(0, 1) @ solution.to(dtype)).reshape(*jacobian.shape[:2], solution.shape[1])


def _loss_derivatives(loss: Loss, fitted: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The loss's derivatives in f (N, C) and (N, C, C) at the outputs ``fitted`` (N, C)."""
    require_finite(fitted, "the model's outputs on training rows", "influence")
    first, second = loss.derivative(fitted, targets).to(fitted), loss.second_derivative(fitted, targets).to(fitted)
    n, num_outputs = fitted.shape
    if first.shape != fitted.shape or second.shape != (n, num_outputs, num_outputs):
        raise ProblemError(
            "the loss's derivatives have the wrong form",
            where=f"loss {loss.name}",
            expected=f"derivative {(n, num_outputs)}, second_derivative {(n, num_outputs, num_outputs)}",
            got=f"{tuple(first.shape)}, {tuple(second.shape)}",
        )
    require_finite(first, f"derivatives of loss {loss.name} on training rows", "influence")
    require_finite(second, f"second derivatives of loss {loss.name} on training rows", "influence")
    return first, second


def _check_data(model: nn.Module, inputs: Tensor, targets: Tensor, batch_size: int) -> None:
    check_model(model)
    require_eval(model)
    if len(inputs) != len(targets) or not len(inputs):
        got = f"{len(inputs)} and {len(targets)}"
        raise ProblemError("rows do not fit", where="hessian_product", expected="as many inputs as targets, at least one", got=got)
    require("influence", [("batch_size", batch_size >= 1, "at least 1", batch_size)])


def _no_second_derivative(model: nn.Module, error: NotImplementedError) -> ProblemError:
    return ProblemError(
        "the model uses an operation without a second derivative",
        where=f"model {type(model).__name__}",
        expected="operations that torch can differentiate twice, forward over reverse",
        got=str(error).splitlines()[0],
        remedy="choose the curvature 'ggn', which needs first derivatives only, or write the operation with others",
    )
