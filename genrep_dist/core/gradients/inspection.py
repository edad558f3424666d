"""Which parameters' per-sample gradients follow from layer rules, and which need torch.func or a loop of backward passes.

A layer rule holds only if the layer runs once, on a batch whose first dimension is the samples, and nothing else uses its parameters. The
inspection runs the model on two and on three rows and checks layer types, sharing, hooks, calls, shapes, and the uses of each parameter
in the autograd graph. It then compares the gradients of two samples with autograd. Parameters that fail a check take a slower strategy,
and the reason is kept.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from genrep_dist.core.gradients.factored import NamedShapes
from genrep_dist.core.gradients.factored_weight import FactoredWeight, factored_numel, pass_rows
from genrep_dist.core.gradients.factors import write_dense
from genrep_dist.core.gradients.hooks import ForwardPass, HookedLayer, hooked_gradients, run_with_hooks
from genrep_dist.core.gradients.layer_rules import LAYER_RULES
from genrep_dist.core.gradients.model import model_outputs, trainable_parameters
from genrep_dist.core.gradients.torch_internals import is_modified

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
    """The strategies of all trainable parameters of a model, for inputs of one shape. ``parameters``: in the order of the vector of P."""

    parameters: NamedShapes
    hooked: tuple[HookedLayer, ...]
    torch_func: tuple[str, ...]
    loop: tuple[str, ...]
    strategies: tuple[LayerStrategy, ...]
    num_outputs: int = 1

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


def slow_layers(inspection: ModelInspection) -> list[str]:
    """One line for each layer without a usable rule: the layer, its strategy and the reason."""
    slow = [one for one in inspection.strategies if one.strategy in ("torch.func", "loop")]
    return [f"{one.layer or 'the model itself'} ({one.layer_type}): {one.strategy}, because {one.reason}" for one in slow]


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
    """Inspect a model in eval mode for inputs (B, ...), using at most three of them. Cached while the model lives and does not change."""
    signature = (
        tuple(inputs.shape[1:]),
        inputs.dtype,
        inputs.device.type,
        tuple((n, id(p), p.requires_grad, p.dtype, tuple(p.shape)) for n, p in model.named_parameters(remove_duplicate=False)),
        tuple((name, type(module), is_modified(module)) for name, module in model.named_modules(remove_duplicate=False)),
    )
    known = _CACHE.get(model)
    if known is None or known[0] != signature:
        known = _CACHE[model] = (signature, _inspect(model, inputs.detach()))
    return known[1]


def _inspect(model: nn.Module, inputs: Tensor) -> ModelInspection:
    parameters = trainable_parameters(model)
    owned = {name: [full for full in _own_parameters(name, module) if full in parameters] for name, module in model.named_modules()}
    # The reason why a parameter takes a slow strategy; absent for those that a rule covers.
    reasons: dict[str, str] = {}
    candidates: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        reason = _no_rule(module)
        if reason is not None:
            reasons.update(dict.fromkeys(owned[name], reason))
        elif owned[name]:
            candidates[name] = module
    places = _num_places(model)
    reasons.update({full: "it belongs to several layers" for full in parameters if places[full] > 1})
    examples = inputs[torch.arange(3, device=inputs.device) % len(inputs)]
    runs = [run_with_hooks(model, examples[:rows], tuple(candidates)) for rows in (2, 3)]
    if _mixes_samples(model, examples, runs[1].outputs):
        reasons = dict.fromkeys(parameters, "the model's outputs depend on the other samples of their batch")
    uses = _graph_uses(runs[0].outputs)
    for name, module in candidates.items():
        reason = _rule_violation(module, name, runs)
        for full in owned[name]:
            if reason is not None:
                reasons.setdefault(full, reason)
            elif uses[id(parameters[full])] != 1:
                reasons.setdefault(full, f"it is used {uses[id(parameters[full])]} times outside or inside its layer")
    inspection = _build(model, reasons, owned, runs[0])
    wrong = _wrong_parameters(model, inspection, examples[:2])
    if wrong:
        reasons.update(dict.fromkeys(wrong, "its gradient does not follow from its layer's input and output"))
        inspection = _build(model, reasons, owned, runs[0])
    return inspection


def _build(model: nn.Module, reasons: Mapping[str, str], owned: Mapping[str, list[str]], run: ForwardPass) -> ModelInspection:
    hooked: list[HookedLayer] = []
    strategies: list[LayerStrategy] = []
    loop: list[str] = []
    parameters = tuple((name, tuple(parameter.shape)) for name, parameter in trainable_parameters(model).items())
    for name, module in model.named_modules():
        layer_type = type(module).__name__
        fast = {full.rpartition(".")[2]: full for full in owned[name] if full not in reasons}
        slow = tuple(full for full in owned[name] if full in reasons)
        if fast:
            rule, weight = LAYER_RULES[type(module)], None
            if rule.weight is not None and "weight" in fast:
                seen = run.calls[name].inputs
                assert seen is not None
                weight = rule.weight(module, fast.pop("weight"), tuple(seen.tensor.shape))
                strategies.append(LayerStrategy(name, layer_type, (weight.name,), "factored"))
            if fast:
                strategies.append(LayerStrategy(name, layer_type, tuple(fast.values()), "dense"))
            hooked.append(HookedLayer(name, type(module), weight, fast))
        if slow:
            # torch.func cannot vectorise the fused operations of recurrent layers.
            strategy: Strategy = "loop" if isinstance(module, nn.RNNBase) else "torch.func"
            loop += slow if strategy == "loop" else ()
            reason = "; ".join(dict.fromkeys(reasons[full] for full in slow))
            strategies.append(LayerStrategy(name, layer_type, slow, strategy, reason))
    covered = {full for layer in hooked for full in layer.parameters}
    torch_func = tuple(name for name, _ in parameters if name not in covered and name not in loop)
    return ModelInspection(parameters, tuple(hooked), torch_func, tuple(loop), tuple(strategies), run.outputs.shape[1])


def _mixes_samples(model: nn.Module, examples: Tensor, together: Tensor) -> bool:
    """Whether a sample's outputs differ by more than rounding when it is alone. Per-sample gradients are those of the sample alone."""
    with torch.no_grad():
        alone = torch.cat([model_outputs(model, sample.unsqueeze(0)) for sample in examples])
    bound = 10 * torch.finfo(alone.dtype).eps ** 0.5
    return bool((alone - together.detach()).abs().max() > bound * alone.abs().max())


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


