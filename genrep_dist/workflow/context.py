"""What a worker receives about an experiment, and what it opens from that, once per process."""

from __future__ import annotations

import copy
import math
import platform
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from cachetools import LRUCache
from torch import Tensor, nn

from genrep_dist.config import Experiment
from genrep_dist.config.keys import Keys, Term
from genrep_dist.core.dropout_masks import mask_dropout
from genrep_dist.core.function_targets import FunctionTarget, TargetInputs
from genrep_dist.core.gradients.model import check_model
from genrep_dist.core.kernels.base import DerivedKernel, FeatureKernel, Kernel
from genrep_dist.core.kernels.user import UserKernel
from genrep_dist.core.losses import Loss, get_loss
from genrep_dist.core.targets import Target, class_labels, require_labels
from genrep_dist.core.tensors import numpy_values
from genrep_dist.errors import ProblemError
from genrep_dist.extension import owner_text, require_returned
from genrep_dist.plan import MAX_BLOCK_ROWS, MAX_PREDICTION_ROWS, kernel_names
from genrep_dist.problems.checks import build_model, has_module, is_shipped
from genrep_dist.problems.digests import Identity
from genrep_dist.problems.functions import has_recipe, predict_function, training_function
from genrep_dist.problems.load import load_class, load_problem, object_identity, problem_identity
from genrep_dist.problems.protocol import Dataset, Problem, Recipe
from genrep_dist.registry import Registration
from genrep_dist.seeds import derive_seed
from genrep_dist.store import Store
from genrep_dist.store.artifacts import Artifact
from genrep_dist.training.function_trainer import FunctionTrainer, predict_with
from genrep_dist.training.graphs.base import StepGraphs
from genrep_dist.training.graphs.cuda import CudaGraph
from genrep_dist.training.loop import predict
from genrep_dist.training.trainer import Trainer
from genrep_dist.workflow.checkpoints import unpack_state
from genrep_dist.workflow.data import read_data
from genrep_dist.workflow.extensions import extension_identities
from genrep_dist.workflow.recipes import recipe_in_force
from genrep_dist.workflow.returned import checked_tensor
from genrep_dist.workflow.targets import target_of
from genrep_dist.workflow.time_limit import time_limit

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """Small and picklable: where the store is, the experiment, and what the worker's own copy of the code must match.

    ``registrations`` are what other packages and programs registered in the driver, for workers to register too. ``prediction_rows`` and
    ``gradient_rows``: rows that pass through a model at once, of the plan, so that all workers compute the same bits. ``identities`` are
    those of the driver's problem, kernels and extensions, by what they are; ``host`` is the name of its machine.
    """

    store_uri: str
    keys: Keys
    search_path: tuple[str, ...] = ()
    registrations: tuple[Registration, ...] = ()
    prediction_rows: int = MAX_PREDICTION_ROWS
    gradient_rows: int = MAX_BLOCK_ROWS
    identities: Mapping[str, Identity] = field(default_factory=dict)
    host: str = ""

    @property
    def experiment(self) -> Experiment:
        return self.keys.experiment


def worker_keys(keys: Keys) -> Keys:
    """``keys`` without the password of the tracker, which no worker uses."""
    tracking = keys.experiment.tracking.redacted()
    return replace(keys, experiment=keys.experiment.model_copy(update={"tracking": tracking}))


@dataclass(frozen=True)
class TestPoints:
    """Points that are explained: ``inputs`` (M, ...), ``ids`` (M,) int64, and ``outputs`` (M,) int64, the explained output of each.

    For a target that is a function of all outputs ``outputs`` has the class that it is about, and ``targets`` (M, ...) the points' own
    targets, None where they are unknown. ``derivatives`` keeps those of the target by (seed, epoch).
    """

    __test__ = False

    inputs: Tensor
    ids: Tensor
    outputs: Tensor
    targets: Tensor | None = None
    derivatives: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, rows: slice) -> TestPoints:
        return TestPoints(self.inputs[rows], self.ids[rows], self.outputs[rows], None if self.targets is None else self.targets[rows])


