"""What a worker is told about the experiment, and what it opens from that, once per process."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from genrep_dist.config import Experiment
from genrep_dist.config.keys import Keys
from genrep_dist.core.attribution import random_scores
from genrep_dist.core.gradients.factored import FactoredGradients, GramOperand
from genrep_dist.core.gradients.inspection import inspect_model
from genrep_dist.core.gradients.last_layer import find_last_layer, last_layer_features
from genrep_dist.core.gradients.model import check_model
from genrep_dist.core.gradients.per_sample import factored_gradients, per_sample_gradients
from genrep_dist.core.gradients.projection import Projection
from genrep_dist.core.kernels.blocks import Kernel
from genrep_dist.core.losses import Loss, get_loss
from genrep_dist.errors import NonFiniteError, ProblemError
from genrep_dist.problems.checks import is_shipped
from genrep_dist.problems.load import load_object, load_problem, object_digest, source_digest
from genrep_dist.problems.protocol import Dataset, Problem, Recipe
from genrep_dist.problems.tables import from_table, to_table
from genrep_dist.seeds import derive_seed
from genrep_dist.store import Store
from genrep_dist.store.artifacts import Artifact
from genrep_dist.store.tables import get_table, put_table
from genrep_dist.training.trainer import Trainer
from genrep_dist.units import DiagonalUnit, GramUnit, KernelUnit
from genrep_dist.workflow.checkpoints import unpack_state

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """Small and picklable: where the store is, what is asked, and the digests that the worker's own copy must match."""

    store_uri: str
    keys: Keys
    search_path: tuple[str, ...] = ()

    @property
    def experiment(self) -> Experiment:
        return self.keys.experiment


def recipe_in_force(problem: Problem, experiment: Experiment) -> Recipe:
    """The problem's recipe with the experiment's changes."""
    return replace(problem.recipe, **experiment.recipe.model_dump(exclude_none=True))


def publish_data(store: Store, digest: str, train: Dataset, test: Dataset) -> None:
    """Put the samples into the store, where every worker reads them."""
    for name, dataset in (("train", train), ("test", test)):
        path = f"data/{digest}/{name}.parquet"
        if not store.objects.exists(path):
            put_table(store.objects, path, to_table(dataset))


def read_data(store: Store, digest: str, name: str) -> Dataset:
    return from_table(get_table(store.objects, f"data/{digest}/{name}.parquet"))


def sample_ids(store: Store, digest: str, name: str) -> npt.NDArray[np.int64]:
    """Ids of the samples of 'train' or 'test', in the order of every array; the samples are not read."""
    ids: npt.NDArray[np.int64] = get_table(store.objects, f"data/{digest}/{name}.parquet", columns=["id"]).column("id").to_numpy()
    return ids