def _graph_uses(outputs: Tensor) -> Counter[int]:
    """How many edges of the autograd graph of ``outputs`` lead to each parameter, by the parameter's id."""
    count: Counter[int] = Counter()
    waiting, seen = [outputs.grad_fn], {outputs.grad_fn}
    while waiting:
        node = waiting.pop()
        for following, _ in node.next_functions if node is not None else ():
            if following is None:
                continue
            variable = getattr(following, "variable", None)
            if variable is not None:
                count[id(variable)] += 1
            elif following not in seen:
                # ``seen`` keeps the nodes alive: otherwise Python could reuse their identity.
                seen.add(following)
                waiting.append(following)
    return count


def _wrong_parameters(model: nn.Module, inspection: ModelInspection, inputs: Tensor) -> list[str]:
    """Parameters whose gradients by layer rules differ from autograd's, for each of ``inputs`` (B, ...) and up to three outputs."""
    if not inspection.hooked:
        return []
    factors, found = hooked_gradients(model, inspection.hooked, inputs, None)
    found = {name: gradients.flatten(2) for name, gradients in found.items()}
    for weight in inspection.weights:
        values = factors[weight.name].tensors[-1]
        found[weight.name] = values.new_empty(len(inputs), inspection.num_outputs, weight.numel)
        write_dense(weight, factors[weight.name], found[weight.name])
    parameters = trainable_parameters(model)
    names = [full for layer in inspection.hooked for full in layer.parameters]
    with torch.enable_grad():
        outputs = [row.unbind() for row in model_outputs(model, inputs).unbind()]
    wrong: dict[str, None] = {}
    for sample in range(len(inputs)):
        for output in sorted({0, inspection.num_outputs // 2, inspection.num_outputs - 1}):
            truth = torch.autograd.grad(outputs[sample][output], [parameters[n] for n in names], retain_graph=True, allow_unused=True)
            for name, expected in zip(names, truth, strict=True):
                mine = found[name][sample, output]
                exact = torch.zeros_like(mine) if expected is None else expected.to_dense().flatten()
                bound = torch.finfo(mine.dtype).eps ** 0.5
                # NaN is no disagreement. It is refused with the sample's id where features are used.
                if bool((mine - exact).norm() > bound * exact.norm().clamp(min=torch.finfo(mine.dtype).tiny)):
                    wrong[name] = None
    return list(wrong)
