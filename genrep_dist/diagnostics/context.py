"""The run under check, its loaded models, a sample of its rows, and slow references computed one sample at a time."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from genrep_dist.core.gradients.per_sample import per_sample_gradients
from genrep_dist.core.importances.base import SolvedImportance
from genrep_dist.core.inputs import in_dtype
from genrep_dist.core.kernels.base import FeatureKernel, Kernel
from genrep_dist.problems.protocol import recorded_recipe
from genrep_dist.results import Run
from genrep_dist.seeds import derive_seed
from genrep_dist.store.artifacts import Artifact
from genrep_dist.store.paths import ResultPaths
from genrep_dist.workflow.context import WorkerContext
from genrep_dist.workflow.features import kernel_at

ROUNDINGS = 1000
"""Allowed difference between two ways of computing one sum, in roundings: the square root of a million terms, whose errors add up
like a random walk. Real faults are larger by orders of magnitude."""


GRADIENT_COPIES = 8
"""Copies of the sampled gradients that a check holds at once, some of them in float64."""
FEW_OUTPUTS = 3


class NotApplicableError(Exception):
    """A check is about parameters or a checkpoint that this kind of training does not keep: it is left out."""


class CheckContext:
    """A finished run. Checks that are too expensive for all seeds use its first ``seed``.

    ``rows``: positions (S,) of sampled training rows, ascending, drawn by a seed derived from the first one. S is ``samples``, but at
    most N, and at most the number of samples whose gradients fit the memory budget. ``outputs``: (None,), all outputs together; or, if
    the gradients of all outputs of one sample do not fit, a few drawn outputs, checked one after the other. ``before_retraining``: the
    run is at its beginning, and has one seed, whose original model is trained. ``in_float64``: models and inputs are in float64.
    """

    def __init__(self, run: Run, samples: int, *, before_retraining: bool = False, in_float64: bool = False) -> None:
        self.run = run
        self.before_retraining, self.in_float64 = before_retraining, in_float64
        self.plan = run.plan
        self.store = run.store
        self.seeds = run.plan.experiment.seeds
        self.seed = self.seeds[0]
        self.memory_budget_bytes = run.plan.experiment.resources.memory_budget
        shape = run.plan.shape
        gradient_bytes = max(1, GRADIENT_COPIES * shape.parameter_bytes)
        self.outputs: tuple[int | None, ...] = (None,)
        if gradient_bytes * shape.num_outputs <= self.memory_budget_bytes:
            gradient_bytes *= shape.num_outputs
        else:
            drawn = self.generator("outputs").choice(shape.num_outputs, size=min(FEW_OUTPUTS, shape.num_outputs), replace=False)
            self.outputs = tuple(sorted(drawn.tolist()))
        count = max(1, min(samples, shape.num_train, self.memory_budget_bytes // gradient_bytes))
        self.rows = sorted(self.generator("rows").choice(shape.num_train, size=count, replace=False).tolist())

    def generator(self, purpose: str) -> np.random.Generator:
        """Random numbers that depend on the first seed and ``purpose`` only."""
        return np.random.Generator(np.random.Philox(derive_seed(self.seed, "doctor", purpose)))

    @cached_property
    def worker(self) -> WorkerContext:
        """The problem and its data, on the experiment's device."""
        return self.run.context

    @cached_property
    def model(self) -> nn.Module:
        """The first seed's final model, which the run explains."""
        return self.model_at(self.plan.keys.epochs)

    def model_at(self, epoch: int) -> nn.Module:
        """The first seed's model after ``epoch`` epochs, in evaluation mode. Unlike in the stages, the model is not validated.

        Raises NotApplicableError for models that are no torch modules.
        """
        if not self.plan.shape.has_module:
            raise NotApplicableError
        model = self.worker.fresh_model()
        model.load_state_dict(self.run.checkpoint(self.seed, epoch))
        return (model.double() if self.in_float64 else model).to(self.worker.device).eval()

    @property
    def inputs(self) -> Tensor:
        """Inputs (S, ...) of the sampled training rows."""
        return self.in_dtype(self.worker.train.inputs[self.rows])

    def in_dtype(self, inputs: Tensor) -> Tensor:
        """``inputs`` as the models take them."""
        return in_dtype(inputs, torch.float64) if self.in_float64 else inputs

    @property
    def test_inputs(self) -> Tensor:
        """Inputs (M, ...) of the first seed's test points."""
        return self.worker.test.inputs[self.plan.keys.test_positions(self.seed)]

    def gradients(self, model: nn.Module, inputs: Tensor, output: int | None) -> Tensor:
        """Per-sample gradients (B, C, P) of ``inputs`` (B, ...), or (B, P) of one ``output``."""
        return per_sample_gradients(model, inputs, self.output_index(inputs, output))

    def output_index(self, inputs: Tensor, output: int | None) -> Tensor | None:
        """One of :attr:`outputs` for each of ``inputs`` (B, ...)."""
        return None if output is None else torch.full((len(inputs),), output, dtype=torch.int64, device=inputs.device)

    @property
    def outputs_text(self) -> str:
        """Which outputs gradients were computed of, for a finding; "" for all."""
        chosen = [str(output) for output in self.outputs if output is not None]
        return f"; outputs {', '.join(chosen)} only, as the gradients of all exceed memory_budget" if chosen else ""

    def train_id(self, sample: int) -> int:
        """The sample id of sampled row number ``sample``."""
        return int(self.worker.train.ids[self.rows[sample]])

    def train_artifact(self, seed: int) -> Artifact:
        return self.store.artifact("train", self.plan.keys.train(seed))

    def solved_artifact(self, importance: str, seed: int, kernel: str, epoch: int) -> Artifact:
        return self.store.artifact(importance, self.plan.keys.solved(importance, seed, kernel, epoch))

    def train_outputs(self, seed: int, epoch: int) -> npt.NDArray[np.float64]:
        """Stored outputs (N, C) float64 on the training set after ``epoch`` epochs. NotApplicableError if they were not kept."""
        artifact = self.train_artifact(seed)
        epochs = artifact.read("epochs").tolist()
        if epoch not in epochs:
            raise NotApplicableError
        row = epochs.index(epoch)
        return np.asarray(artifact.read("outputs_train")[row], dtype=np.float64)

    def kernel_at(self, name: str, epoch: int) -> Kernel:
        """A kernel at a checkpoint of the first seed."""
        kernel = self.worker.kernel(name)
        return kernel_at(self.worker, name, self.seed, epoch) if isinstance(kernel, FeatureKernel) else kernel

    def feature_kernels(self) -> dict[str, FeatureKernel]:
        """The feature kernels of the run, by name."""
        kernels = {name: self.worker.kernel(name) for name, _ in self.plan.needs.features}
        return {name: kernel for name, kernel in kernels.items() if isinstance(kernel, FeatureKernel)}

    @property
    def uses_gradients(self) -> bool:
        """Whether the run uses gradients of the parameters."""
        return bool(self.plan.needs.derived) or any(kernel.factored for kernel in self.feature_kernels().values())

    def solved(self, importance: type[SolvedImportance]) -> list[tuple[str, int]]:
        """(kernel, epoch) of every gram on which an importance was solved."""
        return [(kernel, epoch) for name, kernel, epoch in self.plan.needs.solved if name == importance.name]

    @property
    def num_steps(self) -> int:
        """Steps of one training run."""
        recipe = recorded_recipe(self.plan.keys.recipe)
        return recipe.epochs * recipe.steps_per_epoch(self.plan.shape.num_train)

    @property
    def rounding(self) -> float:
        """The bound for two ways of computing one number in the model's dtype, relative to its scale."""
        return ROUNDINGS * float(torch.finfo(next(p.dtype for p in trainable(self.model))).eps)


