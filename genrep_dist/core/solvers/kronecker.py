"""EK-FAC: a Kronecker-factored curvature with corrected eigenvalues (George et al. 2018; Grosse et al. 2023).

N counts training samples, R pseudo-gradients of each, M vectors, P parameters. A layer with O outputs has K inputs, the numbers under a
kernel for a convolution, and one more, a constant 1, for a bias. T positions: the gradient of the layer is G = sum_t g_t p_t^T (O, K).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genrep_dist.core.gradients.embeddings import TokenGradients
from genrep_dist.core.gradients.factored import FactoredGradients, NamedShapes
from genrep_dist.core.gradients.factored_weight import extract_patches, from_parameter_order, in_parameter_order
from genrep_dist.core.gradients.factors import LayerFactors, write_dense
from genrep_dist.core.gradients.kronecker_layers import KroneckerLayer
from genrep_dist.core.solvers.gauss_newton import absolute_damping
from genrep_dist.errors import NonFiniteError, ProblemError

Blocks = Callable[[], Iterator[tuple[FactoredGradients, Tensor | None]]]
"""Each call passes over all training samples in order: gradients (B, C, P) as factors, and weights (B, C, R) of the C outputs, of which the
pseudo-gradients are the R sums. None: they are the pseudo-gradients already, and R = C.
"""
Scope = Literal["layer", "model"]
DENSE_NUMEL = 2**21
"""Numbers of the gradients of one other parameter that are formed at once."""


@dataclass(frozen=True)
class KroneckerCertificate:
    """``damping`` is the largest delta that was added to a block, ``smallest_damping`` the smallest, ``mean_eigenvalue`` = trace(H)/P.

    ``residual`` = max over the vectors g of ||g - (H + delta) x|| / ||g||, with x the solution. ``flat_blocks`` counts the blocks of H that
    are zero, which have no relative damping: their parameters are left out.
    """

    damping: float
    smallest_damping: float
    mean_eigenvalue: float
    residual: float
    flat_blocks: int


@dataclass(frozen=True)
class _Basis:
    """Eigenvectors of the covariances of a layer's output gradients (O, O) and inputs (K, K), as columns."""

    outputs: Tensor
    inputs: Tensor

    def rotate(self, values: Tensor) -> Tensor:
        """Q_S^T G Q_A of ``values`` (..., O, K)."""
        return self.outputs.T @ values @ self.inputs

    def rotate_back(self, values: Tensor) -> Tensor:
        return self.outputs @ values @ self.inputs.T