class Recent:
    """The few most recently used values: models and features that the next unit is likely to want again."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[Any, Any] = OrderedDict()

    def get(self, key: Any, make: Callable[[], T]) -> T:
        if key not in self._values:
            self._values[key] = make()
        self._values.move_to_end(key)
        while len(self._values) > self._size:
            self._values.popitem(last=False)
        value: T = self._values[key]
        return value


class Workbench:
    """Everything that the units of one experiment use: data, problem, models at their checkpoints."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.keys = job.keys
        self.store = Store(job.store_uri)
        self.device = pick_device(job.experiment.resources.device)
        self.problem = load_problem(job.experiment.problem.name, job.experiment.problem.options, job.search_path)
        _same_source(job.experiment.problem.name, source_digest(self.problem, job.experiment.problem.options), job.keys.problem)
        self.loss: Loss = get_loss(self.problem.loss)
        self.recipe = recipe_in_force(self.problem, job.experiment)
        self.own_kernels = load_own_kernels(job.experiment, job.search_path)
        _same_source("kernels", own_kernel_digests(job.experiment, self.own_kernels), job.keys.own_kernels)
        self.train = self._load("train")
        self.test = self._load("test")
        self._recent = Recent(4)
        self._trainer: Trainer | None = None
        self.began = time.perf_counter()
        """When the unit of work that is running began."""

    @property
    def experiment(self) -> Experiment:
        return self.job.experiment

    @property
    def trainer(self) -> Trainer:
        """What trains the models of this experiment."""
        if self._trainer is None:
            self._trainer = Trainer(self.problem.model, self.loss, self.recipe, self.train)
        return self._trainer

    def elapsed(self) -> float:
        """Seconds that the running unit of work has taken so far."""
        return time.perf_counter() - self.began

    def train_artifact(self, seed: int) -> Artifact:
        return self.store.artifact("train", self.keys.train(seed))

    def model(self, seed: int, epoch: int) -> nn.Module:
        """The model of ``seed`` after ``epoch`` epochs, in evaluation mode."""
        return self._recent.get(("model", seed, epoch), lambda: self._load_model(seed, epoch))

    def rate(self, seed: int, epoch: int) -> float:
        """Learning rate of the step that starts from the checkpoint at ``epoch``."""
        artifact = self.train_artifact(seed)
        return float(artifact.read("rates")[artifact.read("epochs").tolist().index(epoch)])

    def features(self, seed: int, kernel: str, epoch: int, start: int, stop: int) -> Tensor:
        """Features of training rows: (rows, C, P) for the NTK, (rows, L) for the last layer. NonFiniteError names sample ids."""
        model = self.model(seed, epoch)
        inputs = self.train.inputs[start:stop]
        result = (
            last_layer_features(model, inputs, self.experiment.last_layer)
            if kernel == "last-layer"
            else per_sample_gradients(model, inputs)
        )
        _refuse_rows(_finite(result), self.train.ids[start:stop], f"{kernel} features, seed {seed}, epoch {epoch}")
        return result

    def feature_rows(self, seed: int, epoch: int, start: int, stop: int) -> FactoredGradients:
        """NTK features of training rows as factors, float32. NonFiniteError names sample ids."""
        result = self._projected(factored_gradients(self.model(seed, epoch), self.train.inputs[start:stop]).to(torch.float32))
        _refuse_rows(result.finite_rows(), self.train.ids[start:stop], f"ntk features, seed {seed}, epoch {epoch}")
        return result

    def rows_of_a_pass(self, seed: int, epoch: int) -> int:
        """Training rows whose NTK features are best computed at once."""
        return inspect_model(self.model(seed, epoch), self.train.inputs[:2]).batch_size

    def test_rows(self, seed: int, epoch: int) -> GramOperand:
        """NTK features of the seed's test points as factors, float32, C = 1: gradients of the target's logit."""
        return self._recent.get(("test rows", seed, epoch), lambda: self._make_test_rows(seed, epoch))

    def _make_test_rows(self, seed: int, epoch: int) -> GramOperand:
        positions = self.test_positions(seed)
        result = factored_gradients(self.model(seed, epoch), self.test.inputs[positions], self.target_outputs(seed))
        result = self._projected(result.to(torch.float32))
        _refuse_rows(result.finite_rows(), self.test.ids[positions], f"ntk features of test points, seed {seed}, epoch {epoch}")
        return result.as_operand()

    def _projected(self, rows: FactoredGradients) -> FactoredGradients:
        """The rows as they are multiplied: projected where the experiment asks for that, the same way on both sides."""
        asked = self.experiment.projection
        return rows if asked is None else Projection(asked.dim, asked.kind, asked.seed).project(rows)

    def own_kernel_block(self, unit: KernelUnit | GramUnit | DiagonalUnit, left: Tensor, right: Tensor) -> Tensor:
        """K (A, B) of a kernel of the user's own, checked: shape, floating point, finite."""
        where = f"kernel {unit.kernel}, seed {unit.seed}, epoch {unit.epoch}"
        with torch.no_grad():
            block = self.own_kernels[unit.kernel](self.model(unit.seed, unit.epoch), left, right)
        if not isinstance(block, Tensor) or block.shape != (len(left), len(right)) or not block.is_floating_point():
            got = f"{block.dtype} {tuple(block.shape)}" if isinstance(block, Tensor) else type(block).__name__
            raise ProblemError(
                "a kernel returned something else", where=where, expected=f"floating point ({len(left)}, {len(right)})", got=got
            )
        if not bool(torch.isfinite(block).all()):
            raise NonFiniteError("a kernel returned NaN or Inf", where=where, expected="finite numbers", got="NaN or Inf")
        return block

    def test_features(self, seed: int, kernel: str, epoch: int) -> Tensor:
        """Features of the seed's test points: (M, P) gradients of the target's logit, or (M, L)."""
        return self._recent.get(("test features", seed, kernel, epoch), lambda: self._make_test_features(seed, kernel, epoch))

    def num_parameters(self, kernel: str) -> int:
        """Parameters whose gradients are the features of ``kernel``: all that are trained, or the last layer's."""
        with torch.random.fork_rng(devices=[]):
            model = self.problem.model().eval()
        if kernel == "last-layer":
            model = model.get_submodule(self.experiment.last_layer or find_last_layer(model, self.train.inputs[:2].cpu()))
        return sum(p.numel() for p in model.parameters() if p.requires_grad)

    def test_positions(self, seed: int) -> list[int]:
        return self.keys.test_positions(seed)

    def target_outputs(self, seed: int) -> Tensor:
        """For each of the seed's test points the output whose logit is explained (M,), int64."""
        positions = self.test_positions(seed)
        declared = self.experiment.target.output
        if isinstance(declared, int):
            return torch.full((len(positions),), declared, dtype=torch.int64, device=self.device)
        outputs = self.train_artifact(seed).read("outputs_test")[positions]
        return torch.as_tensor(outputs.argmax(axis=1), device=self.device)

    def random_scores(self, seed: int) -> Tensor:
        """Scores (N, M) of the method `random`: an order of its own for every (seed, test point)."""
        ids = self.test.ids[self.test_positions(seed)].tolist()
        return random_scores([derive_seed(seed, "random", test_id) for test_id in ids], len(self.train.ids))

    def _load(self, name: str) -> Dataset:
        dataset = read_data(self.store, self.keys.data, name)
        return Dataset(dataset.inputs.to(self.device), dataset.targets.to(self.device), dataset.ids)

    def _load_model(self, seed: int, epoch: int) -> nn.Module:
        artifact = self.train_artifact(seed)
        # What the constructor draws is overwritten by the checkpoint; the global generators must not notice.
        with torch.random.fork_rng(devices=[]):
            model = self.problem.model()
        model.load_state_dict(unpack_state(artifact, epoch))
        model.to(self.device).eval()
        check_model(model)
        return model

    def _make_test_features(self, seed: int, kernel: str, epoch: int) -> Tensor:
        positions = self.test_positions(seed)
        inputs = self.test.inputs[positions]
        model = self.model(seed, epoch)
        if kernel == "last-layer":
            result = last_layer_features(model, inputs, self.experiment.last_layer)
        else:
            result = per_sample_gradients(model, inputs, self.target_outputs(seed))
        _refuse_rows(_finite(result), self.test.ids[positions], f"{kernel} features of test points, seed {seed}, epoch {epoch}")
        return result