def recompute_text(context: CheckContext, *wrong: str) -> str:
    """The remedy for files that were changed after they were written. The manifest goes too: with it the run counts as finished."""
    return f"delete {' and '.join([*wrong, ResultPaths(context.run.name).manifest])} in the store and run the experiment again"


def rerun_text(context: CheckContext, artifact: Artifact) -> str:
    """The same for one artifact."""
    return recompute_text(context, f"the folder {artifact.path}")


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Parameters with gradients, in the order of ``model.named_parameters()``."""
    return [p for p in model.parameters() if p.requires_grad]


def largest_relative(difference: Tensor, reference: Tensor) -> tuple[float, int]:
    """The largest ||difference|| / ||reference|| over rows (S, ..., P), and its sample. NaN counts as the largest.

    Norms of ``reference`` below the rounding error of its largest row are replaced by that rounding error.
    """
    sizes = reference.double().norm(dim=-1).reshape(len(reference), -1)
    errors = difference.double().norm(dim=-1).reshape(len(reference), -1)
    floor = torch.finfo(reference.dtype).eps * sizes.max()
    return largest_sample(torch.where(errors == 0, 0.0, errors / torch.maximum(sizes, floor)))


def largest_sample(ratios: Tensor) -> tuple[float, int]:
    """The largest of ``ratios`` (S, ...), and its sample. NaN counts as the largest."""
    by_sample = ratios.flatten(1).amax(dim=1)
    sample = int(torch.where(by_sample.isnan(), torch.inf, by_sample).argmax())
    return float(by_sample[sample]), sample


def dtype_text(values: Tensor) -> str:
    return str(values.dtype).removeprefix("torch.")
