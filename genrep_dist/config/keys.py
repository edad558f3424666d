"""Content addresses: the key of an artifact is the sha256 of everything that changes its numbers, and of nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from genrep_dist.config import Experiment, json_digest
from genrep_dist.core.methods import SOLVED, Method
from genrep_dist.seeds import derive_seed

NUMBERS_VERSION = 5
"""Raised whenever a change to the code changes numbers for the same question; old artifacts are then not found any more."""


def middle_epoch(epochs: int) -> int:
    """Epoch of the middle checkpoint T/2."""
    return epochs // 2


def checkpoint_epoch(checkpoint: str, epochs: int) -> int:
    """Epoch number of 'initial', 'middle', 'final' or 'epoch<k>'."""
    named = {"initial": 0, "middle": middle_epoch(epochs), "final": epochs}
    return named[checkpoint] if checkpoint in named else int(checkpoint.removeprefix("epoch"))


def sample_test_positions(seed: int, num_test: int, count: int) -> list[int]:
    """Rows of the test set that ``seed`` explains: ``count`` of them, uniform without replacement, ascending."""
    generator = np.random.Generator(np.random.Philox(derive_seed(seed, "test_points")))
    return sorted(int(i) for i in generator.choice(num_test, size=count, replace=False))


@dataclass(frozen=True)
class Keys:
    """The content addresses of one experiment.

    ``data`` and ``problem`` are the digests of the samples and of the model's and loss's source; ``recipe`` is the recipe in
    force, as plain data; ``own_kernels`` the source digests of the user's kernels, by name; ``external`` the digests of scores from
    elsewhere, by method and seed; ``shared_points`` the rows of the test set that all seeds explain, where the experiment names them.
    """

    experiment: Experiment
    data: str
    problem: str
    recipe: dict[str, Any]
    num_test: int
    own_kernels: dict[str, str] = field(default_factory=dict)
    external: dict[str, dict[int, str]] = field(default_factory=dict)
    shared_points: tuple[int, ...] | None = None

    @property
    def epochs(self) -> int:
        return int(self.recipe["epochs"])

    @property
    def training(self) -> str:
        """What every trained model depends on, apart from its seed and its removed set."""
        return self._digest("training", self.data, self.problem, self.recipe)

    @property
    def question(self) -> str:
        """The whole experiment: equal questions have equal answers."""
        external = {name: {str(seed): digest for seed, digest in by_seed.items()} for name, by_seed in self.external.items()}
        return self._digest("experiment", self.training, self.experiment.question(), self.own_kernels, external)

    def test_positions(self, seed: int) -> list[int]:
        """Rows of the test set that ``seed`` explains, ascending."""
        if self.shared_points is not None:
            return list(self.shared_points)
        return sample_test_positions(seed, self.num_test, self.experiment.num_test_points)

    def tracincp_epochs(self) -> list[int]:
        """Epochs of the checkpoints in Eq. 14, ascending."""
        declared = self.experiment.tracincp.checkpoints
        if isinstance(declared, int):
            return sorted({round(i * self.epochs / max(declared - 1, 1)) for i in range(declared)} if declared > 1 else {self.epochs})
        return sorted(set(declared))

    def method_epochs(self, method: Method) -> list[int]:
        """Epochs at which a method needs a kernel."""
        if method.kernel in ("none", "external"):
            return []
        if method.checkpoint == "all":
            return self.tracincp_epochs()
        return [checkpoint_epoch(method.checkpoint, self.epochs)]

    def saved_epochs(self) -> list[int]:
        """Epochs whose parameters a training run keeps."""
        epochs = {0, middle_epoch(self.epochs), self.epochs}
        for method in self.experiment.parsed_methods:
            epochs.update(self.method_epochs(method))
        return sorted(epochs)

    def model(self, seed: int) -> str:
        return self._digest("model", self.training, seed)

    def train(self, seed: int) -> str:
        return self._digest("train", self.model(seed), self.saved_epochs())

    def features(self, seed: int, kernel: str, epoch: int) -> str:
        return self._digest("features", self.model(seed), self._kernel_name(kernel), epoch, "float32")

    def kernel(self, seed: int, kernel: str, epoch: int) -> str:
        target = self.experiment.target.model_dump(mode="json")
        return self._digest("kernel", self.model(seed), self._kernel_name(kernel), epoch, "float32", self.test_positions(seed), target)

    def gram(self, seed: int, kernel: str, epoch: int) -> str:
        return self._digest("gram", self.features(seed, kernel, epoch))

    def diagonal(self, seed: int, kernel: str, epoch: int) -> str:
        """K(x_i, x_i) with the logit of each training sample's own label."""
        return self._digest("diagonal", self.features(seed, kernel, epoch))

    def solved(self, importance: str, seed: int, kernel: str, epoch: int) -> str:
        """Importances that are solved for on a gram: 'surrogate' or 'descent'."""
        settings = self.experiment.surrogate if importance == "surrogate" else self.experiment.descent
        return self._digest(importance, self.gram(seed, kernel, epoch), settings.model_dump(mode="json"))

    def attribution(self, seed: int, method: Method) -> str:
        # TracInCP over one checkpoint is not the target derivative there: its importances and its rate are that checkpoint's own.
        importance = "tracincp" if method.checkpoint == "all" else method.importance
        parts: list[Any] = [self.model(seed), self.test_positions(seed), importance]
        if method.kernel == "external":
            parts.append(self.external[method.name][seed])
        epochs = self.method_epochs(method)
        parts += [self.kernel(seed, method.kernel, epoch) for epoch in epochs]
        if method.importance in SOLVED:
            parts += [self.solved(method.importance, seed, method.kernel, epoch) for epoch in epochs]
        return self._digest("attribution", *parts)

    def retraining(self, seed: int, removed: Sequence[int], policy: str, replicate: int = 0) -> str:
        """Key of a ledger row. With nothing removed it is the original model, whatever the policy."""
        if not removed:
            policy, replicate = "same", 0
        return self._digest("retraining", self.training, seed, policy, replicate, sorted(int(i) for i in removed))

    def _kernel_name(self, kernel: str) -> Any:
        """What tells one kernel from another: its name, the curvature that is declared for it, or the source of the user's own."""
        projection = None if self.experiment.projection is None else self.experiment.projection.model_dump(mode="json")
        if kernel == "influence":
            return [kernel, self.experiment.influence.model_dump(mode="json"), *([projection] if projection else [])]
        if kernel == "ntk" and projection:
            return [kernel, projection]
        if kernel == "last-layer" and self.experiment.last_layer is not None:
            return [kernel, self.experiment.last_layer]
        return self.own_kernels.get(kernel, kernel)

    @staticmethod
    def _digest(kind: str, *parts: Any) -> str:
        return json_digest([NUMBERS_VERSION, kind, *parts])
