"""Content addresses: the key of an artifact is the sha256 of everything that changes its numbers, and of nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from genrep_dist.config.digests import json_digest, non_default_fields
from genrep_dist.config.experiment import Experiment
from genrep_dist.core.changes import Change
from genrep_dist.core.kernels.base import DerivedKernel, FeatureKernel
from genrep_dist.core.methods import Method
from genrep_dist.errors import MethodError
from genrep_dist.seeds import derive_seed

NUMBERS_VERSION = 7
"""Raised whenever a change of the code, or of a default, changes numbers for the same experiment; old artifacts are then not found."""


def middle_epoch(epochs: int) -> int:
    """Epoch of the middle checkpoint T/2."""
    return epochs // 2


def checkpoint_epoch(checkpoint: str | int, epochs: int) -> int:
    """Epoch number of 'initial', 'middle', 'final', 'epoch<k>' or a number."""
    if isinstance(checkpoint, int):
        return checkpoint
    named = {"initial": 0, "middle": middle_epoch(epochs), "final": epochs}
    number = str(checkpoint).removeprefix("epoch")
    if checkpoint not in named and not number.isdecimal():
        raise MethodError(
            "there is no such checkpoint", expected="initial, middle, final, epoch<k> or a number of epochs", got=repr(checkpoint)
        )
    return named[checkpoint] if checkpoint in named else int(number)


def checkpoint_name(epoch: int, epochs: int) -> str:
    """The name of a checkpoint in names of methods: 'initial', 'middle', 'final' or 'epoch<k>'."""
    return {middle_epoch(epochs): "middle", 0: "initial", epochs: "final"}.get(epoch, f"epoch{epoch}")


@lru_cache(1024)  # many keys of a seed contain them
def sample_test_positions(seed: int, num_test: int, count: int) -> tuple[int, ...]:
    """Rows of the test set that ``seed`` explains: ``count`` of them, uniform without replacement, ascending."""
    generator = np.random.Generator(np.random.Philox(derive_seed(seed, "test_points")))
    return tuple(sorted(int(i) for i in generator.choice(num_test, size=count, replace=False)))


@dataclass(frozen=True)
class Term:
    """One product of an attribution: ``importance_epoch`` is the model whose importance is taken, ``kernel_epoch`` the kernel's.

    ``weighted``: the product counts with the learning rate at ``kernel_epoch``. ``share``: it counts with this number besides.
    """

    kernel_epoch: int
    importance_epoch: int
    weighted: bool
    share: float = 1.0


@dataclass(frozen=True)
class Keys:
    """The content addresses of one experiment.

    ``data`` and ``problem`` are the digests of the samples and of the model's and loss's source; ``numbers`` that of the initial model's
    tensors and other numbers that the problem's code loads or computes; ``recipe`` is the recipe in force as plain data, of which
    ``recipe_changes`` differ from the defaults; ``own_kernels`` the digests of the user's functions of pairs, by name; ``extensions``
    those of kernels, importances, targets, optimizers, schedules, metrics and stages of other packages, by kind and name, and "augment";
    ``external`` the digests of scores from other tools, by method and seed; ``shared_points`` the rows of the test set that all seeds
    explain, where the experiment names them, and ``group_rows`` those of each group; ``products`` how a training is
    computed, where that changes its last bits ("narrow", "stateful", "narrow stateful").
    """

    experiment: Experiment
    data: str
    problem: str
    recipe: dict[str, Any]
    recipe_changes: dict[str, Any]
    num_test: int
    own_kernels: dict[str, str] = field(default_factory=dict)
    external: dict[str, dict[int, str]] = field(default_factory=dict)
    shared_points: tuple[int, ...] | None = None
    extensions: dict[str, str] = field(default_factory=dict)
    numbers: str = ""
    group_rows: tuple[tuple[int, ...], ...] | None = None
    products: str = ""

    @property
    def epochs(self) -> int:
        return int(self.recipe["epochs"])

    @cached_property  # it is a part of the key of every retrained model
    def training(self) -> str:
        """What every trained model depends on, apart from its seed and its removal set."""
        used = ("optimizer", self.recipe.get("optimizer", "")), ("schedule", self.recipe.get("schedule", "")), ("augment", "")
        sources = [digest for kind, name in used for digest in self._source(kind, name)]
        return self._digest(
            "training", self.data, self.problem, *filter(None, [self.numbers, self.products]), self.recipe_changes, *sources
        )

    @property
    def results(self) -> str:
        """The whole experiment, called `question` in stores: equal digests have equal results."""
        external = {name: {str(seed): digest for seed, digest in by_seed.items()} for name, by_seed in self.external.items()}
        extensions = [self.extensions] if self.extensions else []
        return self._digest("experiment", self.training, self.experiment.result_fields(), self.own_kernels, external, *extensions)

    def test_positions(self, seed: int) -> list[int]:
        """Rows of the test set that ``seed`` explains, ascending."""
        if self.shared_points is not None:
            return list(self.shared_points)
        return list(sample_test_positions(seed, self.num_test, self.experiment.num_test_points))

    def test_groups(self, seed: int) -> list[list[int]] | None:
        """The members of each group that ``seed`` explains, as places in :meth:`test_positions`; None where points are explained."""
        if self.experiment.target.group is None:
            return None
        if self.group_rows is None:
            return [list(range(len(self.test_positions(seed))))]
        places = {row: place for place, row in enumerate(self.test_positions(seed))}
        return [sorted(places[row] for row in rows) for rows in self.group_rows]

    def explained_rows(self, seed: int) -> list[int]:
        """The row of the test set that each explained number of ``seed`` is known by: the point's, or that of a group's first member."""
        rows, groups = self.test_positions(seed), self.test_groups(seed)
        return rows if groups is None else [rows[members[0]] for members in groups]

    def tracincp_epochs(self) -> list[int]:
        """Epochs of the checkpoints in Eq. 14, ascending."""
        declared = self.experiment.tracincp.checkpoints
        if isinstance(declared, int):
            return sorted({round(i * self.epochs / max(declared - 1, 1)) for i in range(declared)} if declared > 1 else {self.epochs})
        return sorted(set(declared))

    def averaged_epochs(self, size: int) -> list[int]:
        """Epochs of the checkpoints of an ensemble, ascending: evenly spread, the last one the final one, without the initial one."""
        return [round(i * self.epochs / size) for i in range(1, size + 1)]

    def terms(self, method: Method) -> list[Term]:
        """The products of which a method's scores are the sum; none for scores without a kernel.

        Importances that are functions of the outputs are taken at the final model, which is explained, whatever the kernel's checkpoint;
        in a sum or mean over checkpoints each has its own.
        """
        if not method.has_kernel:
            return []
        if method.averages_checkpoints:
            share = 1 / method.networks
            return [Term(epoch, epoch, weighted=False, share=share) for epoch in self.averaged_epochs(method.networks)]
        if method.sums_checkpoints:
            return [Term(epoch, epoch, weighted=True) for epoch in self.tracincp_epochs()]
        epoch = checkpoint_epoch(method.checkpoint, self.epochs)
        return [Term(epoch, self.epochs if method.importance_class.kind == "outputs" else epoch, weighted=False)]

    def method_epochs(self, method: Method) -> list[int]:
        """Epochs at which a method needs a kernel."""
        return [term.kernel_epoch for term in self.terms(method)]

    def saved_epochs(self) -> list[int]:
        """Epochs whose parameters a training run keeps."""
        epochs = {0, middle_epoch(self.epochs), self.epochs}
        for method in self.experiment.parsed_methods:
            epochs.update(self.method_epochs(method))
        return sorted(epochs)

    def model(self, seed: int) -> str:
        return self._digest("model", self.training, seed)

    def ensemble_seeds(self, seed: int, method: Method) -> list[int]:
        """Seeds of the other networks of an ensemble, drawn for the explained ``seed``; none for a method of one network."""
        others = method.networks if method.has_other_models and not method.averages_masks else 1
        return [derive_seed(seed, "ensemble", index) for index in range(1, others)]

    def unreported_seeds(self) -> list[int]:
        """Seeds of all networks that belong to ensembles alone."""
        methods = self.experiment.parsed_methods
        largest = max(methods, key=lambda method: len(self.ensemble_seeds(0, method)))
        return [other for seed in self.experiment.seeds for other in self.ensemble_seeds(seed, largest)]

    def train(self, seed: int) -> str:
        return self._digest("train", self.model(seed), self.saved_epochs())

    def preconditioner(self, seed: int, epochs: Sequence[int]) -> str:
        return self._digest("preconditioner", self.model(seed), list(epochs))

    def features(self, seed: int, kernel: str, epoch: int) -> str:
        return self._digest("features", self.model(seed), self._kernel_identity(kernel), epoch)

    def kernel(self, seed: int, kernel: str, epoch: int) -> str:
        """K(train, test) with the seed's test points."""
        return self._digest("kernel", self.model(seed), self._kernel_identity(kernel), epoch, self.test_positions(seed), *self._target)

    @property
    def _target(self) -> list[Any]:
        # Groups are means of the points' own scores.
        return [non_default_fields(self.experiment.target, leave_out=("group",)), *self._source("target", self.experiment.target.kind)]

    def term(self, seed: int, kernel: str, epoch: int, importance: str, importance_epoch: int) -> str:
        """Sum_c alpha_c K_c(train, test) with the seed's test points, of an importance that is not solved for."""
        found = self.experiment.importance(importance)
        own = [self._settings(found.settings), *self._source("importance", importance)]
        return self._digest("term", self.kernel(seed, kernel, epoch), importance, importance_epoch, *own)

    def gram(self, seed: int, kernel: str, epoch: int) -> str:
        return self._digest("gram", self.features(seed, kernel, epoch))

    def diagonal(self, seed: int, kernel: str, epoch: int) -> str:
        """K(x_i, x_i) with the logit of each training sample's own label."""
        return self._digest("diagonal", self.features(seed, kernel, epoch))

    def solved(self, importance: str, seed: int, kernel: str, epoch: int) -> str:
        """Importances that are solved for on a gram."""
        settings = self._settings(self.experiment.importance(importance).settings)
        return self._digest(importance, self.gram(seed, kernel, epoch), settings, *self._source("importance", importance))

    def attribution(self, seed: int, method: Method) -> str:
        # A sum over one checkpoint is not the plain product there: its importances and its rate are that checkpoint's own.
        parts: list[Any] = [self.model(seed), self.test_positions(seed), method.importance, method.sums_checkpoints]
        if method.is_external:
            parts.append(self.external[method.name][seed])
        if method.averages_checkpoints:
            parts.append({"mean": method.networks})
        elif method.averages_masks:
            parts.append({"masks": method.networks})
        elif method.networks > 1:
            parts.append([self.model(other) for other in self.ensemble_seeds(seed, method)])
        epochs, groups = self.method_epochs(method), self.test_groups(seed)
        parts += [] if groups is None else [groups]
        parts += [self.kernel(seed, method.kernel, epoch) for epoch in epochs]
        if method.needs_gram:
            parts += [self.solved(method.importance, seed, method.kernel, epoch) for epoch in epochs]
        scorer = method.scorer_class
        if scorer is not None:
            parts += [*self._target, self._settings(scorer.settings), *self._source("scorer", method.importance)]
            parts += [] if scorer.base is None else [self._kernel_identity(scorer.base)]
        top = self.experiment.attributions.top
        parts += [] if top is None else [{"top": top}]
        return self._digest("attribution", *parts, *self._source("importance", method.importance))

    def strongest(self, seed: int, methods: Sequence[Method]) -> str:
        """The strongest scores of several methods among blocks of training rows."""
        return self._digest("strongest", [self.attribution(seed, method) for method in methods])

    def retraining(self, seed: int, removed: Sequence[int] | Change, policy: str, replicate: int = 0) -> str:
        """Key of a ledger row, for ids of removed samples or another change. Without any it is the original model, whatever the policy."""
        change = removed if isinstance(removed, Change) else Change.of(removed)
        return retraining_key(self.training, seed, change, policy, replicate)

    def _kernel_identity(self, kernel: str) -> Any:
        """What distinguishes one kernel from another: its name with its settings, or the source of the user's own."""
        if kernel in self.own_kernels:
            return [kernel, self.own_kernels[kernel]]
        found = self.experiment.kernel(kernel)
        identity = [kernel, self._settings(found.key_settings()), *self._source("kernel", kernel)]
        rounded = found if isinstance(found, FeatureKernel) else found.base if isinstance(found, DerivedKernel) else None
        if rounded is not None:
            # Features are rounded wherever they are used, so that it does not matter whether they are stored.
            identity += [{"features": self._declared["features"]}] if "features" in self._declared else []
        # The settings of this package's derived kernels include those of their bases.
        is_from_outside = bool(self._source("kernel", kernel))
        if kernel in self.experiment.kernels:
            identity.append(self.experiment.kernels[kernel].options)
        if is_from_outside and isinstance(found, DerivedKernel) and found.base is not None:
            identity.append(self._kernel_identity(found.base))
        return identity

    def _source(self, kind: str, name: str) -> list[str]:
        """The source digest of a class of another package; nothing for one of this package, which ``NUMBERS_VERSION`` covers."""
        label = f"{kind} {name}".strip()
        return [self.extensions[label]] if label in self.extensions else []

    def _settings(self, names: Sequence[str]) -> dict[str, Any]:
        return {name: self._declared[name] for name in names if name in self._declared}

    @cached_property
    def _declared(self) -> dict[str, Any]:
        """The experiment's fields that differ from their defaults. They do not change, and every key asks for them."""
        fields: dict[str, Any] = non_default_fields(self.experiment)
        return fields

    @staticmethod
    def _digest(kind: str, *parts: Any) -> str:
        return json_digest([NUMBERS_VERSION, kind, *parts])


def retraining_key(training: str, seed: int, change: Change, policy: str, replicate: int = 0) -> str:
    """Key of a row in the ledger of the identity ``training``. Without a change it is the original model, whatever the policy."""
    if not change:
        policy, replicate = "same", 0
    return json_digest([NUMBERS_VERSION, "retraining", training, seed, policy, replicate, *change.identity])
