"""Which parameters' per-sample gradients follow from layer rules, and which need torch.func or a loop of backward passes.

A layer rule holds only if the layer runs once, on a batch whose first dimension is the samples, and nothing else uses its parameters. The
inspection runs the model on two and on three rows and checks layer types, sharing, hooks, calls, shapes, and the uses of each parameter
in the autograd graph. Parameters that fail a check are left to torch.func. Both are compared with plain autograd on two samples (trial.py);
what fails or differs is computed by plain autograd, one sample at a time. The reason for every slower strategy is kept.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from genrep_dist.core.gradients.autograd import copies_needed, require_gradients, single_outputs
from genrep_dist.core.gradients.factored import NamedShapes
from genrep_dist.core.gradients.factored_weight import FactoredWeight, factored_numel, pass_rows
from genrep_dist.core.gradients.hooks import HookedLayer, SpreadParameter
from genrep_dist.core.gradients.layer_rules import required_rule
from genrep_dist.core.gradients.model import check_model, real_shape, trainable_parameters
from genrep_dist.core.gradients.observation import ObservedLayers, bare_parameters, observe_layers
from genrep_dist.core.gradients.torch_internals import is_modified, uncompiled
from genrep_dist.core.gradients.trial import spread_parameters, why_not_torch_func, wrong_by_rules

Strategy = Literal["factored", "dense", "torch.func", "loop"]


@dataclass(frozen=True)
class LayerStrategy:
    """How the gradients of some of a layer's parameters are computed, and ``reason``, why not faster.

    "factored": kept as the layer's input and output gradient. "dense": a small gradient from the same backward pass. "torch.func": a
    vectorised gradient of its own. "loop": one backward pass for each sample.
    """

    layer: str
    layer_type: str
    parameters: tuple[str, ...]
    strategy: Strategy
    reason: str = ""


@dataclass(frozen=True)
class ModelInspection:
    """The strategies of all trainable parameters of a model, for inputs of one shape.

    ``parameters``: in the order of the vector of P, with the shapes of real numbers. ``spread``: those of which each sample has a copy.
    ``copies``: 1, or 2 for a model that fails on one row;
    a sample is then computed beside a copy of itself.
    """

    parameters: NamedShapes
    hooked: tuple[HookedLayer, ...]
    torch_func: tuple[str, ...]
    loop: tuple[str, ...]
    strategies: tuple[LayerStrategy, ...]
    num_outputs: int = 1
    copies: int = 1
    spread: tuple[SpreadParameter, ...] = ()

    @property
    def batch_size(self) -> int:
        """Samples of one forward and backward pass."""
        return pass_rows(factored_numel(self.weights, self.rest_numel, self.num_outputs))

    @property
    def weights(self) -> tuple[FactoredWeight, ...]:
        return tuple(layer.weight for layer in self.hooked if layer.weight is not None)

    @property
    def rest_parameters(self) -> NamedShapes:
        """The parameters whose gradients are kept dense."""
        factored = {weight.name for weight in self.weights}
        return tuple((name, shape) for name, shape in self.parameters if name not in factored)

    @property
    def rest_numel(self) -> int:
        return sum(math.prod(shape) for _, shape in self.rest_parameters)


NAMED_LAYERS = 3
"""Layers with the same strategy for the same reason that are named; more of them are counted."""


def slow_layers(inspection: ModelInspection) -> list[str]:
    """Lines for people: the layers without a usable rule, their strategy and the reason."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for one in inspection.strategies:
        if one.strategy in ("torch.func", "loop"):
            groups.setdefault((one.layer_type, one.strategy, one.reason), []).append(one.layer or "the model itself")
    lines = []
    for (layer_type, strategy, reason), layers in groups.items():
        more = f" and {len(layers) - NAMED_LAYERS} more" if len(layers) > NAMED_LAYERS else ""
        lines.append(f"{', '.join(layers[:NAMED_LAYERS])}{more} ({layer_type}): {strategy}, because {reason}")
    if inspection.copies > 1:
        lines.append("the model fails on one row, so that a single sample is computed beside a copy of itself")
    return lines


@dataclass(frozen=True)
class FeatureSizes:
    """The most that one sample's features take: numbers kept, numbers of its operand, and multiply-adds of a product with another's."""

    numel: int
    operand_numel: int
    multiply_adds: int


def feature_sizes(inspection: ModelInspection) -> FeatureSizes:
    """Upper bounds: a sample that repeats tokens takes less."""
    outputs, rest = inspection.num_outputs, inspection.rest_numel
    operand, multiply_adds = outputs * rest, outputs**2 * rest
    for weight in inspection.weights:
        positions, width = weight.num_positions, outputs * weight.shape[-1 if weight.kind == "embedding" else 0]
        if weight.kind == "embedding":
            # Token gradients are their own operand. Only tokens that both samples hold are multiplied.
            multiply_adds += outputs * positions * width
        elif weight.product_form == "gradients":
            operand, multiply_adds = operand + outputs * weight.numel, multiply_adds + outputs**2 * weight.numel
        else:
            operand += positions * (weight.patch_numel + width)
            multiply_adds += positions**2 * (weight.patch_numel + outputs * width)
    return FeatureSizes(factored_numel(inspection.weights, rest, outputs), operand, multiply_adds)


