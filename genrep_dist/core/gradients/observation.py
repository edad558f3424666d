"""Which layers can be observed, and why no rule covers the parameters of the others: passes over two and three rows, and their graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genrep_dist.core.gradients.attention import PARTS
from genrep_dist.core.gradients.autograd import differ, short
from genrep_dist.core.gradients.hooks import ForwardPass, graph_uses, run_with_hooks
from genrep_dist.core.gradients.layer_rules import layer_rule, required_rule
from genrep_dist.core.gradients.model import trainable_parameters
from genrep_dist.core.gradients.torch_internals import is_modified
from genrep_dist.core.tensors import OUT_OF_MEMORY
from genrep_dist.errors import ProblemError


@dataclass(frozen=True)
class Layer:
    """A module, or one of the two linear layers of the module ``attention``. ``parameters``: full names by local ones.

    ``type`` is the type whose rule applies, ``type_name`` what people know it by.
    """

    name: str
    type: type[nn.Module]
    type_name: str
    module: nn.Module
    parameters: dict[str, str]
    attention: str = ""


@dataclass(frozen=True)
class ObservedLayers:
    """``reasons``: why no rule covers each trainable parameter; None: one does. ``run``: a pass over two rows.

    ``repeated``: embeddings whose output is repeated for each sample. ``turned``: layers that see the sequence before the samples.
    """

    layers: tuple[Layer, ...]
    reasons: dict[str, str | None]
    run: ForwardPass
    repeated: tuple[str, ...] = ()
    turned: tuple[str, ...] = ()

    def input_shape(self, layer: str) -> tuple[int, ...]:
        """The shape of one sample's input of a layer that a rule covers."""
        seen = self.run.calls[layer].inputs
        assert seen is not None
        return tuple(seen.tensor.shape[1:])


def observe_layers(model: nn.Module, examples: Tensor, alone: Tensor, copies: int) -> ObservedLayers:
    """Observe passes over two and three of the ``examples`` (3, ...). ``alone``: outputs (3, C) of each example alone.

    Raises ProblemError for a model whose outputs depend on the batch and that fails on one row, ``copies`` being 2.
    """
    parameters, places = trainable_parameters(model), _num_places(model)
    layers = tuple(_layers(model, ()))
    reasons: dict[str, str | None] = {full: _no_rule(layer) for layer in layers for full in layer.parameters.values() if full in parameters}
    reasons.update({full: "it belongs to several layers" for full in parameters if places[full] > 1})
    names = [layer.name for layer in layers if _no_rule(layer) is None]
    try:
        runs = [run_with_hooks(model, examples[:rows], names) for rows in (2, 3)]
    except OUT_OF_MEMORY:
        raise
    except Exception as error:
        return ObservedLayers(layers, dict.fromkeys(parameters, f"the model fails on several rows at once ({short(error)})"), ForwardPass())
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
        return ObservedLayers(layers, dict.fromkeys(parameters, "the model's outputs depend on the other samples of their batch"), runs[0])

    def observed(attention: Sequence[str], repeated: Sequence[str], turned: Sequence[str]) -> list[ForwardPass] | None:
        """Passes with these changes, or None if the model fails so or computes something else."""
        with suppress(Exception):
            found = [run_with_hooks(model, examples[:rows], names, attention, repeated, turned) for rows in (2, 3)]
            if not differ(alone, found[1].outputs, bound):
                return found
        return None

    attention = [name for name, module in model.named_modules() if _is_observable_attention(module)]
    if attention and (found := observed(attention, (), ())) is not None:
        runs, layers = found, tuple(_layers(model, attention))
        places_once = (full for layer in layers if layer.attention for full in layer.parameters.values() if places[full] == 1)
        reasons.update({full: None for full in places_once if full in parameters})
    else:
        attention = []
    turned = tuple(layer.name for layer in layers if layer.name in names and _sees_sequence_first(layer, runs))
    if turned and (found := observed(attention, (), turned)) is not None:
        runs = found
    else:
        turned = ()
    repeated: tuple[str, ...] = ()
    for layer in layers:
        shared = layer.type is nn.Embedding and layer.name in names and _sees_no_samples(layer.name, runs)
        if shared and (found := observed(attention, (*repeated, layer.name), turned)) is not None:
            runs, repeated = found, (*repeated, layer.name)
    uses = graph_uses(runs[0].outputs)
    for layer in layers:
        reason = _rule_violation(layer, runs) if layer.attention or layer.name in names else None
        for full in layer.parameters.values():
            if full in parameters and reasons[full] is None:
                used = uses[id(parameters[full])]
                reasons[full] = reason or (None if used == 1 else f"it is used {used} times outside or inside its layer")
    return ObservedLayers(layers, reasons, runs[0], repeated, turned)


