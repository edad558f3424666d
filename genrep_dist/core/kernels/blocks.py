"""Blocks of kernels between training and test samples from dense features."""

from __future__ import annotations

import torch
from torch import Tensor

from genrep_dist.errors import ProblemError


def ntk_block(train: Tensor, test: Tensor) -> Tensor:
    """K (B, C, M), K[b, c, m] = <df_c(x_b)/dtheta, df_{c_m}(x_m)/dtheta>, the neural tangent kernel (Eq. 13).

    ``train`` (B, C, P) holds Jacobians, ``test`` (M, P) gradients of the declared outputs c_m, at the same parameters and of one dtype,
    which is the result's. No memory beyond the result is taken when ``train`` is contiguous.
    """
    if train.dim() != 3 or test.dim() != 2 or train.shape[2] != test.shape[1] or train.dtype != test.dtype:
        raise _mismatch("ntk_block", "train (B, C, P) and test (M, P) of one dtype", train, test)
    rows, num_outputs, width = train.shape
    return (train.reshape(rows * num_outputs, width) @ test.T).reshape(rows, num_outputs, test.shape[0])


def last_layer_block(train: Tensor, test: Tensor, output_index: Tensor, num_outputs: int) -> Tensor:
    """K (B, C, M), K[b, c, m] = <Phi(x_b), Phi(x_m)> where c = ``output_index[m]`` and 0 elsewhere: k times the C x C identity (Eq. 11).

    ``train`` (B, L) and ``test`` (M, L) are last-layer features with the constant 1 of the bias, ``output_index`` (M,) the declared
    output of each test sample, or weights (M, C) of the outputs. It is the NTK of the last layer's parameters alone, whose outputs share
    features but no weights.
    """
    if train.dim() != 2 or test.dim() != 2 or train.shape[1] != test.shape[1] or train.dtype != test.dtype:
        raise _mismatch("last_layer_block", "train (B, L) and test (M, L) of one dtype", train, test)
    if output_index.is_floating_point() and output_index.shape == (len(test), num_outputs):
        return per_output(train @ test.T, output_index, num_outputs)
    if output_index.shape != test.shape[:1]:
        raise ProblemError(
            "output_index does not fit the test samples",
            where="last_layer_block",
            expected=f"integers ({test.shape[0]},), or weights ({test.shape[0]}, {num_outputs})",
            got=f"{output_index.dtype} {tuple(output_index.shape)}",
        )
    if output_index.numel() and not 0 <= int(output_index.min()) <= int(output_index.max()) < num_outputs:
        raise ProblemError(
            "output_index names an output that does not exist",
            where="last_layer_block",
            expected=f"0 to {num_outputs - 1}",
            got=f"{int(output_index.min())} to {int(output_index.max())}",
        )
    return per_output(train @ test.T, output_index, num_outputs)


def per_output(scalar: Tensor, output_index: Tensor, num_outputs: int) -> Tensor:
    """K (B, C, M) of a scalar kernel k (B, M) that all outputs share: k where c = ``output_index[m]``, 0 elsewhere.

    With weights ``output_index`` (M, C) it is k times the weight of output c at the test point.
    """
    if output_index.is_floating_point():
        return scalar.unsqueeze(1) * output_index.T.to(scalar)
    block = scalar.new_zeros(scalar.shape[0], num_outputs, scalar.shape[1])
    block[:, output_index, torch.arange(scalar.shape[1], device=scalar.device)] = scalar
    return block


def _mismatch(where: str, expected: str, train: Tensor, test: Tensor) -> ProblemError:
    shapes = f"train {tuple(train.shape)} {train.dtype}, test {tuple(test.shape)} {test.dtype}"
    return ProblemError("features do not fit each other", where=where, expected=expected, got=shapes)
