"""Whether the models of a stacked pack may read a batch once for all, decided by a trial on a few rows and by nothing that is timed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from genrep_dist.core.generators import preserved_generators
from genrep_dist.core.losses import Loss
from genrep_dist.core.tensors import OUT_OF_MEMORY
from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.training.fast_paths import FastPaths
from genrep_dist.training.flop_count import MODEL_ERRORS
from genrep_dist.training.loop import TrainingRun, train_models
from genrep_dist.training.packs.base import Pack
from genrep_dist.training.packs.shared import SharedPack, is_narrow, sharing_layers
from genrep_dist.training.packs.stacked import StackedPack
from genrep_dist.training.randomness import Randomness
from genrep_dist.training.threads import one_thread

TRIAL_PACKS = ((0, 1, 2), (2, 0, 1), (1,))
"""The packs of the trial, of three models: a model has other company and another slot in each."""
NARROW_TRIAL_PACKS = (*TRIAL_PACKS, (0,), (2,), *(tuple(slot % 3 for slot in range(size)) for size in (8, 17)))
"""Those for narrow layers, whose products have slots of their own. The last two fill a product of 8 slots, and need several."""


def why_not_shared(
    factory: Callable[[], nn.Module], loss: Loss, recipe: Recipe, data: Dataset, fast_paths: FastPaths | None = None
) -> str | None:
    """Why models of ``factory``, which train in stacked packs, cannot read a batch once for all; None where they can.

    In the trial, on a CPU with one thread, a model must have the same bits in shared packs of any size and company. They must be those of
    a stacked pack, unless a layer is narrow (:func:`~genrep_dist.training.packs.shared.is_narrow`): then they agree to rounding.
    """
    model = Randomness(0).build(factory)
    layers = sharing_layers(model)
    if layers is None:
        return "other operations than linear layers, convolutions and embeddings take numbers from the batch"
    fast_paths, recipe = fast_paths or FastPaths(), replace(recipe, epochs=1)
    rows = min(len(data.inputs), recipe.batch_size + len(data.inputs) % recipe.batch_size)
    data = Dataset(data.inputs[:rows].cpu(), data.targets[:rows].cpu(), data.ids[:rows].cpu())

    def trained(kind: type[Pack], members: Sequence[int]) -> list[Tensor]:
        """The parameters (P,) of models, of which each is trained without other rows."""
        models = [copy.deepcopy(model) for _ in members]
        runs = [TrainingRun(Randomness(0), torch.arange(rows) % 4 != 3 - member) for member in members]
        train_models(models, loss, recipe, data, runs, kind=kind, fast_paths=fast_paths)
        return [parameters_of(one) for one in models]

    narrow = any(is_narrow(model.get_submodule(path)) for path in layers)
    packs = NARROW_TRIAL_PACKS if narrow else TRIAL_PACKS
    try:
        with preserved_generators(), one_thread():
            own_bits = trained(SharedPack, packs[0])
            for members in packs[1:]:
                if not all(torch.equal(one, own_bits[m]) for one, m in zip(trained(SharedPack, members), members, strict=True)):
                    return "its last bits depend on which models share a batch"
            for found, expected in zip(own_bits, trained(StackedPack, packs[0]), strict=True):
                if not (_agree(found, expected, parameters_of(model)) if narrow else torch.equal(found, expected)):
                    return "its numbers are others where a batch is read once"
    except OUT_OF_MEMORY:
        raise
    except (copy.Error, *MODEL_ERRORS) as error:
        return f"it fails on a batch that is read once ({type(error).__name__})"
    return None


def parameters_of(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def _agree(found: Tensor, expected: Tensor, initial: Tensor) -> bool:
    """Whether two models agree to rounding: up to a small share of their way from the ``initial`` one, and the last bits of parameters."""
    rounding = torch.finfo(found.dtype).eps
    allowed = math.sqrt(rounding) * float((expected - initial).norm()) + 8 * rounding * float(expected.norm())
    return float((found - expected).norm()) <= allowed