def bare_parameters(model: nn.Module, observed: ObservedLayers) -> list[str]:
    """Real parameters of the user's own modules, which no rule covers for that reason alone."""
    parameters = trainable_parameters(model)
    return [
        full
        for layer in observed.layers
        for full in layer.parameters.values()
        if layer.type.__module__.partition(".")[0] != "torch"
        and full in parameters
        and observed.reasons[full] is not None
        and observed.reasons[full] == _no_rule(layer)
        and not parameters[full].is_complex()
    ]


def _layers(model: nn.Module, attention: Sequence[str]) -> Iterator[Layer]:
    """All modules, with the ``attention`` layers as two linear ones."""
    parts = {f"{name}.{part}" for name in attention for part in PARTS}
    for name, module in model.named_modules():
        if name in attention:
            kind = type(module).__name__
            for part, (weight, bias) in PARTS.items():
                own = {"weight": f"{name}.{weight}", "bias": f"{name}.{bias}"}
                yield Layer(f"{name}.{part}", nn.Linear, kind, module, own, name)
        elif name not in parts:
            own = {local: f"{name}.{local}" if name else local for local, _ in module.named_parameters(recurse=False)}
            yield Layer(name, type(module), type(module).__name__, module, own)


def _is_observable_attention(module: nn.Module) -> bool:
    """Whether an attention layer is made of two linear layers, which its self-attention needs alone."""
    if type(module) is not nn.MultiheadAttention or is_modified(module) or is_modified(module.out_proj):
        return False
    return module.in_proj_weight is not None and module.bias_k is None and module.bias_v is None


def _num_places(model: nn.Module) -> Counter[str]:
    """In how many places of the model each parameter is registered, by its first name."""
    first: dict[int, str] = {}
    return Counter(first.setdefault(id(parameter), full) for full, parameter in model.named_parameters(remove_duplicate=False))


def _no_rule(layer: Layer) -> str | None:
    """Why no rule applies to a layer, or None."""
    module = layer.module
    if layer_rule(layer.type) is None:
        return f"there is no rule for the layer type {layer.type_name}"
    if any(parameter.is_complex() for parameter in module.parameters(recurse=False)):
        return "its parameters are complex numbers"
    if is_modified(module):
        return "its own hooks or a replaced forward may change what it computes"
    if isinstance(module, nn.Embedding) and (module.scale_grad_by_freq or module.max_norm is not None):
        return "with scale_grad_by_freq or max_norm its gradients depend on more than the tokens"
    return None


def _sees_sequence_first(layer: Layer, runs: Sequence[ForwardPass]) -> bool:
    """Whether a layer that treats all positions alike is called with (T, B, ...)."""
    one_width = isinstance(layer.module, nn.LayerNorm | nn.RMSNorm) and len(layer.module.normalized_shape) == 1
    dims = {nn.Linear: 3, nn.Embedding: 2}.get(layer.type, 3 if one_width else 0)
    inputs = [call.inputs for run in runs if (call := run.calls.get(layer.name)) is not None]
    shapes = [seen.tensor.shape for seen in inputs if seen is not None and seen.tensor.dim() == dims]
    return len(shapes) == 2 and shapes[0][0] == shapes[1][0] and (shapes[0][1], shapes[1][1]) == (2, 3)


def _sees_no_samples(name: str, runs: Sequence[ForwardPass]) -> bool:
    """Whether an embedding is called with tokens (T,) or (1, T) for any number of samples, as one of positions."""
    inputs = [call.inputs for run in runs if (call := run.calls.get(name)) is not None]
    shapes = {tuple(seen.tensor.shape) for seen in inputs if seen is not None}
    return len(inputs) == 2 and len(shapes) == 1 and all(len(shape) == 1 or (len(shape) == 2 and shape[0] == 1) for shape in shapes)


def _rule_violation(layer: Layer, runs: Sequence[ForwardPass]) -> str | None:
    """Why a layer's calls on two and on three rows do not give per-sample gradients, or None."""
    shapes = []
    for rows, run in zip((2, 3), runs, strict=True):
        call, rule = run.calls.get(layer.name), required_rule(layer.type)
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