_CACHE: weakref.WeakKeyDictionary[nn.Module, tuple[Any, ModelInspection]] = weakref.WeakKeyDictionary()
"""The latest inspection of each model and the signature that it holds for. The values of parameters are not part of it."""


def inspect_model(model: nn.Module, inputs: Tensor) -> ModelInspection:
    """Inspect a model in eval mode for inputs (B, ...), using at most three of them. Cached while the model lives and does not change.

    Raises ProblemError for a model whose gradients are not defined, with the parameter and the reason where they are known.
    """
    signature = (
        tuple(inputs.shape[1:]),
        inputs.dtype,
        inputs.device.type,
        tuple((n, id(p), p.requires_grad, p.dtype, tuple(p.shape)) for n, p in model.named_parameters(remove_duplicate=False)),
        tuple((name, type(module), is_modified(module)) for name, module in model.named_modules(remove_duplicate=False)),
    )
    known = _CACHE.get(model)
    if known is None or known[0] != signature:
        with uncompiled():
            known = _CACHE[model] = (signature, _inspect(model, inputs.detach()))
    return known[1]


def _inspect(model: nn.Module, inputs: Tensor) -> ModelInspection:
    check_model(model)
    examples = inputs[torch.arange(3, device=inputs.device) % len(inputs)]
    copies = copies_needed(model, examples[0])
    require_gradients(model, examples[:2], copies)
    with torch.no_grad():
        alone = torch.stack([single_outputs(model, sample, copies) for sample in examples])
    num_outputs = alone.shape[1]
    observed = observe_layers(model, examples, alone, copies)
    without_rule = {full: reason for full, reason in observed.reasons.items() if reason is not None}
    bare = bare_parameters(model, observed)
    spread = spread_parameters(model, bare, examples, copies) if bare else []
    build = partial(_build, model, observed=observed, num_outputs=num_outputs, copies=copies)
    inspection = build(without_rule, spread)
    if inspection.hooked or spread:
        wrong = wrong_by_rules(model, inspection.hooked, spread, examples[:2], num_outputs, copies)
        if wrong:
            without_rule = {**wrong, **without_rule}
            spread = [one for one in spread if one.name not in wrong]
            inspection = build(without_rule, spread)
    if inspection.torch_func:
        reason = why_not_torch_func(model, inspection.torch_func, examples[:2], num_outputs, copies)
        if reason is not None:
            without_rule.update({full: f"{without_rule[full]}; {reason}" for full in inspection.torch_func})
            inspection = build(without_rule, spread, torch_func=False)
    return inspection


def _build(
    model: nn.Module,
    reasons: Mapping[str, str],
    spread: Sequence[SpreadParameter],
    *,
    observed: ObservedLayers,
    num_outputs: int,
    copies: int,
    torch_func: bool = True,
) -> ModelInspection:
    """The inspection of parameters that are slow for these ``reasons``, but for the ``spread`` ones."""
    copied = {one.name for one in spread}
    hooked: list[HookedLayer] = []
    strategies: list[LayerStrategy] = []
    loop: list[str] = []
    trained = trainable_parameters(model)
    for layer in observed.layers:
        fast = {local: full for local, full in layer.parameters.items() if full in trained and full not in reasons}
        slow = tuple(full for full in layer.parameters.values() if full in reasons and full not in copied)
        own_copied = tuple(full for full in layer.parameters.values() if full in copied)
        if fast:
            rule, weight, shape = required_rule(layer.type), None, observed.input_shape(layer.name)
            if rule.weight is not None and "weight" in fast:
                weight = rule.weight(layer.module, trained[fast["weight"]], fast.pop("weight"), (2, *shape))
                strategies.append(LayerStrategy(layer.name, layer.type_name, (weight.name,), "factored"))
            if fast:
                strategies.append(LayerStrategy(layer.name, layer.type_name, tuple(fast.values()), "dense"))
            repeated, turned = layer.name in observed.repeated, layer.name in observed.turned
            hooked.append(HookedLayer(layer.name, layer.type, weight, fast, shape, repeated, turned, layer.attention))
        if own_copied:
            strategies.append(LayerStrategy(layer.name, layer.type_name, own_copied, "dense"))
        if slow:
            # torch.func cannot vectorise the fused operations of recurrent layers.
            strategy: Strategy = "torch.func" if torch_func and not issubclass(layer.type, nn.RNNBase) else "loop"
            loop += slow if strategy == "loop" else ()
            reason = "; ".join(dict.fromkeys(reasons[full] for full in slow))
            strategies.append(LayerStrategy(layer.name, layer.type_name, slow, strategy, reason))
    covered = {full for layer in hooked for full in layer.parameters} | copied
    parameters = tuple((name, real_shape(parameter)) for name, parameter in trained.items())
    rest = tuple(name for name in trained if name not in covered and name not in loop)
    return ModelInspection(parameters, tuple(hooked), rest, tuple(loop), tuple(strategies), num_outputs, copies, tuple(spread))