class WorkerContext:
    """What the units of one experiment share: data, problem, kernels, and models at their checkpoints."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.keys = job.keys
        self.store = Store(job.store_uri)
        self.device = pick_device(job.experiment.resources.device)
        self.problem = load_problem(job.experiment.problem.name, job.experiment.problem.options, job.search_path)
        name, options = job.experiment.problem.name, job.experiment.problem.options
        found = {"problem": problem_identity(self.problem, options, name, check_build=False)}
        self.loss: Loss = get_loss(self.problem.loss)
        self.recipe = recipe_in_force(self.problem, job.experiment, job.search_path)
        self._kernels = load_kernels(job.experiment, job.search_path)
        found |= {f"kernels.{name}": own for name, own in function_identities(job.experiment, self._kernels).items()}
        found |= extension_identities(job.experiment, self.recipe, self._kernels, on_worker=True)
        for label, identity in found.items():
            # A stage that the driver does not know is not run.
            if label in job.identities or not label.startswith("stage "):
                expected = job.identities.get(label, Identity())
                identity.require_equal(expected, label, one_machine=job.host in ("", platform.node()))
        self.train = self._load("train")
        self.test = self._load("test")
        self._recent: LRUCache[Hashable, Any] = LRUCache(4)
        self._mask: int | None = None
        self.unit_began = time.perf_counter()

    @property
    def experiment(self) -> Experiment:
        return self.job.experiment

    @cached_property
    def target(self) -> Target:
        """What is explained."""
        return target_of(self.experiment, self.problem)

    @cached_property
    def trainer(self) -> Trainer | FunctionTrainer:
        """What trains the models of this experiment."""
        return make_trainer(self.problem, self.experiment, self.recipe, self.train)

    @cached_property
    def has_module(self) -> bool:
        """Whether the models are torch modules; else they have predictions only."""
        return has_module(self.problem)

    def predict(self, model: Any, inputs: Tensor) -> Tensor:
        """Outputs (N, C) in evaluation mode, without gradients, in as many rows at once as the plan allows."""
        if self.has_module:
            return predict(model, inputs, batch_size=self.job.prediction_rows)
        function = predict_function(self.problem)
        assert function is not None
        return predict_with(function, model, inputs, batch_size=self.job.prediction_rows)

    def elapsed(self) -> float:
        """Seconds that the running unit has taken so far."""
        return time.perf_counter() - self.unit_began

    def cached(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of ``key``, computed by ``make`` if it is not among the four most recently used."""
        if key not in self._recent:
            self._recent[key] = make()
        value: T = self._recent[key]
        return value

    def with_dropout_mask(self, mask: int) -> WorkerContext:
        """The same of subnetworks: :meth:`model` and :meth:`train_outputs` are those of mask number ``mask`` of each seed's network."""
        masked = copy.copy(self)
        masked._mask, masked._recent = mask, LRUCache(6)
        return masked

    def kernel(self, name: str) -> Kernel:
        """The kernel of that name with the experiment's settings."""
        return self._kernels.get(name) or self.experiment.kernel(name)

    def train_artifact(self, seed: int) -> Artifact:
        return self.store.artifact("train", self.keys.train(seed))

    def model(self, seed: int, epoch: int) -> nn.Module:
        """The model of ``seed`` after ``epoch`` epochs, in evaluation mode."""
        return self.cached(("model", seed, epoch), lambda: self._load_model(seed, epoch))

    def fresh_model(self) -> nn.Module:
        """A model as the problem builds it; the global random generators are left as they were."""
        return build_model(self.problem)

    def learning_rate(self, seed: int, epoch: int) -> float:
        """Learning rate of the step that starts from the checkpoint at ``epoch``."""
        artifact = self.train_artifact(seed)
        return float(artifact.read("rates")[artifact.read("epochs").tolist().index(epoch)])

    def term_rate(self, seed: int, term: Term) -> float:
        """The number that a product of a method's scores counts with."""
        return term.share * (self.learning_rate(seed, term.kernel_epoch) if term.weighted else 1.0)

    def num_outputs(self, seed: int) -> int:
        return int(self.train_artifact(seed).reader("outputs_test").shape[1])

    def train_outputs(self, seed: int, epoch: int) -> Tensor:
        """Outputs (N, C) on the training set after ``epoch`` epochs, on the CPU."""
        if self._mask is None:
            return stored_train_outputs(self.train_artifact(seed), epoch)
        return self.cached(("train outputs", seed, epoch), lambda: self.predict(self.model(seed, epoch), self.train.inputs).cpu())

    def test_points(self, seed: int) -> TestPoints:
        """The test points that the experiment explains for ``seed``."""
        return self.cached(("test points", seed), lambda: self._make_test_points(seed))

    def _make_test_points(self, seed: int) -> TestPoints:
        positions = self.keys.test_positions(seed)
        outputs, test = self.train_artifact(seed).read("outputs_test")[positions], self.test
        return self.make_points(test.inputs[positions], test.ids[positions], outputs, test.targets[positions])

    def make_points(self, inputs: Tensor, ids: Tensor, outputs: np.ndarray[Any, Any], targets: Tensor | None) -> TestPoints:
        """Test points: the original model's ``outputs`` (M, C), or the labels, choose what is explained."""
        labels = None if targets is None else class_labels(targets.cpu().numpy(), outputs.shape[1])
        chosen = torch.as_tensor(self.target.explained_outputs(outputs, labels), device=self.device)
        return TestPoints(inputs, ids, chosen, targets)

    def output_weights(self, seed: int, epoch: int, points: TestPoints) -> Tensor:
        """What K is taken of at ``points``: the explained output of each (M,), or the target's derivative in the outputs (M, C).

        The derivative is that at the outputs of the model after ``epoch`` epochs. ProblemError for points without targets that it needs.
        """
        target = self.target
        if not isinstance(target, FunctionTarget):
            return points.outputs
        if (seed, epoch) not in points.derivatives:
            if points.targets is None and target.uses_targets:
                require_labels(None, target)
            targets = torch.empty(len(points), 0) if points.targets is None else points.targets.cpu()
            outputs = self.predict(self.model(seed, epoch), points.inputs).cpu().double()
            inputs = TargetInputs(points.outputs.cpu(), targets, self.loss)
            found = checked_tensor(target.derivative(outputs, inputs), outputs.shape, target, "derivative", f"seed {seed}, epoch {epoch}")
            points.derivatives[seed, epoch] = found.to(self.device)
        return points.derivatives[seed, epoch]

    def _load(self, name: str) -> Dataset:
        dataset = read_data(self.store, self.keys.data, name)
        return Dataset(dataset.inputs.to(self.device), dataset.targets.to(self.device), dataset.ids)

    def _load_model(self, seed: int, epoch: int) -> nn.Module:
        # What the constructor draws is overwritten by the checkpoint.
        model = self.fresh_model()
        model.load_state_dict(unpack_state(self.train_artifact(seed), epoch))
        model.to(self.device).eval()
        if self._mask is not None:
            mask_dropout(model, derive_seed(seed, "dropout", self._mask), self.train.inputs[:2])
        check_model(model)
        return model


