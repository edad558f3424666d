"""Layer inputs and output gradients of one batched forward and backward pass, and the per-sample gradients that follow by layer rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from genrep_dist.core.gradients.attention import as_linear_layers
from genrep_dist.core.gradients.factored_weight import FactoredWeight
from genrep_dist.core.gradients.factors import WeightGradients
from genrep_dist.core.gradients.functional import functional_model
from genrep_dist.core.gradients.layer_rules import required_rule
from genrep_dist.core.gradients.model import as_outputs, model_outputs, selected_output
from genrep_dist.core.gradients.torch_internals import Snapshot
from genrep_dist.core.inputs import form_of, input_leaves


class UnusualPassError(Exception):
    """The model runs a layer in another way than when it was inspected, because it branches on its data."""


@dataclass(frozen=True)
class HookedLayer:
    """A layer whose gradients come from a rule: ``weight`` is factored (None if it is small), ``dense`` maps local to full names.

    ``input_shape``: of one sample's input of the layer. ``repeated``: an embedding that all samples share, as positions do; it is called
    without their dimension, and its output is repeated for each. ``turned``: the samples are the second dimension, after the sequence.
    ``attention``: the attention layer that this linear layer is a part of.
    """

    name: str
    type: type[nn.Module]
    weight: FactoredWeight | None
    dense: dict[str, str]
    input_shape: tuple[int, ...]
    repeated: bool = False
    turned: bool = False
    attention: str = ""

    @property
    def parameters(self) -> tuple[str, ...]:
        """Full names of all parameters that the rule covers."""
        return (*self.dense.values(), *((self.weight.name,) if self.weight else ()))


@dataclass(frozen=True)
class SpreadParameter:
    """A parameter that the model adds or multiplies, as class tokens and scales: each sample gets a copy of its own, of ``shape``."""

    name: str
    shape: tuple[int, ...]

    def copies(self, parameter: Tensor, num_rows: int) -> Tensor:
        """A leaf (B, *shape) in place of the parameter. Its gradients are the samples' own."""
        return parameter.detach().reshape(self.shape).expand(num_rows, *self.shape).requires_grad_()


@dataclass
class LayerCall:
    """The first call of a layer in a forward pass. ``inputs`` is None unless it was called with one tensor.

    ``output`` is the place in the autograd graph where the gradient of the layer's own output arrives, None if there is none.
    """

    inputs: Snapshot | None
    output: GradientEdge | None
    output_shape: tuple[int, ...]
    count: int = 1


@dataclass
class ForwardPass:
    """The model's outputs (B, C), with their autograd graph, and the calls of the hooked layers by name."""

    outputs: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    calls: dict[str, LayerCall] = field(default_factory=dict)

    def observe(self, name: str, inputs: Any, result: Any) -> None:
        """Record a call of a layer; ``inputs`` is None unless it was called with one tensor."""
        if name in self.calls:
            self.calls[name].count += 1
        elif inputs is None:
            self.calls[name] = LayerCall(None, None, ())
        else:
            # An edge still refers to this output after the tensor was changed in place.
            differentiable = isinstance(result, Tensor) and result.requires_grad
            edge = get_gradient_edge(result) if differentiable else None
            shape = tuple(result.shape) if isinstance(result, Tensor) else ()
            self.calls[name] = LayerCall(Snapshot(inputs), edge, shape)