def _refuse_rows(fine: Tensor, ids: Tensor, where: str) -> None:
    """NonFiniteError that names the samples whose features are not ``fine`` (B,)."""
    if not bool(fine.all()):
        bad = ids[~fine.to(ids.device)]
        raise NonFiniteError(
            "NaN or Inf in per-sample features",
            where=f"{where}; sample ids {bad[:5].tolist()}",
            expected="finite numbers",
            got=f"{len(bad)} bad rows",
            remedy="look at these samples and at the scale of the model's parameters",
        )


def _finite(values: Tensor) -> Tensor:
    return torch.isfinite(values.reshape(len(values), -1)).all(dim=1)


def load_own_kernels(experiment: Experiment, search_path: Sequence[str]) -> dict[str, Kernel]:
    """The user's kernels by name. ProblemError when a class is not there, cannot be built or cannot be called."""
    return {name: load_object(section.class_, section.options, search_path) for name, section in experiment.kernels.items()}


def own_kernel_digests(experiment: Experiment, kernels: Mapping[str, Kernel]) -> dict[str, str]:
    """What ties results to a kernel's code: its source file and its options."""
    return {name: object_digest(kernel, experiment.kernels[name].options) for name, kernel in kernels.items()}


def _same_source(where: str, found: object, expected: object) -> None:
    if found != expected:
        raise ProblemError(
            "this worker's copy of the code differs from the driver's",
            where=where,
            expected=f"source digest {expected}",
            got=str(found),
            remedy="give all machines the same code (ray job submit --working-dir)",
        )


def label_loss(loss: Loss) -> str:
    """The name of a shipped loss whose outputs stand for classes; empty for any other, of which it is not known what they stand for."""
    return loss.name if is_shipped(loss) and loss.name in ("logistic", "softmax") else ""


def pick_device(choice: str) -> torch.device:
    """The device of a worker; ProblemError when CUDA is asked for and not there."""
    if choice == "cuda" and not torch.cuda.is_available():
        raise ProblemError("no CUDA device here", where="resources.device", expected="a GPU", got="none", remedy="use device: auto or cpu")
    return torch.device("cuda" if choice != "cpu" and torch.cuda.is_available() else "cpu")


def to_numpy(tensor: Tensor) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())
