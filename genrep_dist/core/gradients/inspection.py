"""Which parameters' per-sample gradients follow from layer rules, and which need torch.func or a loop of backward passes.

A layer rule holds only if the layer runs once, on a batch whose first dimension is the samples, and nothing else uses its parameters. The
inspection runs the model on two and on three rows and checks layer types, sharing, hooks, calls, shapes, and the uses of each parameter
in the autograd graph. Parameters that fail a check are left to torch.func. Both are compared with plain autograd on two samples (trial.py);
what fails or differs is computed by plain autograd, one sample at a time. The reason for every slower strategy is kept.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from genrep_dist.core.gradients.autograd import copies_needed, differ, require_gradients, short, single_outputs
from genrep_dist.core.gradients.factored import NamedShapes
from genrep_dist.core.gradients.factored_weight import FactoredWeight, factored_numel, pass_rows
from genrep_dist.core.gradients.hooks import ForwardPass, HookedLayer, SpreadParameter, graph_uses, run_with_hooks
from genrep_dist.core.gradients.layer_rules import LAYER_RULES
from genrep_dist.core.gradients.model import check_model, real_shape, trainable_parameters
from genrep_dist.core.gradients.torch_internals import is_modified, uncompiled
from genrep_dist.core.gradients.trial import spread_parameters, why_not_torch_func, wrong_by_rules
from genrep_dist.errors import ProblemError

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

    ``parameters``: in the order of the vector of P, with the shapes of real numbers. ``spread``: parameters of which each sample has a copy.
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
    reasons, run, repeated = _rule_reasons(model, examples, alone, copies)
    parameters = trainable_parameters(model)
    owned = {name: [full for full in _own_parameters(name, module) if full in reasons] for name, module in model.named_modules()}
    without_rule = {full: reason for full, reason in reasons.items() if reason is not None}
    bare = [
        full
        for name, module in model.named_modules()
        for full in owned[name]
        if type(module).__module__.partition(".")[0] != "torch" and reasons[full] == _no_rule(module) and not parameters[full].is_complex()
    ]
    spread = spread_parameters(model, bare, examples, copies) if bare else []
    build = partial(_build, model, owned=owned, run=run, repeated=repeated, num_outputs=num_outputs, copies=copies)
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


def _rule_reasons(
    model: nn.Module, examples: Tensor, alone: Tensor, copies: int
) -> tuple[dict[str, str | None], ForwardPass, tuple[str, ...]]:
    """Why no rule covers each trainable parameter (None: one does), a pass over two rows, and the embeddings whose output is repeated.

    ``alone``: outputs (B, C) of the examples, each alone.
    """
    parameters, places = trainable_parameters(model), _num_places(model)
    reasons: dict[str, str | None] = dict.fromkeys(parameters)
    candidates: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        reason = _no_rule(module)
        if reason is None:
            candidates[name] = module
        reasons.update({full: reason for full in _own_parameters(name, module) if full in parameters})
    reasons.update({full: "it belongs to several layers" for full in parameters if places[full] > 1})
    try:
        runs = [run_with_hooks(model, examples[:rows], tuple(candidates)) for rows in (2, 3)]
    except Exception as error:
        return dict.fromkeys(parameters, f"the model fails on several rows at once ({short(error)})"), ForwardPass(), ()
    bound = 10 * torch.finfo(alone.dtype).eps ** 0.5
    if differ(alone, runs[1].outputs, bound):
        if copies > 1:
            raise ProblemError(
                "the model's outputs depend on the other samples of their batch, and it fails on one row",
                where=f"model {type(model).__name__}",
                expected="outputs of each sample alone",
                got="other outputs beside other samples",
                remedy="name the dimensions in forward(): squeeze(1), mean(dim=1), not squeeze() or mean()",
            )
        return dict.fromkeys(parameters, "the model's outputs depend on the other samples of their batch"), runs[0], ()
    repeated: tuple[str, ...] = ()
    for name, module in candidates.items():
        if isinstance(module, nn.Embedding) and _sees_no_samples(name, runs):
            with suppress(Exception):
                again = [run_with_hooks(model, examples[:rows], tuple(candidates), (*repeated, name)) for rows in (2, 3)]
                if not differ(alone, again[1].outputs, bound):
                    runs, repeated = again, (*repeated, name)
    uses = graph_uses(runs[0].outputs)
    for name, module in candidates.items():
        reason = _rule_violation(module, name, runs)
        for full in _own_parameters(name, module):
            if full in parameters and reasons[full] is None:
                used = uses[id(parameters[full])]
                reasons[full] = reason or (None if used == 1 else f"it is used {used} times outside or inside its layer")
    return reasons, runs[0], repeated


def _sees_no_samples(name: str, runs: list[ForwardPass]) -> bool:
    """Whether an embedding is called with the same tokens (T,) or (1, T) for any number of samples, as one of positions."""
    inputs = [call.inputs for run in runs if (call := run.calls.get(name)) is not None]
    shapes = {tuple(seen.tensor.shape) for seen in inputs if seen is not None}
    return len(inputs) == 2 and len(shapes) == 1 and all(len(shape) == 1 or (len(shape) == 2 and shape[0] == 1) for shape in shapes)


def _build(
    model: nn.Module,
    reasons: Mapping[str, str],
    spread: Sequence[SpreadParameter],
    *,
    owned: Mapping[str, list[str]],
    run: ForwardPass,
    repeated: Sequence[str],
    num_outputs: int,
    copies: int,
    torch_func: bool = True,
) -> ModelInspection:
    """The inspection of parameters that are slow for these ``reasons``, but for the ``spread`` ones."""
    copied = {one.name for one in spread}
    hooked: list[HookedLayer] = []
    strategies: list[LayerStrategy] = []
    loop: list[str] = []
    parameters = tuple((name, real_shape(parameter)) for name, parameter in trainable_parameters(model).items())
    for name, module in model.named_modules():
        layer_type = type(module).__name__
        fast = {full.rpartition(".")[2]: full for full in owned[name] if full not in reasons}
        slow = tuple(full for full in owned[name] if full in reasons and full not in copied)
        own_copied = tuple(full for full in owned[name] if full in copied)
        if fast:
            rule, weight, seen = LAYER_RULES[type(module)], None, run.calls[name].inputs
            assert seen is not None
            if rule.weight is not None and "weight" in fast:
                weight = rule.weight(module, fast.pop("weight"), tuple(seen.tensor.shape))
                strategies.append(LayerStrategy(name, layer_type, (weight.name,), "factored"))
            if fast:
                strategies.append(LayerStrategy(name, layer_type, tuple(fast.values()), "dense"))
            hooked.append(HookedLayer(name, type(module), weight, fast, tuple(seen.tensor.shape[1:]), name in repeated))
        if own_copied:
            strategies.append(LayerStrategy(name, layer_type, own_copied, "dense"))
        if slow:
            # torch.func cannot vectorise the fused operations of recurrent layers.
            strategy: Strategy = "torch.func" if torch_func and not isinstance(module, nn.RNNBase) else "loop"
            loop += slow if strategy == "loop" else ()
            reason = "; ".join(dict.fromkeys(reasons[full] for full in slow))
            strategies.append(LayerStrategy(name, layer_type, slow, strategy, reason))
    covered = {full for layer in hooked for full in layer.parameters} | copied
    rest = tuple(name for name, _ in parameters if name not in covered and name not in loop)
    return ModelInspection(parameters, tuple(hooked), rest, tuple(loop), tuple(strategies), num_outputs, copies, tuple(spread))


def _own_parameters(name: str, module: nn.Module) -> list[str]:
    """Full names of a module's own parameters, without those of its children."""
    return [f"{name}.{local}" if name else local for local, _ in module.named_parameters(recurse=False)]


