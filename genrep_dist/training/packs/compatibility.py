"""Which models can train together, decided from the model and a trial on a few rows, never from anything that is timed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from torch import fx, nn

from genrep_dist.core.losses import Loss
from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.training.batches import padded_rows
from genrep_dist.training.fast_layers import is_large_embedding
from genrep_dist.training.fast_paths import FastPaths
from genrep_dist.training.flop_count import MODEL_ERRORS, forward_flop
from genrep_dist.training.optimizers import make_optimizer
from genrep_dist.training.packs.base import Pack
from genrep_dist.training.packs.mapped import MAPPED_SLOTS
from genrep_dist.training.packs.shared import is_narrow, sharing_layers
from genrep_dist.training.packs.stacked import StackedPack, stacked_layer
from genrep_dist.training.packs.stateful_layers import is_stateful
from genrep_dist.training.packs.trial import TRIAL_SHIFT, Factory, Trial, short_text
from genrep_dist.training.randomness import Randomness
from genrep_dist.training.torch_private import has_hooks

CPU_PACK_BYTES = 2**24
"""Parameters of a pack on a CPU, in bytes: more do not fit its caches."""

RANDOM_LAYERS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
MIXING_LAYERS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def why_not_packed(
    factory: Factory,
    loss: Loss,
    recipe: Recipe,
    data: Dataset,
    kind: type[Pack] = StackedPack,
    max_multiply_adds: int | None = None,
    fast_paths: FastPaths | None = None,
) -> str | None:
    """Why models of ``factory`` cannot train in packs of ``kind``; None where they can.

    They can if all layers have stacked counterparts or can be mapped, nothing but dropout is random, no sample of a batch affects another
    but in batch normalization, and a trial gives the results of each model alone. Mapped packs have neither of the two.
    ``max_multiply_adds`` is the size of a forward pass over a batch above which packs on a CPU are slower than single models (None: packs
    on a GPU).

    The trial runs on a CPU with one thread, so that all workers decide alike.
    """
    rows = min(len(data.inputs), recipe.batch_size + 2 * TRIAL_SHIFT)
    data = Dataset(data.inputs[:rows].cpu(), data.targets[:rows].cpu(), data.ids[:rows].cpu())
    on_cpu, fast_paths = max_multiply_adds is not None, fast_paths or FastPaths()
    if not make_optimizer(recipe).is_elementwise:
        return f"the optimizer {recipe.optimizer!r} does not declare that it is elementwise"
    model = Randomness(0).build(factory)
    reasons = _unstackable(model) if kind is StackedPack else _better_alone(model, recipe, fast_paths, on_cpu)
    reason = next(_unshareable(model, kind), None) or next(reasons, None)
    if reason is None and max_multiply_adds is not None:
        step = min(recipe.batch_size, len(data.inputs))
        reason = _too_large(model, data, step if kind is StackedPack else padded_rows(step), max_multiply_adds)
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        if reason is None and 2 * size > CPU_PACK_BYTES:
            reason = f"two models would take {2 * size:,} bytes, more than {CPU_PACK_BYTES:,}"
    return reason or Trial(factory, loss, recipe, data, kind, fast_paths).disagreement(on_cpu)


def has_narrow_products(factory: Factory, recipe: Recipe) -> bool:
    """Whether the first layer of models of ``factory`` is computed in products of several models, if models share batches.

    Such a model's last bits are others than in a stacked pack, so its training has another key. The answer follows from the model and the
    recipe alone: it is the same on machines on which a trial decides against packs.
    """
    model = Randomness(0).build(factory)
    return _may_be_stacked(model, recipe) and any(is_narrow(model.get_submodule(path)) for path in sharing_layers(model) or [])


def has_stateful_layers(factory: Factory, recipe: Recipe) -> bool:
    """Whether models of ``factory`` have dropout or batch normalization, and may train in stacked packs.

    Before there were stacked layers for them, such models were trained alone, with other last bits: their trainings have another key. The
    answer follows from the model and the recipe alone, as that of :func:`has_narrow_products`.
    """
    model = Randomness(0).build(factory)
    return any(map(is_stateful, model.modules())) and _may_be_stacked(model, recipe)


def training_products(factory: Factory, recipe: Recipe) -> str:
    """What of the way in which models train in packs belongs to the key of their training; "" for most."""
    kinds = {"narrow": has_narrow_products, "stateful": has_stateful_layers}
    return " ".join(word for word, holds in kinds.items() if holds(factory, recipe))


def _may_be_stacked(model: nn.Module, recipe: Recipe) -> bool:
    """Whether nothing that can be seen without running the model speaks against stacked packs."""
    reasons = itertools.chain(_unshareable(model, StackedPack), _unstackable(model))
    return make_optimizer(recipe).is_elementwise and next(reasons, None) is None


def _unshareable(model: nn.Module, kind: type[Pack]) -> Iterator[str]:
    """Reasons against packs of ``kind``, whatever the layers with parameters, that can be seen without running the model."""
    if getattr(model, "trains_alone", False):
        yield "the model says so (trains_alone)"
    for name, module in model.named_modules():
        title = _title(name, module)
        if has_hooks(module):
            yield f"{title} has hooks"
        if kind is StackedPack and is_stateful(module):
            continue
        if isinstance(module, MIXING_LAYERS):
            yield f"{title} mixes the samples of a batch"
        if isinstance(module, RANDOM_LAYERS) and module.p > 0:
            yield f"{title} draws random numbers"
        if next(module.buffers(recurse=False), None) is not None:
            yield f"{title} has buffers"


def _unstackable(model: nn.Module) -> Iterator[str]:
    """Layers without a stacked counterpart, and forward passes that stacked layers cannot take part in."""
    for name, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None and stacked_layer(module, 1) is None:
            yield f"{_title(name, module)} has no stacked counterpart"
    if len(list(model.named_parameters(remove_duplicate=False))) != len(list(model.parameters())):
        yield "layers share parameters"
    if all(stacked_layer(module, 1) is None for module in model.modules()):
        yield "it has no layer with a stacked counterpart"
    if stacked_layer(model, 1) is None:
        yield from _untraceable(model)


def _untraceable(model: nn.Module) -> Iterator[str]:
    try:
        graph = fx.Tracer().trace(model)
    except (fx.proxy.TraceError, *MODEL_ERRORS) as error:
        yield f"torch.fx cannot trace its forward pass ({short_text(error)})"
        return
    # Dropout may be called more than once: it has nothing that belongs to a call.
    calls = (str(node.target) for node in graph.nodes if node.op == "call_module")
    targets = [path for path in calls if not isinstance(model.get_submodule(path), RANDOM_LAYERS)]
    if any(node.op == "get_attr" for node in graph.nodes):
        yield "its forward pass reads parameters or tensors besides its layers"
    if len(set(targets)) != len(targets):
        yield "a layer is called more than once"


def _better_alone(model: nn.Module, recipe: Recipe, fast_paths: FastPaths, on_cpu: bool) -> Iterator[str]:
    """What a mapped pack would compute or hold in full and a single model does not."""
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    if on_cpu and size * MAPPED_SLOTS > CPU_PACK_BYTES:
        yield f"{MAPPED_SLOTS} models would take {size * MAPPED_SLOTS:,} bytes, more than {CPU_PACK_BYTES:,}"
    if fast_paths.sparse_embeddings and make_optimizer(recipe).accepts_sparse_gradients:
        for name, module in model.named_modules():
            if is_large_embedding(module):
                yield f"{_title(name, module)} has sparse gradients when its model trains alone"


def _too_large(model: nn.Module, data: Dataset, rows: int, most: int) -> str | None:
    found = forward_flop(model, data.inputs[:2]) * rows // 2
    return f"a step is {found:.1e} multiply-adds forward, more than {most:.1e}: alone it is faster on a CPU" if found > most else None


def _title(name: str, module: nn.Module) -> str:
    return f"layer {name!r} ({type(module).__name__})" if name else type(module).__name__
