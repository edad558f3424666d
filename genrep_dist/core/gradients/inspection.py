"""Which parameters' per-sample gradients can be read off one batched backward pass, and which take a slower way.

A weight's per-sample gradient follows from its layer's input and its output's gradient only if the layer runs once, on a batch whose
first dimension is the samples, and nothing else uses the weight. All of this is looked at, on a few rows: types, sharing, hooks, how often
each layer ran, what shapes it saw for two and for three samples, how often the graph of the backward pass leads to each parameter; and
what comes out is held against autograd, one sample at a time. Whatever does not pass takes the slower way, with the reason.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from genrep_dist.core.gradients.layer_rules import KINDS, Weight, held_numbers, rows_of_a_pass
from genrep_dist.core.gradients.outputs import model_outputs, trainable

Way = Literal["factors", "gradients", "torch.func", "one by one"]


@dataclass(frozen=True)
class LayerWay:
    """How one layer's parameters are treated. ``way``: 'factors' (input and output gradient of its weight), 'gradients' (small ones, from
    the same backward pass), 'torch.func' (a vectorised gradient of its own) or 'one by one' (a backward pass for each sample).
    """

    layer: str
    kind: str
    parameters: tuple[str, ...]
    way: Way
    reason: str = ""


@dataclass(frozen=True)
class Hooked:
    """A layer that is read off the backward pass: its factored ``weight``, if any, and its ``small`` parameters, local name -> full."""

    name: str
    kind: type[nn.Module]
    weight: Weight | None
    small: dict[str, str]


@dataclass(frozen=True)
class Layout:
    """The ways of all trainable parameters of a model for inputs of one shape. ``order``: their names and shapes, as in the vector P."""

    order: tuple[tuple[str, tuple[int, ...]], ...]
    hooked: tuple[Hooked, ...]
    functional: tuple[str, ...]
    looped: tuple[str, ...]
    ways: tuple[LayerWay, ...]
    num_outputs: int = 1

    @property
    def rows_of_a_pass(self) -> int:
        """Samples of one forward and backward pass."""
        rest = sum(math.prod(shape) for _, shape in self.rest_names)
        return rows_of_a_pass(held_numbers(self.weights, rest, self.num_outputs))

    @property
    def weights(self) -> tuple[Weight, ...]:
        return tuple(hooked.weight for hooked in self.hooked if hooked.weight is not None)

    @property
    def rest_names(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Names and shapes of the parameters that are kept as gradients, in the order of all."""
        factored = {weight.name for weight in self.weights}
        return tuple((name, shape) for name, shape in self.order if name not in factored)


def slow_layers(layout: Layout) -> list[str]:
    """A line for each layer whose gradients cannot be read off one backward pass: which, how it is treated, and why."""
    slow = [way for way in layout.ways if way.way in ("torch.func", "one by one")]
    return [f"{way.layer or 'the model itself'} ({way.kind}): {way.way}, as {way.reason}" for way in slow]


@dataclass(frozen=True)
class Sizes:
    """What one sample's features take: numbers ``held`` as factors, ``spelled`` out to be multiplied, ``products`` with another's."""

    held: int
    spelled: int
    products: int


def sizes_of(layout: Layout) -> Sizes:
    """At most: repeated tokens take less."""
    outputs = layout.num_outputs
    rest = sum(math.prod(shape) for _, shape in layout.rest_names)
    held = held_numbers(layout.weights, rest, outputs)
    spelled = outputs * rest
    products = outputs**2 * rest
    for weight in layout.weights:
        positions, patch, wide = weight.positions, weight.patch, outputs * weight.shape[-1 if weight.kind == "embedding" else 0]
        if weight.kind == "embedding":
            # Spelled out are no tokens; multiplied are those that both samples have.
            products += outputs * positions * wide
            continue
        if weight.product == "gradients":
            spelled, products = spelled + outputs * weight.numel, products + outputs**2 * weight.numel
        else:
            spelled += positions * (patch + wide)
            products += positions**2 * (patch + outputs * wide)
    return Sizes(held, spelled, products)


@dataclass
class Call:
    """What a layer saw: its input, where the gradient of its output arrives, and the output's shape."""

    inputs: Any
    edge: GradientEdge | None
    shape: tuple[int, ...]
    version: int
    count: int = 1

    @property
    def changed(self) -> bool:
        """Whether the input is no longer what the layer saw, as something worked in place."""
        return isinstance(self.inputs, Tensor) and self.inputs._version != self.version


