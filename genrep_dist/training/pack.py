"""S models of one architecture in one module, and which architectures that can be done with."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from genrep_dist.core.gradients.model import model_outputs
from genrep_dist.core.losses import Loss
from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.training.flop_count import CODE_FAILS, forward_flop
from genrep_dist.training.precision import training_outputs
from genrep_dist.training.randomness import Randomness
from genrep_dist.training.sgd import MIN_SPARSE_NUMBERS, is_large_table
from genrep_dist.training.stacked_layers import Stacked, StackedEmbedding, stack_layer
from genrep_dist.training.threads import one_thread
from genrep_dist.training.vmap_pack import MAPPED_SLOTS, MappedPack

ROW_MULTIPLE = 32
"""A slot's rows are filled up to a multiple of this. The end of a tensor that does not fill two vector registers is computed by other
instructions, with other last bits, and which rows are at the end depends on how many slots there are."""

CPU_PACK_BYTES = 2**24
"""Parameters of a pack on a CPU."""

TRIAL_SHIFT = 7
"""Each slot of the trial takes rows that begin so many later: what one slot takes from another is then seen."""


class Pack:
    """A module that applies ``slots`` models, each to its own rows: inputs (S B, ...) -> outputs (S B, C)."""

    def __init__(self, template: nn.Module, slots: int, recipe: Recipe) -> None:
        self.slots = slots
        self.layers: dict[str, Stacked] = {}
        root = nn.ModuleDict({"model": copy.deepcopy(template)})
        for path, plain in list(root.named_modules()):
            layer = stack_layer(plain, slots) if next(plain.parameters(recurse=False), None) is not None else None
            if layer is None:
                continue
            self.layers[path.removeprefix("model").removeprefix(".")] = layer
            parent, _, name = path.rpartition(".")
            setattr(root.get_submodule(parent), name, layer) if parent else root.update({name: layer})
            if isinstance(layer, StackedEmbedding):
                layer.row_wise = recipe.is_plain_sgd and layer.stacked["weight"].numel() >= slots * MIN_SPARSE_NUMBERS
        self.module: nn.Module = root["model"].train()
        self.parameters = [t for layer in self.layers.values() for t in layer.stacked.values() if t.requires_grad]

    def load(self, slot: int, model: nn.Module) -> None:
        """Put ``model`` into a slot."""
        for path, layer in self.layers.items():
            layer.load(slot, model.get_submodule(path))

    def unload(self, slot: int, model: nn.Module) -> None:
        """Write a slot's parameters into ``model``."""
        for path, layer in self.layers.items():
            layer.unload(slot, model.get_submodule(path))

    def of_slots(self, tensors: list[Tensor]) -> list[Tensor]:
        """Tensors of the parameters' shapes with S as their first dimension, the same memory."""
        layers = [layer for layer in self.layers.values() for t in layer.stacked.values() if t.requires_grad]
        return [layer.of_slots(t) for layer, t in zip(layers * (len(tensors) // max(1, len(layers))), tensors, strict=True)]


PackKind = type[Pack] | type[MappedPack]


def why_not_packed(
    factory: Callable[[], nn.Module],
    loss: Loss,
    recipe: Recipe,
    data: Dataset,
    kind: PackKind = Pack,
    max_work: int | None = None,
) -> str | None:
    """Why models of ``factory`` cannot share a step in packs of ``kind``; None where they can: nothing random, samples apart, layers that
    are stacked or can be mapped, and a trial that agrees.

    ``max_work`` is how many multiply-adds a forward pass over a batch may take for sharing to gain anything.

    A function of the model, the loss and the recipe, tried on a CPU, so that all workers decide alike.
    """
    rows = min(len(data.inputs), recipe.batch_size + 2 * TRIAL_SHIFT)
    data = Dataset(data.inputs[:rows].cpu(), data.targets[:rows].cpu(), data.ids[:rows].cpu())
    model = Randomness(0).build(factory)
    reason = next(_barred(model), None) or next(_unknown(model) if kind is Pack else _costly(model, recipe, max_work), None)
    if reason is None and max_work is not None:
        step = min(recipe.batch_size, len(data.inputs))
        reason = _too_large(model, data, step if kind is Pack else filled(step), max_work)
    # Where every model shares, as on a GPU, large ones do, too; there equal bits are not claimed, and three at once are enough of a trial.
    companies = _companies(kind) if kind is Pack or max_work is not None else [(0, 1, 2)]
    return reason or _trial(factory, loss, recipe, data, kind, companies)


def filled(rows: int) -> int:
    """Rows of a slot that holds ``rows``, filled up."""
    return -(-rows // ROW_MULTIPLE) * ROW_MULTIPLE


def _barred(model: nn.Module) -> Iterator[str]:
    """Reasons against any sharing that can be seen without running anything."""
    if getattr(model, "trains_alone", False):
        yield "the model says so (trains_alone)"
    for name, module in model.named_modules():
        called = _called(name, module)
        if isinstance(module, _BatchNorm):
            yield f"{called} mixes the samples of a batch"
        if isinstance(module, _DropoutNd) and module.p > 0:
            yield f"{called} draws random numbers"
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
            yield f"{called} has hooks"
        if next(module.buffers(recurse=False), None) is not None:
            yield f"{called} has buffers"


def _unknown(model: nn.Module) -> Iterator[str]:
    """What there is no stacked layer for, and ways of a forward pass that stacked layers cannot go."""
    for name, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None and stack_layer(module, 1) is None:
            yield f"{_called(name, module)} is none of the layers that are known"
    if len(list(model.named_parameters(remove_duplicate=False))) != len(list(model.parameters())):
        yield "layers share parameters"
    if all(stack_layer(module, 1) is None for module in model.modules()):
        yield "it has no layer that is known"
    if stack_layer(model, 1) is None:
        yield from _flow(model)


def _costly(model: nn.Module, recipe: Recipe, max_work: int | None) -> Iterator[str]:
    """What mapping would compute or hold in full where a model alone does not."""
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    if max_work is not None and size * MAPPED_SLOTS > CPU_PACK_BYTES:
        yield f"{MAPPED_SLOTS} models would take {size * MAPPED_SLOTS:,} bytes, more than {CPU_PACK_BYTES:,}"
    for name, module in model.named_modules():
        if recipe.is_plain_sgd and is_large_table(module):
            yield f"{_called(name, module)} is moved row by row"


def _called(name: str, module: nn.Module) -> str:
    return f"layer {name!r} ({type(module).__name__})" if name else type(module).__name__


def _flow(model: nn.Module) -> Iterator[str]:
    try:
        graph = fx.Tracer().trace(model)
    except (fx.proxy.TraceError, *CODE_FAILS) as error:
        yield f"its forward pass cannot be followed ({type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''})"
        return
    targets = [node.target for node in graph.nodes if node.op == "call_module"]
    if any(node.op == "get_attr" for node in graph.nodes):
        yield "its forward pass reads parameters or tensors besides its layers"
    if len(set(targets)) != len(targets):
        yield "a layer is called more than once"


def _too_large(model: nn.Module, data: Dataset, rows: int, max_work: int) -> str | None:
    work = forward_flop(model, data.inputs[:2]) * rows // 2
    return f"a step is {work:.1e} multiply-adds forward, more than {max_work:.1e}: alone it is faster on a CPU" if work > max_work else None


def _failed(error: Exception) -> str:
    first = str(error).splitlines()[0][:100] if str(error) else ""
    return f"it fails on the rows of several models ({type(error).__name__}: {first})"


def _trial(
    factory: Callable[[], nn.Module], loss: Loss, recipe: Recipe, data: Dataset, kind: PackKind, companies: Sequence[tuple[int, ...]]
) -> str | None:
    """Outputs and gradients of three models at once against each alone: equal to rounding in full precision, and bit for bit in all
    ``companies`` in the recipe's.
    """
    rows = min(len(data.inputs), recipe.batch_size)
    models = [Randomness(seed).build(factory).train() for seed in range(3)]
    generator = torch.get_rng_state()

    def packed(company: Sequence[int], recipe: Recipe) -> list[tuple[int, list[Tensor]]]:
        """Which model each slot has, and what it comes to there."""
        step = _packed_step([models[index] for index in company], loss, recipe, data, rows, company, kind)
        return list(zip(company, step, strict=True))

    try:
        # As units of work run: two threads would share out a batch of products by how many there are.
        with one_thread(), warnings.catch_warnings():
            # Torch says so where it knows no way to map a layer and does it slot by slot.
            warnings.filterwarnings("error", ".*batching rule")
            mixes = _mixes(models[0], data)
            alone = [_step(model, loss, data, rows, shift) for shift, model in enumerate(models)]
            full = packed(companies[0], replace(recipe, precision="full"))
            found = [one for company in companies for one in packed(company, recipe)]
    except (UserWarning, *CODE_FAILS) as error:
        return _failed(error)
    finally:
        drew = not torch.equal(generator, torch.get_rng_state())
        torch.set_rng_state(generator)
    if drew:
        return "its forward pass draws random numbers"
    if mixes:
        return "the rows of one batch change each other's numbers"
    for index, shared in full:
        for plain, one in zip(alone[index], shared, strict=True):
            scale = float(plain.norm())
            if not float((plain - one).norm()) <= torch.finfo(plain.dtype).eps ** 0.5 * (scale or 1.0):
                return "the rows of several models in one batch change each other's numbers"
    first = dict(reversed(found))
    if not all(torch.equal(a, b) for index, one in found for a, b in zip(first[index], one, strict=True)):
        return "its last bits depend on which models share a step"
    return None


def _mixes(model: nn.Module, data: Dataset) -> bool:
    """Whether outputs for all rows are others than those for each half of them."""
    half = len(data.inputs) // 2
    with torch.no_grad():
        whole = model_outputs(model, data.inputs)
        halves = torch.cat([model_outputs(model, part) for part in (data.inputs[:half], data.inputs[half:]) if len(part)])
    return not float((whole - halves).norm()) <= torch.finfo(whole.dtype).eps ** 0.5 * (float(whole.norm()) or 1.0)


def _companies(kind: PackKind) -> list[tuple[int, ...]]:
    """Which of three models make up the packs of a trial."""
    if kind is Pack:
        return [(0, 1, 2), (0,), (1,), (2,)]
    # Always as many, in other slots.
    return [tuple(slot % 3 for slot in range(MAPPED_SLOTS)), tuple(slot // 11 for slot in range(MAPPED_SLOTS))]


def _step(module: nn.Module, loss: Loss, data: Dataset, rows: int, shift: int) -> list[Tensor]:
    """Outputs and gradients by parameter of one plain model on its own rows."""
    index = _trial_rows(data, rows, shift)
    outputs = model_outputs(module, data.inputs[index])
    parameters = [p for p in module.parameters() if p.requires_grad]
    slopes = loss.derivative(outputs.detach(), data.targets[index]) / rows
    return [outputs.detach(), *torch.autograd.grad(outputs, parameters, slopes)]


def _packed_step(
    models: list[nn.Module], loss: Loss, recipe: Recipe, data: Dataset, rows: int, shifts: Sequence[int], kind: PackKind
) -> list[list[Tensor]]:
    """The same of each slot, gradients by way of the plain model's parameters, so that shapes and order are theirs."""
    pack = kind(models[0], len(models), recipe)
    for slot, model in enumerate(models):
        pack.load(slot, model)
    size = filled(rows)
    index = torch.cat([_filled_rows(_trial_rows(data, rows, shift), size) for shift in shifts])
    outputs = training_outputs(pack.module, data.inputs[index], recipe)
    divisors = torch.full((len(models), size, 1), float("inf"), dtype=outputs.dtype, device=outputs.device)
    divisors[:, :rows] = rows
    slopes = loss.derivative(outputs.detach(), data.targets[index]) / divisors.flatten(0, 1)
    gradients = torch.autograd.grad(outputs, pack.parameters, slopes)
    with torch.no_grad():
        for parameter, gradient in zip(pack.parameters, gradients, strict=True):
            parameter.copy_(gradient.to_dense() if gradient.is_sparse else gradient)
    found = []
    for slot, model in enumerate(models):
        received = copy.deepcopy(model)
        pack.unload(slot, received)
        own = outputs.detach().view(len(models), size, -1)[slot, :rows]
        found.append([own, *(p.detach() for p in received.parameters() if p.requires_grad)])
    return found


def _trial_rows(data: Dataset, rows: int, shift: int) -> Tensor:
    return (torch.arange(rows, device=data.inputs.device) + TRIAL_SHIFT * shift) % len(data.inputs)


def _filled_rows(index: Tensor, size: int) -> Tensor:
    return torch.cat([index, index[:1].expand(size - len(index))])