class KroneckerCurvature:
    """H + delta I by blocks, one of each layer and of each other parameter, from the pseudo-gradients of the training samples.

    A layer's block is Q diag(Lambda) Q^T with Q = Q_S x Q_A, the eigenvectors of S = sum g_t g_t^T and A = sum p_t p_t^T over samples and
    positions, and Lambda (O, K) = (1/N) sum (Q_S^T G Q_A)^2 over the pseudo-gradients. Another parameter's block is diagonal, the mean of
    squared pseudo-gradients, as if Q were the identity. ``damping`` is delta itself, or, if ``relative``, delta in units of the mean
    eigenvalue of each block (``scope`` "layer") or of H ("model").

    Two passes over the samples. Everything is summed in float64. Memory: four copies of the covariances, Lambda, and a part of a block of
    samples at work (:func:`~genrep_dist.core.gradients.kronecker_layers.kronecker_sizes`).

    Raises NonFiniteError for gradients that are not finite, ProblemError where a layer's inputs are not known for some samples, MethodError
    for a damping that is not positive.
    """

    def __init__(
        self,
        layers: tuple[KroneckerLayer, ...],
        parameters: NamedShapes,
        blocks: Blocks,
        *,
        damping: float,
        relative: bool,
        scope: Scope = "layer",
    ) -> None:
        self._layers, self._parameters, self._blocks = layers, parameters, blocks
        covered = {name for layer in layers for name in layer.parameters}
        self._others = tuple((name, shape) for name, shape in parameters if name not in covered)
        self._bases = self._eigenvectors()
        self._tables = self._eigenvalues()
        self._deltas = self._damping(damping, relative=relative, scope=scope)

    def solve(self, vectors: Tensor) -> Tensor:
        """(H + delta)^-1 ``vectors`` (M, P) float64. Zero for the parameters of a block of zeros without a damping."""
        return self._scaled(vectors, inverse=True)

    def certify(self, vectors: Tensor, solution: Tensor) -> KroneckerCertificate:
        """The certificate of ``solution`` (M, P) of ``vectors`` (M, P)."""
        image = self._scaled(solution, inverse=False)
        flat = [delta == 0 for delta in self._deltas]
        wanted = self._scaled(self._scaled(vectors, inverse=True), inverse=False) if any(flat) else vectors
        norms = vectors.norm(dim=1)
        left = (wanted - image).norm(dim=1)
        residual = float(torch.where(norms > 0, left / norms, left).max()) if len(vectors) else 0.0
        used = [delta for delta in self._deltas if delta > 0]
        return KroneckerCertificate(max(used), min(used), self.mean_eigenvalue, residual, sum(flat))

    def _eigenvectors(self) -> list[_Basis]:
        """From the first pass: of each layer's covariances."""
        sums: list[tuple[Tensor, Tensor]] | None = None
        for block, mixing in self._blocks():
            _require_finite(block)
            device = block.rest.device
            sums = sums or [(_square(layer.num_outputs, device), _square(layer.num_inputs, device)) for layer in self._layers]
            for layer, (outputs, inputs) in zip(self._layers, sums, strict=True):
                for patches, gradients in _layer_rows(layer, block, mixing):
                    inputs.addmm_(patches.flatten(0, 1).T, patches.flatten(0, 1))
                    outputs.addmm_(gradients.flatten(0, 2).T, gradients.flatten(0, 2))
        bases = []
        for outputs, inputs in reversed(sums or []):
            bases.append(_Basis(torch.linalg.eigh(outputs).eigenvectors, torch.linalg.eigh(inputs).eigenvectors))
        return bases[::-1]

    def _eigenvalues(self) -> list[Tensor]:
        """From the second pass: Lambda (O, K) of each layer, and those of the other parameters in their own shapes."""
        count = 0
        tables: list[Tensor] = []
        for block, mixing in self._blocks():
            device = block.rest.device
            if not tables:
                shapes = [(layer.num_outputs, layer.num_inputs) for layer in self._layers] + [shape for _, shape in self._others]
                tables = [torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes]
            for layer, basis, table in zip(self._layers, self._bases, tables[: len(self._layers)], strict=True):
                for patches, gradients in _layer_rows(layer, block, mixing):
                    table.add_(_rotated(layer, basis, patches, gradients).square_().sum(dim=(0, 1)))
            for (name, _), table in zip(self._others, tables[len(self._layers) :], strict=True):
                _add_squares(name, block, mixing, table)
            count += len(block)
        for table in tables:
            table.div_(count)
        self.mean_eigenvalue = sum(float(table.sum()) for table in tables) / sum(math.prod(shape) for _, shape in self._parameters)
        return tables

    def _damping(self, damping: float, *, relative: bool, scope: Scope) -> list[float]:
        """Delta of each block. 0 for a block of zeros whose damping is relative to itself."""
        common = absolute_damping(damping, self.mean_eigenvalue, relative=relative)
        if not relative or scope == "model":
            return [common] * len(self._tables)
        return [damping * float(table.mean()) for table in self._tables]

    def _scaled(self, vectors: Tensor, *, inverse: bool) -> Tensor:
        """``vectors`` (M, P) times H + delta, or its inverse."""
        result = torch.zeros_like(vectors)
        sizes = [math.prod(shape) for _, shape in self._parameters]
        names = [name for name, _ in self._parameters]
        given = dict(zip(names, torch.split(vectors, sizes, dim=1), strict=True))
        made = dict(zip(names, torch.split(result, sizes, dim=1), strict=True))
        scales = [_scale(table, delta, inverse=inverse) for table, delta in zip(self._tables, self._deltas, strict=True)]
        for layer, basis, scale in zip(self._layers, self._bases, scales[: len(self._layers)], strict=True):
            values = basis.rotate_back(basis.rotate(_joined(layer, given)) * scale)
            _write(layer, values, made)
        for (name, _), scale in zip(self._others, scales[len(self._layers) :], strict=True):
            made[name].copy_(given[name] * scale.reshape(-1))
        return result


def _scale(table: Tensor, delta: float, *, inverse: bool) -> Tensor:
    if delta == 0:
        return torch.zeros_like(table)
    return 1 / (table + delta) if inverse else table + delta


def _square(size: int, device: torch.device) -> Tensor:
    return torch.zeros(size, size, dtype=torch.float64, device=device)