@dataclass
class Record:
    """One forward pass: outputs (B, C) and each layer's call."""

    outputs: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    calls: dict[str, Call] = field(default_factory=dict)


def record(model: nn.Module, inputs: Tensor, names: tuple[str, ...]) -> Record:
    """Run the model with gradients and note the calls of the layers ``names``; the model is as before when this returns."""
    found = Record()

    def hook(name: str) -> Any:
        def note(_module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
            if name in found.calls:
                found.calls[name].count += 1
                return
            value = args[0] if len(args) == 1 else None
            tensor = isinstance(value, Tensor) and isinstance(result, Tensor)
            # The edge is where the gradient of this very output arrives, whatever is done to the tensor in place later.
            edge = get_gradient_edge(result) if tensor and result.requires_grad else None
            if isinstance(value, Tensor):
                found.calls[name] = Call(value.detach(), edge, tuple(result.shape) if tensor else (), value._version)
            else:
                found.calls[name] = Call(None, None, (), 0)

        return note

    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_hook(hook(name)) for name in names]
    try:
        with torch.enable_grad():
            found.outputs = model_outputs(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


_LAYOUTS: weakref.WeakKeyDictionary[nn.Module, dict[Any, Layout]] = weakref.WeakKeyDictionary()
"""Layouts by model, and by what they depend on: the values of parameters are not among it."""


def layout_of(model: nn.Module, inputs: Tensor) -> Layout:
    """The layout of a model in eval mode for inputs (B, ...), looked at with up to three of them; kept for as long as the model lives."""
    signature = (
        tuple(inputs.shape[1:]),
        inputs.dtype,
        inputs.device.type,
        tuple((n, id(p), p.requires_grad, p.dtype, tuple(p.shape)) for n, p in model.named_parameters(remove_duplicate=False)),
        tuple((name, type(module), bool(_patched(module))) for name, module in model.named_modules(remove_duplicate=False)),
    )
    known = _LAYOUTS.setdefault(model, {})
    if signature not in known:
        known.clear()
        known[signature] = _inspect(model, inputs.detach())
    return known[signature]


def _inspect(model: nn.Module, inputs: Tensor) -> Layout:
    from genrep_dist.core.gradients.hooks import misfits

    order = tuple((name, tuple(parameter.shape)) for name, parameter in trainable(model).items())
    owners = _owners(model)
    reasons: dict[str, str] = {}
    candidates: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        reason = _unfit(module)
        mine = [full for full in _own(name, module) if full in dict(order)]
        if reason is None and mine:
            candidates[name] = module
        reasons.update(dict.fromkeys(mine, reason or ""))
    for full, _ in order:
        if owners[full] > 1:
            reasons[full] = "it belongs to several layers"
    examples = _examples(inputs, 3)
    runs = [record(model, examples[:rows], tuple(candidates)) for rows in (2, 3)]
    if _looks_around(model, examples, runs[1].outputs):
        reasons = dict.fromkeys(reasons, "the model's outputs depend on the other samples of their batch")
    uses = _uses(model, runs[0].outputs)
    parameters = trainable(model)
    for name, module in candidates.items():
        reason = _misuse(module, name, runs)
        for full in _own(name, module):
            if reasons.get(full) == "" and reason is not None:
                reasons[full] = reason
            elif reasons.get(full) == "" and uses[id(parameters[full])] != 1:
                reasons[full] = f"it is used {uses[id(parameters[full])]} times outside or inside its layer"
    layout = _laid_out(model, order, reasons, candidates, runs[0])
    wrong = misfits(model, layout, examples[:2])
    if wrong:
        for full in wrong:
            reasons[full] = "its gradient does not follow from its layer's input and output"
        layout = _laid_out(model, order, reasons, candidates, runs[0])
    return layout


def _laid_out(
    model: nn.Module,
    order: tuple[tuple[str, tuple[int, ...]], ...],
    reasons: dict[str, str],
    candidates: dict[str, nn.Module],
    run: Record,
) -> Layout:
    hooked: list[Hooked] = []
    ways: list[LayerWay] = []
    looped: list[str] = []
    names = [name for name, _ in order]
    for name, module in model.named_modules():
        mine = [full for full in _own(name, module) if full in names]
        fine = [full for full in mine if reasons[full] == "" and name in candidates]
        slow = [full for full in mine if full not in fine]
        kind = type(module).__name__
        if fine:
            made = KINDS[type(module)]
            local = {full.rpartition(".")[2]: full for full in fine}
            weight = None
            if made.weight is not None and "weight" in local:
                weight = made.weight(module, local.pop("weight"), tuple(run.calls[name].inputs.shape))
                ways.append(LayerWay(name, kind, (weight.name,), "factors"))
            if local:
                ways.append(LayerWay(name, kind, tuple(local.values()), "gradients"))
            hooked.append(Hooked(name, type(module), weight, local))
        if slow:
            # torch.func cannot map over what recurrent layers call.
            recurrent = isinstance(module, nn.RNNBase)
            looped += slow if recurrent else []
            why = "; ".join(dict.fromkeys(reasons[full] for full in slow))
            ways.append(LayerWay(name, kind, tuple(slow), "one by one" if recurrent else "torch.func", why))
    hooks = {full for one in hooked for full in (*one.small.values(), *((one.weight.name,) if one.weight else ()))}
    functional = tuple(name for name in names if name not in hooks and name not in looped)
    return Layout(order, tuple(hooked), functional, tuple(looped), tuple(ways), run.outputs.shape[1])


def _looks_around(model: nn.Module, examples: Tensor, together: Tensor) -> bool:
    """Whether a sample's outputs alone are others than in a batch, by much more than rounding; per-sample gradients are those alone."""
    with torch.no_grad():
        alone = torch.cat([model_outputs(model, sample.unsqueeze(0)) for sample in examples])
    bound = 10 * torch.finfo(alone.dtype).eps ** 0.5
    return bool((alone - together.detach()).abs().max() > bound * alone.abs().max())


def _examples(inputs: Tensor, count: int) -> Tensor:
    """``count`` rows, the first of ``inputs``, again from the beginning where there are fewer."""
    return inputs[torch.arange(count, device=inputs.device) % len(inputs)]


def _own(name: str, module: nn.Module) -> list[str]:
    """Full names of the parameters that are a module's own, not its children's."""
    return [f"{name}.{local}" if name else local for local, p in module.named_parameters(recurse=False) if p is not None]


def _owners(model: nn.Module) -> Counter[str]:
    """For every parameter by its first name, in how many places it stands: of modules, however often they are registered."""
    first: dict[int, str] = {}
    count: Counter[str] = Counter()
    for full, parameter in model.named_parameters(remove_duplicate=False):
        count[first.setdefault(id(parameter), full)] += 1
    return count


def _unfit(module: nn.Module) -> str | None:
    """Why a module cannot be read by hooks, or None."""
    if type(module) not in KINDS:
        return f"{type(module).__name__} is not among the layers that are known"
    if _patched(module):
        return "hooks of its own or a replaced forward may change what it computes"
    if isinstance(module, nn.Embedding) and (module.scale_grad_by_freq or module.max_norm is not None):
        return "scale_grad_by_freq and max_norm make gradients depend on more than the tokens"
    return None


def _patched(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)


def _misuse(module: nn.Module, name: str, runs: list[Record]) -> str | None:
    """Why a layer's calls do not give per-sample gradients, or None."""
    for rows, run in zip((2, 3), runs, strict=True):
        call = run.calls.get(name)
        if call is None or call.count != 1:
            return f"the layer runs {0 if call is None else call.count} times in a forward pass"
        if not isinstance(call.inputs, Tensor):
            return "the layer is called with something else than one tensor"
        if call.changed:
            return "its input is changed in place afterwards"
        if call.edge is None:
            return "its output has no gradient"
        if call.inputs.shape[:1] != (rows,) or call.shape[:1] != (rows,):
            return "the first dimension of what it sees is not the samples"
        expected = KINDS[type(module)].inputs_dim
        if (call.inputs.dim() not in expected) if expected is not None else call.inputs.dim() < 2:
            return f"it sees tensors of {call.inputs.dim()} dimensions"
        if KINDS[type(module)].weight is not None and 0 in call.inputs.shape:
            return "its input is empty"
    if runs[0].calls[name].inputs.shape[1:] != runs[1].calls[name].inputs.shape[1:]:
        return "the shape of what it sees changes with the number of samples"
    return None


def _uses(model: nn.Module, outputs: Tensor) -> Counter[int]:
    """How many edges of the graph behind ``outputs`` lead to each parameter, by its id."""
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
                # Nodes are told apart by their Python objects, which live as long as somebody holds them.
                seen.add(following)
                waiting.append(following)
    return count
