"""The true Hessian of the mean training loss for the influence kernel (Eq. 15): its products with vectors, and the kernel's blocks.

Usage: ``product = hessian_product(...)``; ``damping = declare_damping(product, ...)``; :func:`conjugate_gradients` or :func:`lissa` for the
gradients of all test points; then :func:`influence_block` for each block of training samples. No P x P matrix is formed.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from genrep_dist.core.gradients.autograd import copies_needed, differ, short
from genrep_dist.core.gradients.functional import functional_model
from genrep_dist.core.gradients.model import (
    as_outputs,
    as_real,
    check_model,
    model_outputs,
    require_eval,
    trainable_parameters,
)
from genrep_dist.core.gradients.torch_internals import uncompiled
from genrep_dist.core.inputs import form_of, in_dtype, input_leaves
from genrep_dist.core.losses import Loss
from genrep_dist.core.solvers.checks import require, require_finite
from genrep_dist.core.tensors import OUT_OF_MEMORY
from genrep_dist.errors import NonFiniteError, ProblemError


def hessian_product(
    model: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor, *, batch_size: int, dtype: torch.dtype = torch.float64
) -> HessianProduct:
    """V (P, K) -> H V (P, K) float64, exact, with H = (1/n) sum_i d2 L(f_theta(x_i), y_i)/dtheta2 over the n rows of ``inputs``.

    Parameters are the trainable ones in the order of :func:`parameter_vector`. Their values are copied: later changes of the model do not
    affect the product. H is that of the loss alone; an L2 term lam/2 |theta|^2 of the training adds lam to the damping.

    H = (1/n) sum_i (J_i^T h_i J_i + sum_c g_ic d2f_c(x_i)/dtheta2), with g and h the loss's derivatives in f. This is the Hessian of
    sum_i <g_i, f - f_i> + <f - f_i, h_i (f - f_i)>/2 at f = f_i, differentiated forward over reverse, or twice backward for a model that
    torch.func cannot differentiate so. So only the values of the loss's ``derivative`` and ``second_derivative`` are used; they need not be
    differentiable, and the loss need not be convex. At a kink of a piecewise linear network the derivative is that of torch.

    ``batch_size`` bounds the pairs (row, column) of one pass and so the memory: about 4 times the activations of ``batch_size`` samples for
    any K, and n C (C + 2) numbers. It changes results only by rounding. ``dtype`` is that of the computation; floating-point ``inputs`` are
    converted. Sums over batches are float64. Float32 is faster, but its rounding of about 1e-7 |H| |V| bounds the residual of a solver.

    Raises ProblemError for a model in train mode, for data and a loss that do not fit, and at the first product for an operation without
    a second derivative; NonFiniteError with the row numbers if outputs or the loss's derivatives hold NaN or Inf.
    """
    return HessianProduct(model, loss, inputs, targets, batch_size=batch_size, dtype=dtype)


class HessianProduct:
    """The product of :func:`hessian_product`.

    ``slow_reason``: why products are computed twice backward, column by column; empty before the first product, and where they are not.
    """

    def __init__(self, model: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor, *, batch_size: int, dtype: torch.dtype) -> None:
        _check_data(model, inputs, targets, batch_size)
        self._model, self._inputs, self._batch_size = model, inputs, batch_size
        self._call, self._order = functional_model(model), list(trainable_parameters(model))
        self._tried, self.slow_reason = False, ""
        with uncompiled():
            self._copies = copies_needed(model, inputs[0])
            self._hold(dtype)
            self._rows, self._fitted = self._fit()
        self._gradient, self._curvature = _loss_derivatives(loss, self._fitted, targets)

    def __call__(self, vectors: Tensor) -> Tensor:
        if vectors.dim() != 2 or vectors.shape[0] != sum(self._sizes):
            expected, got = f"({sum(self._sizes)}, K)", f"{tuple(vectors.shape)}"
            raise ProblemError("vectors do not fit the Hessian", where="hessian_product", expected=expected, got=got)
        n, columns = len(self._inputs), vectors.to(self._device, self._dtype)
        width = min(columns.shape[1], self._batch_size)
        height = min(self._rows, self._batch_size // width) if width else n
        result = torch.zeros(columns.shape, dtype=torch.float64, device=self._device)
        # Fused attention has no second derivative.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), uncompiled():
            if not self._tried and width:
                self._try(min(2, height))
            for left in range(0, columns.shape[1], max(1, width)):
                chosen = slice(left, left + width)
                for start in range(0, n, height):
                    result[:, chosen] += self._product(columns[:, chosen], slice(start, start + height))
        return (result / n).to(vectors.device)

    def _hold(self, dtype: torch.dtype) -> None:
        """Copy the parameters in ``dtype``, in the model's own where it fails in that, into a copy of a model that only takes its own."""
        own = as_real(next(iter(trainable_parameters(self._model).values())).detach()).dtype
        for self._dtype, copied in ((dtype, False), (dtype, True), (own, False), (own, True)):
            tensors = {name: _copied(t, self._dtype) for name, t in (*self._model.named_parameters(), *self._model.named_buffers())}
            self._complex = {name for name in self._order if tensors[name].is_complex()}
            self._centre = {name: as_real(tensors[name]) for name in self._order}
            self._constant = {name: tensor for name, tensor in tensors.items() if name not in self._centre}
            self._sizes = [self._centre[name].numel() for name in self._order]
            self._device = next(iter(self._centre.values())).device
            self._twin = _deep_copy(self._model, self._dtype) if copied else None
            try:
                with torch.no_grad():
                    self._forward(self._centre, slice(0, 1))
            except OUT_OF_MEMORY:
                raise
            except Exception as error:
                reason = f"the model does not take other parameters than its own ({short(error)})"
                if self._dtype == own and copied:
                    raise
                continue
            if copied:
                self._tried, self.slow_reason = True, reason
            return

    def _fit(self) -> tuple[int, Tensor]:
        """Rows that may share a pass, and the outputs (n, C) at the centre: one by one if they depend on their batch, or a batch fails."""
        first = range(min(3, len(self._inputs)))
        with torch.no_grad():
            alone = torch.cat([self._forward(self._centre, slice(i, i + 1)) for i in first])
            for rows in (self._batch_size, 1):
                parts = range(0, len(self._inputs), rows)
                try:
                    fitted = torch.cat([self._forward(self._centre, slice(i, i + rows)) for i in parts])
                except OUT_OF_MEMORY:
                    raise
                except Exception:
                    if rows == 1:
                        raise
                    continue
                if not differ(alone, fitted[: len(alone)], 10 * torch.finfo(self._dtype).eps ** 0.5):
                    break
        return rows, fitted

    def _forward(self, parameters: Mapping[str, Tensor], rows: slice) -> Tensor:
        """Outputs (B, C) of rows at these real parameters."""
        batch = in_dtype(self._inputs[rows], self._dtype)
        count = len(batch)
        if count < self._copies:
            batch = batch.repeat(self._copies, *(1 for _ in batch.shape[1:]))
        if self._twin is not None:
            return model_outputs(self._twin, batch)[:count]
        values = {name: torch.view_as_complex(value) if name in self._complex else value for name, value in parameters.items()}
        return as_outputs(self._call({**self._constant, **values}, input_leaves(batch), form_of(batch)), len(batch))[:count]

    def _quadratic(self, parameters: Mapping[str, Tensor], rows: slice) -> Tensor:
        change = self._forward(parameters, rows) - self._fitted[rows]
        return (change * (self._gradient[rows] + 0.5 * torch.einsum("ncd,nd->nc", self._curvature[rows], change))).sum()

    def _product(self, vectors: Tensor, rows: slice) -> Tensor:
        """The sum over ``rows`` of the products with ``vectors`` (P, K)."""
        if not self.slow_reason:
            try:
                return self._forward_over_reverse(vectors, rows)
            except (*OUT_OF_MEMORY, NonFiniteError):
                raise
            except Exception as error:
                # It branches on its data: two rows of a trial need not show it.
                self.slow_reason = short(error)
        return self._twice_backward(vectors, rows)

    def _forward_over_reverse(self, vectors: Tensor, rows: slice) -> Tensor:
        def column(vector: Tensor) -> Tensor:
            tangent = dict(zip(self._order, self._split(vector), strict=True))
            image = jvp(lambda parameters: grad(self._quadratic)(parameters, rows), (self._centre,), (tangent,))[1]
            return torch.cat([image[name].reshape(-1) for name in self._order])

        return vmap(column, 1, 1)(vectors)

    def _twice_backward(self, vectors: Tensor, rows: slice) -> Tensor:
        leaves = self._leaves()
        result = torch.zeros_like(vectors)
        with torch.enable_grad():
            value = self._quadratic(leaves, rows)
            if not value.requires_grad:
                return result
            try:
                first = torch.autograd.grad(value, list(leaves.values()), create_graph=True, allow_unused=True)
                outputs = [place for place, gradient in enumerate(first) if gradient is not None and gradient.requires_grad]
                gradients = [as_real(first[place]) for place in outputs]
                for number in range(vectors.shape[1] if outputs else 0):
                    parts = self._split(vectors[:, number])
                    tangents = [parts[place] for place in outputs]
                    images = torch.autograd.grad(gradients, list(leaves.values()), tangents, retain_graph=True, allow_unused=True)
                    dense = [torch.zeros_like(p) if i is None else i.to_dense() for i, p in zip(images, leaves.values(), strict=True)]
                    result[:, number] = torch.cat([as_real(image).reshape(-1) for image in dense])
            except OUT_OF_MEMORY:
                raise
            except (NotImplementedError, RuntimeError) as error:
                raise _no_second_derivative(self._model, error) from error
        return result

    def _leaves(self) -> dict[str, Tensor]:
        """The parameters as leaves of a new graph."""
        if self._twin is not None:
            return dict(trainable_parameters(self._twin))
        return {name: tensor.detach().requires_grad_() for name, tensor in self._centre.items()}

    def _split(self, vector: Tensor) -> list[Tensor]:
        """A vector (P,) by parameter, in the parameters' real shapes."""
        parts = zip(self._order, torch.split(vector, self._sizes), strict=True)
        return [part.reshape(self._centre[name].shape) for name, part in parts]

    def _try(self, num_rows: int) -> None:
        """Compare both ways on a few rows and a random vector. ProblemError if neither has a second derivative."""
        self._tried, rows = True, slice(0, num_rows)
        vector = torch.randn(sum(self._sizes), 1, generator=torch.Generator().manual_seed(0), dtype=self._dtype).to(self._device)
        fast, reason = None, ""
        try:
            fast = self._forward_over_reverse(vector, rows)
        except OUT_OF_MEMORY:
            raise
        except Exception as error:
            reason = f"forward over reverse differentiation fails ({short(error)})"
        try:
            slow = self._twice_backward(vector, rows)
        except ProblemError:
            if fast is None:
                raise
            return
        if fast is not None and bool((fast - slow).norm() > torch.finfo(self._dtype).eps ** 0.5 * slow.norm()):
            reason = "forward over reverse differentiation gives other numbers than a backward pass of a backward pass"
        self.slow_reason = reason


def _deep_copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    with warnings.catch_warnings():
        # Copying a scripted model reads the .grad of tensors that have none.
        warnings.simplefilter("ignore", UserWarning)
        copied = copy.deepcopy(model)
        # Module.to would drop imaginary parts.
        return copied.double() if dtype == torch.float64 else copied.float()


def _copied(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy in the precision of ``dtype``; integers stay."""
    if tensor.is_complex():
        return tensor.detach().to(dtype.to_complex(), copy=True)
    return tensor.detach().to(dtype, copy=True) if tensor.is_floating_point() else tensor.detach().clone()


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


def _no_second_derivative(model: nn.Module, error: Exception) -> ProblemError:
    return ProblemError(
        "the model uses an operation without a second derivative",
        where=f"model {type(model).__name__}",
        expected="operations that torch can differentiate twice",
        got=short(error),
        remedy="choose the curvature 'ggn', which needs first derivatives only, or write the operation with others",
    )