def _num_places(model: nn.Module) -> Counter[str]:
    """In how many places of the model each parameter is registered, by its first name."""
    first: dict[int, str] = {}
    return Counter(first.setdefault(id(parameter), full) for full, parameter in model.named_parameters(remove_duplicate=False))


def _no_rule(module: nn.Module) -> str | None:
    """Why no rule applies to a module, or None."""
    if type(module) not in LAYER_RULES:
        return f"there is no rule for the layer type {type(module).__name__}"
    if any(parameter.is_complex() for parameter in module.parameters(recurse=False)):
        return "its parameters are complex numbers"
    if is_modified(module):
        return "its own hooks or a replaced forward may change what it computes"
    if isinstance(module, nn.Embedding) and (module.scale_grad_by_freq or module.max_norm is not None):
        return "with scale_grad_by_freq or max_norm its gradients depend on more than the tokens"
    return None


def _rule_violation(module: nn.Module, name: str, runs: list[ForwardPass]) -> str | None:
    """Why a layer's calls on two and on three rows do not give per-sample gradients, or None."""
    shapes = []
    for rows, run in zip((2, 3), runs, strict=True):
        call, rule = run.calls.get(name), LAYER_RULES[type(module)]
        if call is None or call.count != 1:
            return f"the layer runs {0 if call is None else call.count} times in a forward pass"
        if call.inputs is None:
            return "the layer is not called with exactly one tensor"
        if call.inputs.is_stale:
            return "its input is changed in place afterwards"
        if call.output is None:
            return "its output has no gradient"
        inputs = call.inputs.tensor
        if inputs.shape[:1] != (rows,) or call.output_shape[:1] != (rows,):
            return "the first dimension of its input or output is not the samples"
        if not rule.allows(inputs):
            return f"its input has {inputs.dim()} dimensions"
        if rule.weight is not None and 0 in inputs.shape:
            return "its input is empty"
        shapes.append(inputs.shape[1:])
    return None if shapes[0] == shapes[1] else "the shape of its input changes with the number of samples"
