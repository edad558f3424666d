"""The trial of a pack: steps of three models together, against each model alone."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from genrep_dist.core.generators import generator_states, preserved_generators
from genrep_dist.core.gradients.model import model_outputs
from genrep_dist.core.losses import Loss
from genrep_dist.core.tensors import OUT_OF_MEMORY
from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.training.batches import packed_steps
from genrep_dist.training.fast_paths import FastPaths
from genrep_dist.training.flop_count import MODEL_ERRORS
from genrep_dist.training.optimizers import make_optimizer
from genrep_dist.training.optimizers.base import OptimizedParameters
from genrep_dist.training.packs.base import Pack
from genrep_dist.training.packs.mapped import MAPPED_SLOTS
from genrep_dist.training.packs.stacked import StackedPack
from genrep_dist.training.packs.stateful_layers import is_stateful
from genrep_dist.training.precision import training_outputs
from genrep_dist.training.randomness import Randomness
from genrep_dist.training.threads import one_thread
from genrep_dist.training.torch_private import vector_jacobian_product

Factory = Callable[[], nn.Module]

TRIAL_SHIFT = 7
"""Each model of the trial takes rows that begin so many later, so that what one takes from another is noticed."""

SMALL_GRADIENT = 0.01
"""Of a bias before batch normalization the gradient is zero, and what is computed is rounding: smaller norms than this share of the largest
are not compared relative to themselves."""


@dataclass(frozen=True)
class Trial:
    """Steps of three models in packs, against each model alone."""

    factory: Factory
    loss: Loss
    recipe: Recipe
    data: Dataset
    kind: type[Pack]
    fast_paths: FastPaths

    def disagreement(self, on_cpu: bool) -> str | None:
        """What differs. In full precision the pack agrees with the single models to rounding; in the recipe's precision a model has the
        same bits in every pack that :meth:`_groups` lists.
        """
        models = [Randomness(seed).build(self.factory).train() for seed in range(3)]
        before = generator_states()
        groups = self._groups(on_cpu)
        try:
            # As units of work run: with two threads, how a batch of products is divided depends on how many there are.
            with preserved_generators(), one_thread(), warnings.catch_warnings():
                # torch warns where it cannot map a layer and computes it slot by slot.
                warnings.filterwarnings("error", ".*batching rule")
                still = _without_stateful_layers(models[0])
                changes = self._changes_itself(still)
                mixes = self._mixes_rows(still)
                drew = before != generator_states()
                other_numbers = self._other_numbers(models, groups[0])
                same_bits = self._same_bits(models, groups)
        except OUT_OF_MEMORY:
            raise
        except (UserWarning, copy.Error, pickle.PickleError, *MODEL_ERRORS) as error:
            return f"it fails on the rows of several models ({short_text(error)})"
        if drew:
            return "its forward pass draws random numbers"
        if changes:
            return "its forward pass changes the model in training"
        if mixes:
            return "the rows of one batch change each other's numbers"
        if other_numbers is not None:
            return other_numbers
        return None if same_bits else "its last bits depend on which models share a step"

    def _other_numbers(self, models: Sequence[nn.Module], group: Sequence[int]) -> str | None:
        """What differs between a pack in full precision and each of its models alone, by more than rounding.

        Which of two almost equal inputs of a max pool is the larger one is a matter of rounding, and changes a whole gradient. So what
        differs is computed again in float64, where the model can be.
        """
        found = self._differences(models, group)
        if found is None or any(p.dtype != torch.float32 for model in models for p in model.parameters()):
            return found
        inputs = self.data.inputs
        exact = replace(self, data=self.data._replace(inputs=inputs.double() if inputs.dtype == torch.float32 else inputs))
        try:
            return exact._differences([copy.deepcopy(model).double() for model in models], group)
        except OUT_OF_MEMORY:
            raise
        except MODEL_ERRORS:
            return found

    def _differences(self, models: Sequence[nn.Module], group: Sequence[int]) -> str | None:
        full = replace(self, recipe=replace(self.recipe, precision="full"))._packed_step(models, group)
        small = SMALL_GRADIENT if any(map(is_stateful, models[0].modules())) else 0.0
        for index, (computed, moved) in zip(group, full, strict=True):
            if not _agree(self._step_alone(models[index], index), computed, small):
                return "the rows of several models in one batch change each other's numbers"
            if not _agree(self._move_alone(models[index], computed[1:]), moved):
                return f"the optimizer {self.recipe.optimizer!r} moves several models otherwise than each alone"
        return None

    def _same_bits(self, models: Sequence[nn.Module], groups: Sequence[Sequence[int]]) -> bool:
        """Whether a model has the same bits in every pack. The numbers of one pack at a time are held beside those of each model."""
        first: dict[int, list[Tensor]] = {}
        for group in groups:
            for index, (computed, moved) in zip(group, self._packed_step(models, group), strict=True):
                tensors = computed + moved
                if not all(torch.equal(a, b) for a, b in zip(first.setdefault(index, tensors), tensors, strict=True)):
                    return False
        return True

    def _groups(self, on_cpu: bool) -> list[tuple[int, ...]]:
        """Which of the three models make up the packs of the trial. Equal bits are not claimed on a GPU: there one pack will do."""
        if self.kind is StackedPack:
            return [(0, 1, 2), (2, 0, 1), (0,), (1,), (2,)]
        if on_cpu:
            return [tuple(slot % 3 for slot in range(MAPPED_SLOTS)), tuple(slot // 11 for slot in range(MAPPED_SLOTS))]
        return [(0, 1, 2)]

    def _order(self, index: int) -> Tensor:
        """The rows (B,) of the batch of model ``index``."""
        rows = min(len(self.data.inputs), self.recipe.batch_size)
        return (torch.arange(rows) + TRIAL_SHIFT * index) % len(self.data.inputs)

    def _changes_itself(self, model: nn.Module) -> bool:
        """Whether a pass in training mode changes parameters, or the outputs of the next pass: such changes would be lost or mixed."""
        model, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                # A parameter that follows another one, as a moving average does, begins as its copy: move them apart.
                if parameter.is_floating_point() or parameter.is_complex():
                    parameter.add_(0.01 * torch.rand(parameter.shape, generator=generator))
            before = [parameter.clone() for parameter in model.parameters()]
            first, second = (model_outputs(model, self.data.inputs) for _ in range(2))
        return not (torch.equal(first, second) and all(map(torch.equal, before, model.parameters())))

    def _mixes_rows(self, model: nn.Module) -> bool:
        """Whether the outputs of all rows differ from those of each half of them."""
        inputs = self.data.inputs
        with torch.no_grad():
            whole = model_outputs(model, inputs)
            halves = [model_outputs(model, part) for part in torch.tensor_split(inputs, [len(inputs) // 2]) if len(part)]
        return not _agree([whole], [torch.cat(halves)])

    def _step_alone(self, model: nn.Module, index: int) -> list[Tensor]:
        """Outputs and gradients by parameter of one plain model on its own rows."""
        rows = self._order(index)
        torch.manual_seed(index)
        outputs = model_outputs(model, self.data.inputs[rows])
        slopes = self.loss.derivative(outputs.detach(), self.data.targets[rows]) / len(rows)
        gradients = vector_jacobian_product(outputs, _trained(model), slopes)
        return [outputs.detach(), *(gradient.to_dense() for gradient in gradients)]

    def _move_alone(self, model: nn.Module, gradients: Sequence[Tensor]) -> list[Tensor]:
        """The parameters of a plain model after two steps along ``gradients``."""
        moved = copy.deepcopy(model)
        names = [name for name, p in moved.named_parameters() if p.requires_grad]
        optimized = OptimizedParameters(make_optimizer(self.recipe), _trained(moved), names=names)
        for _ in range(2):
            optimized.step(gradients, self.recipe.learning_rate)
        return [p.detach() for p in _trained(moved)]

    def _packed_step(self, models: Sequence[nn.Module], group: Sequence[int]) -> list[tuple[list[Tensor], list[Tensor]]]:
        """For each slot: outputs and gradients as :meth:`_step_alone`, parameters as :meth:`_move_alone`, in the plain model's shapes."""
        optimizer = make_optimizer(self.recipe)
        pack = self.kind(models[group[0]], len(group), optimizer, self.fast_paths)
        for slot, index in enumerate(group):
            pack.load(slot, models[index])
        pack.seed(group)
        orders = torch.stack([self._order(index) for index in group])
        (step,) = packed_steps(orders, orders.shape[1], torch.ones(len(group), len(self.data.inputs), dtype=torch.bool), 0)
        rows = step.rows.flatten()
        pack.begin(step)
        outputs = training_outputs(pack.module, self.data.inputs[rows], self.recipe)
        slopes = step.mean_gradient(self.loss.derivative(outputs.detach(), self.data.targets[rows]))
        gradients = vector_jacobian_product(outputs, pack.parameters, slopes)
        for _ in range(2):
            pack.optimized.step(gradients, self.recipe.learning_rate)
        moved = self._unloaded(pack, models, group)
        with torch.no_grad():
            for parameter, gradient in zip(pack.parameters, gradients, strict=True):
                parameter.copy_(gradient.to_dense() if gradient.is_sparse else gradient)
        own = outputs.detach().view(*step.rows.shape, -1)[:, : orders.shape[1]]
        return [([own[slot], *one], moved[slot]) for slot, one in enumerate(self._unloaded(pack, models, group))]

    def _unloaded(self, pack: Pack, models: Sequence[nn.Module], group: Sequence[int]) -> list[list[Tensor]]:
        """The trained parameters that each slot holds, in the plain model's shapes."""
        found = []
        for slot, index in enumerate(group):
            model = copy.deepcopy(models[index])
            pack.unload(slot, model)
            found.append([p.detach() for p in _trained(model)])
        return found


def _without_stateful_layers(model: nn.Module) -> nn.Module:
    """The model, or a copy without dropout and batch normalization, which a stacked pack computes slot by slot."""
    paths = [path for path, module in model.named_modules() if is_stateful(module)]
    if not paths:
        return model
    root = nn.ModuleDict({"model": copy.deepcopy(model)})
    for path in paths:
        parent, _, name = f"model.{path}".rstrip(".").rpartition(".")
        setattr(root.get_submodule(parent), name, nn.Identity())
    return root["model"]


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _agree(expected: Sequence[Tensor], found: Sequence[Tensor], small: float = 0.0) -> bool:
    """Whether each tensor agrees with the expected one up to the square root of the rounding error; NaN does not.

    Relative to its norm, and at least to that of the largest tensor times ``small``.
    """
    norms = [float(tensor.norm()) for tensor in expected]
    least = small * max(norms)
    return all(
        float((a - b).norm()) <= torch.finfo(a.dtype).eps ** 0.5 * (max(norm, least) or 1.0)
        for a, b, norm in zip(expected, found, norms, strict=True)
    )


def short_text(error: Exception) -> str:
    """The type of an error and the start of its first line."""
    return f"{type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''}"
