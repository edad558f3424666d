"""Layer rules: how each layer type's per-sample gradients follow from its input and the gradient of its output.

Adding a layer type is one entry in ``LAYER_RULES``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from genrep_dist.core.gradients.embeddings import TokenGradients
from genrep_dist.core.gradients.factored_weight import FactoredWeight, Pair
from genrep_dist.core.gradients.factors import LayerFactors

DenseRule = Callable[[Any, Tensor, Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class LayerRule:
    """How one layer type is differentiated. Every function receives the layer, and its input (B, ...) and output gradients (B, C, ...).

    ``dense`` returns the gradients (B, C, n) of the small parameters by their name in the layer. ``weight`` takes the layer, its weight,
    the weight's full name and the shape of one batch of its input, and returns the geometry; ``factors`` returns the weight's factors.
    Both are None where the weight is small. ``input_dims`` are the allowed numbers of dimensions of the input, the batch's included;
    None allows all from 2 on.
    """

    dense: DenseRule
    weight: Callable[[Any, Tensor, str, tuple[int, ...]], FactoredWeight] | None = None
    factors: Callable[[Any, Tensor, Tensor], LayerFactors | TokenGradients] | None = None
    input_dims: tuple[int, ...] | None = None

    def allows(self, inputs: Tensor) -> bool:
        return inputs.dim() >= 2 if self.input_dims is None else inputs.dim() in self.input_dims


def _linear_weight(_module: nn.Module, weight: Tensor, name: str, shape: tuple[int, ...]) -> FactoredWeight:
    return FactoredWeight(name, "product", tuple(weight.shape), (1, math.prod(shape[1:-1])))


def _transposed_weight(_module: nn.Module, weight: Tensor, name: str, shape: tuple[int, ...]) -> FactoredWeight:
    return FactoredWeight(name, "product", tuple(weight.T.shape), (1, math.prod(shape[1:-1])), transposed=True)


def _linear_factors(_module: nn.Module, inputs: Tensor, gradients: Tensor) -> LayerFactors:
    rows, num_outputs = gradients.shape[:2]
    flat = gradients.reshape(rows, num_outputs, -1, gradients.shape[-1])
    return LayerFactors(inputs.reshape(rows, 1, -1, inputs.shape[-1]), flat)


def _linear_bias(_module: nn.Module, _inputs: Tensor, gradients: Tensor) -> dict[str, Tensor]:
    return {"bias": gradients.flatten(2, -2).sum(dim=2) if gradients.dim() > 3 else gradients}


def _conv_weight(module: nn.Conv1d | nn.Conv2d, weight: Tensor, name: str, shape: tuple[int, ...]) -> FactoredWeight:
    padding, size = _conv_padding(module), tuple(shape[2:])
    if module.padding_mode != "zeros":
        size, padding = tuple(s + sum(p) for s, p in zip(size, padding, strict=True)), [(0, 0)] * len(size)

    def pair(values: Sequence[int]) -> Pair:
        return (1, values[0]) if len(values) == 1 else (values[0], values[1])

    return FactoredWeight(
        name,
        "product",
        tuple(weight.shape),
        pair(size),
        pair(module.kernel_size),
        pair(module.stride),
        pair(module.dilation),
        ((0, 0), padding[0]) if len(padding) == 1 else (padding[0], padding[1]),
        module.groups,
    )


def _conv_padding(module: nn.Conv1d | nn.Conv2d) -> list[Pair]:
    """(before, after) of each spatial dimension."""
    if module.padding == "valid":
        return [(0, 0) for _ in module.kernel_size]
    if module.padding == "same":
        totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(int(p), int(p)) for p in module.padding]


def _conv_factors(module: nn.Conv1d | nn.Conv2d, inputs: Tensor, gradients: Tensor) -> LayerFactors:
    if module.padding_mode != "zeros":
        amounts = [amount for pair in reversed(_conv_padding(module)) for amount in pair]
        inputs = functional.pad(inputs, amounts, mode=module.padding_mode)
    if inputs.dim() == 3:
        inputs = inputs.unsqueeze(2)
    rows, num_outputs, channels = gradients.shape[:3]
    # Contiguous, as features read from the store are: the rounding of a product may depend on the order in memory.
    flat = gradients.movedim(2, -1).reshape(rows, num_outputs, -1, channels).contiguous()
    return LayerFactors(inputs.permute(0, 2, 3, 1), flat)


def _channel_bias(_module: nn.Module, _inputs: Tensor, gradients: Tensor) -> dict[str, Tensor]:
    return {"bias": gradients.flatten(3).sum(dim=3) if gradients.dim() > 3 else gradients}


def _embedding_weight(module: nn.Embedding, weight: Tensor, name: str, shape: tuple[int, ...]) -> FactoredWeight:
    size = (1, math.prod(shape[1:]))
    return FactoredWeight(name, "embedding", tuple(weight.shape), size, padding_index=module.padding_idx)


def _embedding_factors(module: nn.Embedding, inputs: Tensor, gradients: Tensor) -> TokenGradients:
    rows, num_outputs = gradients.shape[:2]
    flat = gradients.reshape(rows, num_outputs, -1, gradients.shape[-1])
    return TokenGradients.from_outputs(inputs.reshape(rows, -1), flat, module.padding_idx)


def _channel_norm(normalise: Callable[[Any, Tensor], Tensor]) -> DenseRule:
    """The rule of a layer with one weight and one bias a channel, from its normalised input."""

    def dense(module: nn.Module, inputs: Tensor, gradients: Tensor) -> dict[str, Tensor]:
        scaled = gradients * normalise(module, inputs).unsqueeze(1)
        return {"weight": scaled.flatten(3).sum(dim=3) if scaled.dim() > 3 else scaled, **_channel_bias(module, inputs, gradients)}

    return dense


def _batch_norm(module: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d, inputs: Tensor) -> Tensor:
    return functional.batch_norm(inputs, module.running_mean, module.running_var, None, None, False, 0.0, module.eps)


def _instance_norm(module: nn.InstanceNorm1d | nn.InstanceNorm2d, inputs: Tensor) -> Tensor:
    own = module.running_mean is None or not module.track_running_stats
    mean, variance = (None, None) if own else (module.running_mean, module.running_var)
    return functional.instance_norm(inputs, mean, variance, None, None, own, 0.0, module.eps)


def _group_norm(module: nn.GroupNorm, inputs: Tensor) -> Tensor:
    return functional.group_norm(inputs, module.num_groups, None, None, module.eps)


def _layer_norm(module: nn.LayerNorm, inputs: Tensor, gradients: Tensor) -> dict[str, Tensor]:
    normalised = functional.layer_norm(inputs, module.normalized_shape, None, None, module.eps)
    shape = (*gradients.shape[:2], -1, math.prod(module.normalized_shape))
    return {
        "weight": (gradients * normalised.unsqueeze(1)).reshape(shape).sum(dim=2),
        "bias": gradients.reshape(shape).sum(dim=2),
    }


def _rms_norm(module: nn.RMSNorm, inputs: Tensor, gradients: Tensor) -> dict[str, Tensor]:
    normalised = functional.rms_norm(inputs, module.normalized_shape, None, module.eps)
    shape = (*gradients.shape[:2], -1, math.prod(module.normalized_shape))
    return {"weight": (gradients * normalised.unsqueeze(1)).reshape(shape).sum(dim=2)}


def _prelu(module: nn.PReLU, inputs: Tensor, gradients: Tensor) -> dict[str, Tensor]:
    scaled = (gradients * inputs.clamp(max=0).unsqueeze(1)).flatten(3) if inputs.dim() > 2 else gradients * inputs.clamp(max=0).unsqueeze(1)
    summed = scaled.sum(dim=3) if scaled.dim() > 3 else scaled
    return {"weight": summed.sum(dim=2, keepdim=True) if module.num_parameters == 1 else summed}


LAYER_RULES: dict[type[nn.Module], LayerRule] = {
    nn.Linear: LayerRule(_linear_bias, _linear_weight, _linear_factors),
    nn.Conv1d: LayerRule(_channel_bias, _conv_weight, _conv_factors, (3,)),
    nn.Conv2d: LayerRule(_channel_bias, _conv_weight, _conv_factors, (4,)),
    nn.Embedding: LayerRule(lambda *_: {}, _embedding_weight, _embedding_factors, (1, 2, 3, 4)),
    nn.BatchNorm1d: LayerRule(_channel_norm(_batch_norm), input_dims=(2, 3)),
    nn.BatchNorm2d: LayerRule(_channel_norm(_batch_norm), input_dims=(4,)),
    nn.BatchNorm3d: LayerRule(_channel_norm(_batch_norm), input_dims=(5,)),
    nn.InstanceNorm1d: LayerRule(_channel_norm(_instance_norm), input_dims=(3,)),
    nn.InstanceNorm2d: LayerRule(_channel_norm(_instance_norm), input_dims=(4,)),
    nn.GroupNorm: LayerRule(_channel_norm(_group_norm)),
    nn.LayerNorm: LayerRule(_layer_norm),
    nn.RMSNorm: LayerRule(_rms_norm),
    nn.PReLU: LayerRule(_prelu),
}
"""The rules by exact layer type: a subclass may compute something else."""

NAMED_RULES = {"transformers.pytorch_utils:Conv1D": LayerRule(_linear_bias, _transposed_weight, _linear_factors)}
"""Rules for layers of libraries that need not be installed, by module and class. Conv1D is a linear layer, with its weight (I, O)."""


def layer_rule(kind: type[nn.Module]) -> LayerRule | None:
    """The rule of a layer type; None without one."""
    return LAYER_RULES.get(kind) or NAMED_RULES.get(f"{kind.__module__}:{kind.__qualname__}")


def required_rule(kind: type[nn.Module]) -> LayerRule:
    """The rule of a layer type that has one."""
    rule = layer_rule(kind)
    assert rule is not None, kind
    return rule
