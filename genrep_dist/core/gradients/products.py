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
class PositionOperand:
    """``patches`` (B, T, K) and ``gradients`` (B, C, T, O), multiplied over all pairs of positions."""

    patches: Tensor
    gradients: Tensor


WeightOperand = Tensor | PositionOperand | TokenGradients
"""One weight's gradients in the form in which they are multiplied; a Tensor is the dense gradients (B C, O K)."""


def weight_operand(weight: FactoredWeight, factors: WeightGradients) -> WeightOperand:
    """The gradients of B samples in the weight's product form."""
    if isinstance(factors, TokenGradients):
        return factors
    if isinstance(factors, DenseGradients):
        return _flat(factors.values)
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
        elif isinstance(right, DenseGradients):
            _add_dense_columns(weight, left, right, result)
        else:
            _add_positions(weight, left, right, result)


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


def _add_positions(weight: FactoredWeight, left: PositionOperand, right: LayerFactors, result: Tensor) -> None:
    """Products over all pairs of positions, with as many samples of the right block at once as ``PAIR_NUMEL`` allows."""
    rows, outputs, positions, width = left.gradients.shape
    right_outputs = right.gradients.shape[1]
    step = len(right.inputs) if positions == 1 else PAIR_NUMEL // (rows * positions * positions * right_outputs * outputs)
    for start in range(0, len(right.inputs), max(1, step)):
        operand = weight_operand(weight, right.part(start, start + max(1, step)))
        assert isinstance(operand, PositionOperand)
        right_rows = len(operand.patches)
        inputs = left.patches.flatten(0, 1) @ operand.patches.flatten(0, 1).T
        products = left.gradients.reshape(-1, width) @ operand.gradients.reshape(-1, width).T
        products = products.view(rows, outputs, positions, right_rows, right_outputs, positions)
        products.mul_(inputs.view(rows, 1, positions, right_rows, 1, positions))
        summed = products.sum(dim=(2, 5)) if positions > 1 else products
        columns = result[:, start * right_outputs : (start + right_rows) * right_outputs]
        columns += summed.reshape(rows * outputs, right_rows * right_outputs)


def _add_dense_columns(weight: FactoredWeight, left: PositionOperand, right: DenseGradients, result: Tensor) -> None:
    """Products with dense gradients, which only samples that no layer rule could serve have, a few samples of the left block at once."""
    columns, num_outputs = right.values.flatten(0, 1).flatten(1).T, left.gradients.shape[1]
    step = weight.gradient_rows(num_outputs)
    for start in range(0, len(left.patches), step):
        part = slice(start, start + step)
        dense = torch.einsum("bcto,btk->bcok", left.gradients[part], left.patches[part])
        result[start * num_outputs : (start + len(dense)) * num_outputs].addmm_(dense.flatten(0, 1).flatten(1), columns)


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
