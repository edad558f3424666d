"""Inner products between the gradients of one weight in two blocks of samples, in the form with the fewest multiply-adds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genrep_dist.core.gradients.embeddings import TokenGradients, add_token_products
from genrep_dist.core.gradients.factored_weight import FactoredWeight, extract_patches, weight_gradients
from genrep_dist.core.gradients.factors import DenseGradients, LayerFactors, WeightGradients

RIGHT_ROWS = 64
"""Samples of a right block whose dense gradients are formed at once if the left block has more rows: enough for a fast matrix product."""
PAIR_NUMEL = 2**22
"""Numbers of products over pairs of positions that are formed at once."""


@dataclass(frozen=True)
class VectorOperand:
    """Gradients that are one outer product each: ``inputs`` (B, K), ``gradients`` (B, C, O)."""

    inputs: Tensor
    gradients: Tensor


@dataclass(frozen=True)
class PositionOperand:
    """``patches`` (B, T, K) and ``gradients`` (B, C, T, O), multiplied over all pairs of positions."""

    patches: Tensor
    gradients: Tensor


WeightOperand = Tensor | VectorOperand | PositionOperand | TokenGradients
"""One weight's gradients in the form in which they are multiplied; a Tensor is the dense gradients (B C, O K)."""


def weight_operand(weight: FactoredWeight, factors: WeightGradients) -> WeightOperand:
    """The gradients of B samples in the weight's product form."""
    if isinstance(factors, TokenGradients):
        return factors
    if isinstance(factors, DenseGradients):
        assert weight.product_form == "gradients"
        return _flat(factors.values)
    if weight.product_form == "vectors":
        return VectorOperand(extract_patches(weight, factors.inputs)[:, 0, 0], factors.gradients[:, :, 0])
    if weight.product_form == "positions":
        return PositionOperand(extract_patches(weight, factors.inputs)[:, 0], factors.gradients)
    return _flat(DenseGradients.from_factors(weight, factors).values)


def _flat(values: Tensor) -> Tensor:
    """(B, C, O, K) as (B C, O K). Few rows are stored column by column, which is faster in products with few other rows."""
    flat = values.flatten(0, 1).flatten(1)
    return flat.T.contiguous().T if len(flat) <= RIGHT_ROWS else flat


def add_inner_products(
    weight: FactoredWeight, left: WeightOperand, right: WeightGradients, right_operand: WeightOperand | None, result: Tensor
) -> None:
    """Add the inner products of all rows of two blocks to ``result`` (B C, B' C').

    ``right_operand`` is the operand of ``right`` if there is one; otherwise it is formed a few samples at a time.
    """
    if isinstance(left, Tensor) and isinstance(right_operand, Tensor):
        result.addmm_(left, right_operand.T)
    elif isinstance(left, TokenGradients):
        assert isinstance(right, TokenGradients)
        add_token_products(left, right, result)
    else:
        assert not isinstance(right, TokenGradients)
        if isinstance(left, Tensor):
            _add_dense(weight, left, right, result)
        else:
            _add_factored(weight, left, right, result)


def _add_dense(weight: FactoredWeight, left: Tensor, right: LayerFactors | DenseGradients, result: Tensor) -> None:
    """Products of dense gradients ``left`` (B C, O K) with those of another block, formed a few samples at a time."""
    few = len(left) <= RIGHT_ROWS
    rows, num_outputs = right.tensors[-1].shape[:2]
    step = weight.gradient_rows(num_outputs) if few else RIGHT_ROWS
    buffer = dense = left.new_empty(0)
    if isinstance(right, LayerFactors):
        buffer = weight.patch_buffer(min(step, rows), left)
        dense = left.new_empty(min(step, rows), num_outputs, weight.shape[0], weight.patch_numel)
    for start in range(0, rows, step):
        part = right.part(start, start + step)
        if isinstance(part, DenseGradients):
            values = part.values
        else:
            values = weight_gradients(weight, part.inputs, part.gradients, dense[: len(part.inputs)], buffer)
        flat = values.flatten(0, 1).flatten(1)
        columns = result[:, start * num_outputs : start * num_outputs + len(flat)]
        if few:
            columns += (flat @ left.T).T
        else:
            columns.addmm_(left, flat.T)


def _add_factored(
    weight: FactoredWeight, left: VectorOperand | PositionOperand, right: LayerFactors | DenseGradients, result: Tensor
) -> None:
    rows, num_outputs = right.tensors[-1].shape[:2]
    step = max(1, rows)
    if isinstance(left, PositionOperand):
        left_rows, positions = left.patches.shape[:2]
        step = max(1, PAIR_NUMEL // (left_rows * positions * positions * num_outputs * left.gradients.shape[1]))
    for start in range(0, rows, step):
        operand = weight_operand(weight, right.part(start, start + step))
        columns = result[:, start * num_outputs : (start + step) * num_outputs]
        if isinstance(left, VectorOperand):
            assert isinstance(operand, VectorOperand)
            _add_vector_products(left, operand, columns)
        else:
            assert isinstance(operand, PositionOperand)
            _add_position_products(left, operand, columns)


def _add_vector_products(left: VectorOperand, right: VectorOperand, result: Tensor) -> None:
    (rows, outputs, width), (others, other_outputs, _) = left.gradients.shape, right.gradients.shape
    gradients = left.gradients.reshape(-1, width) @ right.gradients.reshape(-1, width).T
    inputs = left.inputs @ right.inputs.T
    products = gradients.view(rows, outputs, others, other_outputs).mul_(inputs[:, None, :, None])
    result += products.view(rows * outputs, others * other_outputs)


def _add_position_products(left: PositionOperand, right: PositionOperand, result: Tensor) -> None:
    (rows, outputs, positions, width), (others, other_outputs, _, _) = left.gradients.shape, right.gradients.shape
    inputs = left.patches.flatten(0, 1) @ right.patches.flatten(0, 1).T
    gradients = left.gradients.reshape(-1, width) @ right.gradients.reshape(-1, width).T
    products = gradients.view(rows, outputs, positions, others, other_outputs, positions)
    products = products.mul_(inputs.view(rows, 1, positions, others, 1, positions))
    result += products.sum(dim=(2, 5)).reshape(rows * outputs, others * other_outputs)


def self_products(weight: FactoredWeight, factors: WeightGradients, own: Tensor) -> Tensor:
    """(B, C): the inner product of each output's gradient with that of output ``own[b]``, for ``own`` (B,) int64."""
    if isinstance(factors, TokenGradients):
        return factors.self_product(own)
    blocks = []
    for start in range(0, len(own), weight.patch_rows):
        part = factors.part(start, start + weight.patch_rows)
        dense = part.values if isinstance(part, DenseGradients) else weight_gradients(weight, part.inputs, part.gradients)
        blocks.append(dense_self_products(dense.flatten(2), own[start : start + weight.patch_rows]))
    return torch.cat(blocks)


def dense_self_products(gradients: Tensor, own: Tensor) -> Tensor:
    """(B, C) from dense gradients (B, C, n): the inner product of each output's gradient with that of output ``own[b]``."""
    explained = gradients[torch.arange(len(own), device=own.device), own]
    return torch.einsum("bcn,bn->bc", gradients, explained)