def stored_train_outputs(artifact: Artifact, epoch: int) -> Tensor:
    """Outputs (N, C) on the training set after ``epoch`` epochs, of the ``artifact`` of a trained model."""
    row = artifact.read("epochs").tolist().index(epoch)
    return torch.from_numpy(artifact.read("outputs_train")[row])


def make_trainer(
    problem: Problem, experiment: Experiment, recipe: Recipe, data: Dataset, most_seconds: float = math.inf
) -> Trainer | FunctionTrainer:
    """What trains the models of an experiment on ``data``: the problem's own function, or the recipe ``recipe`` in force.

    A training by a function may take ``resources.unit_timeout``, and ``most_seconds``.
    """
    function, loss = training_function(problem), get_loss(problem.loss)
    if function is None:
        graphs = StepGraphs(CudaGraph) if experiment.resources.cuda_graphs else None
        return Trainer(problem.model, loss, recipe, data, graphs=graphs)
    shortest = min(experiment.resources.unit_timeout or math.inf, most_seconds)
    seconds = None if math.isinf(shortest) else shortest
    epochs = declared_epochs(problem, experiment, recipe)
    return FunctionTrainer(problem, function, loss, recipe, data, epochs=epochs, limit=lambda where: time_limit(seconds, where))


def declared_epochs(problem: Problem, experiment: Experiment, recipe: Recipe) -> int | None:
    """The epochs of the recipe in force; None if neither the problem nor the experiment declares them."""
    return recipe.epochs if has_recipe(problem) or experiment.recipe.epochs is not None else None


def load_kernels(experiment: Experiment, search_path: Sequence[str]) -> dict[str, Kernel]:
    """The kernels of the methods, the bases of derived ones, and the user's own, by name.

    ProblemError for a class that is not there or cannot be built, and for a kernel that is not defined for a method or as a base.
    """
    for own in experiment.kernels.values():
        load_class(own.class_, own.options, search_path, "kernel")
    kernels = {name: experiment.kernel(name) for name in sorted({*kernel_names(experiment), *experiment.kernels})}
    for method in experiment.parsed_methods:
        if method.has_kernel and not kernels[method.kernel].supports(method.checkpoint, needs_gram=method.needs_gram):
            raise ProblemError(
                "a kernel is not defined for this method",
                where=f"methods: {method.name}",
                expected="a checkpoint and an importance that the kernel supports",
                got=owner_text(kernels[method.kernel]),
            )
    for name, kernel in list(kernels.items()):
        base = kernel.base if isinstance(kernel, DerivedKernel) else None
        if base is not None:
            kernels.setdefault(base, experiment.kernel(base))
            expected = "the name of a feature kernel, or None"
            require_returned(isinstance(kernels[base], FeatureKernel), kernel, "base", expected, repr(base), f"kernel {name}")
    return kernels


def function_identities(experiment: Experiment, kernels: Mapping[str, Kernel]) -> dict[str, Identity]:
    """Identities of the user's functions of pairs, by name."""
    own = {name: kernels[name] for name in experiment.kernels}
    return {n: object_identity(k.function, experiment.kernels[n].options) for n, k in own.items() if isinstance(k, UserKernel)}


def label_loss(loss: Loss) -> str:
    """The name of a shipped loss whose outputs stand for classes; empty for any other, whose outputs have no known meaning."""
    return loss.name if is_shipped(loss) and loss.name in ("logistic", "softmax") else ""


def pick_device(choice: str) -> torch.device:
    """The device of a worker; ProblemError when CUDA is requested and not there."""
    if choice == "cuda" and not torch.cuda.is_available():
        raise ProblemError("no CUDA device here", where="resources.device", expected="a GPU", got="none", remedy="use device: auto or cpu")
    return torch.device("cuda" if choice != "cpu" and torch.cuda.is_available() else "cpu")


def to_numpy(tensor: Tensor) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(numpy_values(tensor))
