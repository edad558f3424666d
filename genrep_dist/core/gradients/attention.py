"""nn.MultiheadAttention as two linear layers, so that their inputs and output gradients can be observed: self-attention of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

PARTS = {"in_proj": ("in_proj_weight", "in_proj_bias"), "out_proj": ("out_proj.weight", "out_proj.bias")}
"""The linear layers, and the names of their weight and bias within the attention layer."""

Observer = Callable[[str, Tensor, Tensor], None]
"""Receives a linear layer's name, its input (B, T, I) and its output (B, T, O)."""


@contextmanager
def as_linear_layers(model: nn.Module, names: Sequence[str], observe: Observer) -> Iterator[None]:
    """Inside, the attention layers ``names`` compute by :func:`_attend`; outside, as before."""
    modules = [module for name in names if isinstance(module := model.get_submodule(name), nn.MultiheadAttention)]
    try:
        for name, module in zip(names, modules, strict=True):
            vars(module)["forward"] = partial(_attend, module, name, observe)
        yield
    finally:
        for module in modules:
            vars(module).pop("forward", None)


def _attend(
    module: nn.MultiheadAttention, name: str, observe: Observer, query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """The layer's own result up to rounding: torch's attention between two linear layers, with identities as its projections.

    Attention to another sequence, and of a single sequence without a batch, is left to the layer and not observed.
    """
    if query is not key or key is not value or query.dim() != 3:
        result: tuple[Tensor, Tensor | None] = nn.MultiheadAttention.forward(module, query, key, value, *args, **options)
        return result
    options |= dict(zip(("key_padding_mask", "need_weights", "attn_mask", "average_attn_weights", "is_causal"), args, strict=False))
    inputs = query if module.batch_first else query.transpose(0, 1)
    projected = functional.linear(inputs, module.in_proj_weight, module.in_proj_bias)
    observe(f"{name}.in_proj", inputs, projected)
    queries, keys, values = (part.transpose(0, 1) for part in projected.chunk(3, dim=2))
    same = torch.eye(module.embed_dim, dtype=query.dtype, device=query.device)
    attended, weights = functional.multi_head_attention_forward(
        queries,
        keys,
        values,
        module.embed_dim,
        module.num_heads,
        in_proj_weight=None,
        in_proj_bias=None,
        bias_k=None,
        bias_v=None,
        add_zero_attn=module.add_zero_attn,
        dropout_p=0.0,
        out_proj_weight=same,
        out_proj_bias=None,
        training=False,
        use_separate_proj_weight=True,
        q_proj_weight=same,
        k_proj_weight=same,
        v_proj_weight=same,
        **options,
    )
    attended = attended.transpose(0, 1)
    result_rows = functional.linear(attended, module.out_proj.weight, module.out_proj.bias)
    observe(f"{name}.out_proj", attended, result_rows)
    return result_rows if module.batch_first else result_rows.transpose(0, 1), weights