def run_with_hooks(
    model: nn.Module,
    inputs: Tensor,
    names: Sequence[str],
    attention: Sequence[str] = (),
    repeated: Sequence[str] = (),
    turned: Sequence[str] = (),
    spread: Sequence[SpreadParameter] = (),
) -> ForwardPass:
    """Run the model with gradients enabled and record the calls of the layers ``names``. All hooks are removed on return.

    ``attention`` layers compute as linear ones, which are recorded. The outputs of the ``repeated`` embeddings, called with tokens (T,) or
    (1, T), become (B, T, D). The calls of ``turned`` layers, on (T, B, ...), are recorded as (B, T, ...). The calls of ``spread``
    parameters, by their names, hold the copies as outputs.
    """
    forward, num_rows = ForwardPass(), len(inputs)

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], Tensor | None]:
        def record(_module: nn.Module, args: tuple[Any, ...], result: Any) -> Tensor | None:
            seen = args[0] if len(args) == 1 and isinstance(args[0], Tensor) else None
            if seen is not None and name in repeated:
                seen, result = seen.reshape(1, -1).expand(num_rows, -1), result.reshape(1, seen.numel(), -1).expand(num_rows, -1, -1)
            if seen is not None and name in turned:
                seen, result = seen.transpose(0, 1), result.transpose(0, 1)
            forward.observe(name, seen, result)
            return result if name in repeated else result.transpose(0, 1) if name in turned else None

        return record

    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_hook(hook(name)) for name in names]
    try:
        with torch.enable_grad(), as_linear_layers(model, attention, forward.observe):
            if spread:
                parameters = dict(model.named_parameters())
                leaves = {one.name: one.copies(parameters[one.name], num_rows) for one in spread}
                forward.outputs = as_outputs(functional_model(model)(leaves, input_leaves(inputs), form_of(inputs)), num_rows)
                forward.calls.update({name: LayerCall(None, get_gradient_edge(t), tuple(t.shape)) for name, t in leaves.items()})
            else:
                forward.outputs = model_outputs(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return forward


def hooked_gradients(
    model: nn.Module, layers: Sequence[HookedLayer], inputs: Tensor, output_index: Tensor | None, spread: Sequence[SpreadParameter] = ()
) -> tuple[dict[str, WeightGradients], dict[str, Tensor]]:
    """Factors of the layers' weights and dense gradients (B, C, n) of their small parameters, by full parameter name.

    One forward pass, and one backward pass for each of the C outputs; with ``output_index`` (B,) only for the named outputs, or with
    weights (B, C) for their weighted sum: C = 1.
    Raises UnusualPassError where the rules do not hold for this batch.
    """
    called = [layer.name for layer in layers if not layer.attention]
    attention = list(dict.fromkeys(layer.attention for layer in layers if layer.attention))
    repeated, turned = [one.name for one in layers if one.repeated], [one.name for one in layers if one.turned]
    forward = run_with_hooks(model, inputs, called, attention, repeated, turned, spread)
    uses, parameters = graph_uses(forward.outputs), dict(model.named_parameters())
    if any(uses[id(parameters[name])] > 1 for layer in layers for name in layer.parameters):
        raise UnusualPassError
    snapshots = [_checked_inputs(forward, layer, len(inputs)) for layer in layers]
    factors: dict[str, WeightGradients] = {}
    output_gradients = _output_gradients(forward, [*(layer.name for layer in layers), *(one.name for one in spread)], output_index)
    dense = {one.name: gradients.flatten(2) for one, gradients in zip(spread, output_gradients[len(layers) :], strict=True)}
    with torch.no_grad():
        for layer, *seen in zip(layers, snapshots, output_gradients[: len(layers)], strict=True):
            module, rule = model.get_submodule(layer.attention or layer.name), required_rule(layer.type)
            # Under autocast they come in other dtypes than the parameters, whose gradients these are.
            own = next(module.parameters(recurse=False)).dtype
            layer_inputs, gradients = (tensor.to(own) if tensor.is_floating_point() else tensor for tensor in seen)
            if layer.weight is not None:
                assert rule.factors is not None
                factors[layer.weight.name] = rule.factors(module, layer_inputs, gradients)
            if layer.dense:
                found = rule.dense(module, layer_inputs, gradients)
                dense.update({full: found[local] for local, full in layer.dense.items()})
    return factors, dense


def graph_uses(outputs: Tensor) -> Counter[int]:
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


def _checked_inputs(forward: ForwardPass, layer: HookedLayer, num_rows: int) -> Tensor:
    """A layer's input (B, ...), after the checks that its rule depends on."""
    call = forward.calls.get(layer.name)
    if call is None or call.count != 1 or call.output is None or call.inputs is None or call.inputs.is_stale:
        raise UnusualPassError
    if tuple(call.inputs.tensor.shape) != (num_rows, *layer.input_shape) or call.output_shape[:1] != (num_rows,):
        raise UnusualPassError
    return call.inputs.tensor


def _output_gradients(forward: ForwardPass, names: Sequence[str], output_index: Tensor | None) -> list[Tensor]:
    """Derivatives (B, C, ...) of the model's outputs with respect to the output of each layer."""
    edges = [forward.calls[name].output for name in names]
    with torch.enable_grad():
        if output_index is None:
            sums = [values.sum() for values in forward.outputs.unbind(1)]
        else:
            sums = [selected_output(forward.outputs, output_index).sum()]
    per_output: list[tuple[Tensor | None, ...]] = []
    for number, value in enumerate(sums):
        more = number + 1 < len(sums)
        per_output.append(torch.autograd.grad(value, edges, retain_graph=more, allow_unused=True))  # type: ignore[arg-type]
    gradients = []
    for name, found in zip(names, zip(*per_output, strict=True), strict=True):
        shape = forward.calls[name].output_shape
        each = [forward.outputs.new_zeros(shape) if gradient is None else gradient for gradient in found]
        gradients.append(each[0].unsqueeze(1) if len(each) == 1 else torch.stack(each, dim=1))
    return gradients
