"""The run under examination: its models, a sample of its rows, and slow references computed one sample at a time."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from genrep_dist.core.gradients.model import model_outputs
from genrep_dist.results import Run
from genrep_dist.seeds import derive_seed
from genrep_dist.store.artifacts import Artifact
from genrep_dist.workflow.context import Workbench

ROUNDINGS = 1000
"""How many roundings two ways of computing one sum may lie apart: the square root of a million terms, whose errors add up like a
random walk. Mistakes are larger by orders of magnitude."""


class Patient:
    """A finished run, looked at through its first seed where a check is not cheap enough for all of them.

    ``rows`` are positions of training samples, drawn by a seed derived from the first one, ascending: as many as asked for, but no
    more than there are or than the run's memory budget can hold the per-sample gradients of.
    """

    def __init__(self, run: Run, samples: int) -> None:
        self.run = run
        self.plan = run.plan
        self.store = run.store
        self.seeds = run.plan.experiment.seeds
        self.seed = self.seeds[0]
        self.memory_budget = run.plan.experiment.resources.memory_budget
        shape = run.plan.shape
        held = 8 * 4 * shape.num_outputs * shape.num_parameters  # a sample's gradients, several times over
        count = max(1, min(samples, shape.num_train, self.memory_budget // held))
        self.rows = sorted(self.generator("rows").choice(shape.num_train, size=count, replace=False).tolist())

    def generator(self, purpose: str) -> np.random.Generator:
        """Random numbers that depend on the first seed and ``purpose`` alone."""
        return np.random.Generator(np.random.Philox(derive_seed(self.seed, "doctor", purpose)))

    @cached_property
    def bench(self) -> Workbench:
        """The problem and its data, on the device that the experiment asks for."""
        return self.run.bench

    @cached_property
    def model(self) -> nn.Module:
        """The first seed's final model as the run explains it."""
        return self.model_at(self.plan.keys.epochs)

    def model_at(self, epoch: int) -> nn.Module:
        """The first seed's model after ``epoch`` epochs, in evaluation mode; unlike the stages' own, unchecked."""
        with torch.random.fork_rng(devices=[]):
            model = self.bench.problem.model()
        model.load_state_dict(self.run.checkpoint(self.seed, epoch))
        return model.to(self.bench.device).eval()

    @property
    def inputs(self) -> Tensor:
        """Inputs of the sampled training rows (S, ...)."""
        return self.bench.train.inputs[self.rows]

    @property
    def test_inputs(self) -> Tensor:
        """Inputs of the first seed's test points (M, ...)."""
        return self.bench.test.inputs[self.plan.keys.test_positions(self.seed)]

    def train_id(self, sample: int) -> int:
        """The sample id of the ``sample``-th of the sampled rows."""
        return int(self.bench.train.ids[self.rows[sample]])

    def train_artifact(self, seed: int) -> Artifact:
        return self.store.artifact("train", self.plan.keys.train(seed))

    def train_outputs(self, seed: int, epoch: int) -> npt.NDArray[np.float64]:
        """Outputs (N, C) float64 on the training set after ``epoch`` epochs, as stored."""
        artifact = self.train_artifact(seed)
        row = artifact.read("epochs").tolist().index(epoch)
        return np.asarray(artifact.read("outputs_train")[row], dtype=np.float64)

    @property
    def num_steps(self) -> int:
        """Steps of one training run."""
        recipe = self.plan.keys.recipe
        return int(recipe["epochs"]) * math.ceil(self.plan.shape.num_train / int(recipe["batch_size"]))

    @property
    def rounding(self) -> float:
        """The bound for two ways of computing one number in the model's dtype, relative to its scale."""
        return ROUNDINGS * float(torch.finfo(next(p.dtype for p in trainable(self.model))).eps)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Parameters that have gradients, in the order of ``model.named_parameters()``."""
    return [p for p in model.parameters() if p.requires_grad and p.is_floating_point()]


def one_by_one(model: nn.Module, sample: Tensor, output: int | None = None) -> Tensor:
    """The gradients of one sample's outputs (C, P), or of one ``output`` (1, P): a backward pass for each, the slow reference."""
    parameters = trainable(model)
    values = model_outputs(model, sample[None])[0]
    rows = []
    for value in values if output is None else values[output : output + 1]:
        gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)]
        rows.append(torch.cat([part.detach().reshape(-1) for part in parts]))
    return torch.stack(rows)


def largest_relative(difference: Tensor, reference: Tensor) -> tuple[float, int]:
    """The largest ||difference|| / ||reference|| over rows (S, ..., P) and the sample that has it; NaN counts as the largest.

    A row that is itself a rounding error of the largest one is measured against that rounding error.
    """
    sizes = reference.double().norm(dim=-1).reshape(len(reference), -1)
    errors = difference.double().norm(dim=-1).reshape(len(reference), -1)
    floor = torch.finfo(reference.dtype).eps * sizes.max()
    ratios = torch.where(errors == 0, 0.0, errors / torch.maximum(sizes, floor)).amax(dim=1)
    sample = int(torch.where(ratios.isnan(), torch.inf, ratios).argmax())
    return float(ratios[sample]), sample