def _layer_rows(layer: KroneckerLayer, block: FactoredGradients, mixing: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs (b, T, K) and output gradients (b, R, T, O) of a layer in float64, some samples at a time."""
    factors, weight = block.factors[layer.position], layer.weight
    if not isinstance(factors, LayerFactors):
        raise ProblemError(
            "the inputs of a layer are not known for some samples: the model runs otherwise for them than for the first ones",
            where=f"ekfac, {weight.name}",
            expected="a model that takes the same layers for all samples",
            got="gradients of a sample at a time",
            remedy="use the method influence-function, or datainf",
        )
    step = layer.rows(block.num_outputs)
    for start in range(0, len(block), step):
        part = factors.part(start, start + step)
        patches = extract_patches(weight, part.inputs)[:, 0].double()
        if layer.bias is not None:
            patches = torch.cat([patches, patches.new_ones(*patches.shape[:2], 1)], dim=2)
        gradients = part.gradients.double()
        if mixing is not None:
            gradients = torch.einsum("bcto,bcr->brto", gradients, mixing[start : start + step].to(gradients))
        yield patches, gradients


def _rotated(layer: KroneckerLayer, basis: _Basis, patches: Tensor, gradients: Tensor) -> Tensor:
    """Q_S^T G Q_A (b, R, O, K), in the order with the fewest multiply-adds, which depends on the layer's geometry alone."""
    if layer.rotates_factors(gradients.shape[1]):
        left = (gradients @ basis.outputs).transpose(2, 3)
        return left @ (patches @ basis.inputs).unsqueeze(1)
    return basis.rotate(gradients.transpose(2, 3) @ patches.unsqueeze(1))


def _add_squares(name: str, block: FactoredGradients, mixing: Tensor | None, table: Tensor) -> None:
    """Add the sum of squared pseudo-gradients of one parameter to ``table``, of its shape."""
    names = [weight.name for weight in block.weights]
    if name not in names:
        sizes = [math.prod(shape) for _, shape in block.rest_parameters]
        start = sum(sizes[: [other for other, _ in block.rest_parameters].index(name)])
        values = _mixed(block.rest[:, :, start : start + table.numel()].double(), mixing)
        table += values.square().sum(dim=(0, 1)).view(table.shape)
        return
    weight, factors = block.weights[names.index(name)], block.factors[names.index(name)]
    if isinstance(factors, TokenGradients):
        # Each token is once among those of a sample.
        values = factors.values.double()
        if mixing is not None:
            values = torch.einsum("ucd,ucr->urd", values, mixing.to(values)[factors.samples])
        table.index_add_(0, factors.tokens, values.square().sum(dim=1))
        return
    step = max(1, DENSE_NUMEL // (block.num_outputs * weight.numel))
    for start in range(0, len(block), step):
        part = factors.part(start, start + step)
        rows = min(step, len(block) - start)
        dense = block.rest.new_empty(rows, block.num_outputs, weight.numel)
        write_dense(weight, part, dense)
        values = _mixed(dense.double(), None if mixing is None else mixing[start : start + step])
        table += values.square().sum(dim=(0, 1)).view(table.shape)


def _mixed(values: Tensor, mixing: Tensor | None) -> Tensor:
    """(B, R, n) of ``values`` (B, C, n)."""
    return values if mixing is None else torch.einsum("bcn,bcr->brn", values, mixing.to(values))


def _joined(layer: KroneckerLayer, columns: dict[str, Tensor]) -> Tensor:
    """Vectors (M, O, K) of a layer, the bias last, from those of each parameter (M, n)."""
    weight = columns[layer.weight.name]
    values = from_parameter_order(layer.weight, weight.reshape(len(weight), 1, *layer.parameter_shape))[:, 0]
    return values if layer.bias is None else torch.cat([values, columns[layer.bias].unsqueeze(2)], dim=2)


def _write(layer: KroneckerLayer, values: Tensor, columns: dict[str, Tensor]) -> None:
    """Write ``values`` (M, O, K) to the columns (M, n) of the layer's parameters."""
    if layer.bias is not None:
        columns[layer.bias].copy_(values[:, :, -1])
        values = values[:, :, :-1]
    ordered = in_parameter_order(layer.weight, values.unsqueeze(1))
    columns[layer.weight.name].copy_(ordered.reshape(len(values), -1))


def _require_finite(block: FactoredGradients) -> None:
    finite = block.finite_rows()
    if not bool(finite.all()):
        raise NonFiniteError(
            "NaN or Inf in per-sample gradients",
            where="ekfac, the pseudo-gradients of the training samples",
            expected="finite numbers",
            got=f"{int((~finite).sum())} bad rows",
            remedy="look at the scale of the model's parameters and inputs",
        )
