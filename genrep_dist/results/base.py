"""A run opened from its record: plan, data, and what a worker would open for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from genrep_dist.errors import CorruptError, GenRepError, MethodError
from genrep_dist.plan import Plan
from genrep_dist.store import Store
from genrep_dist.store.paths import ExperimentPaths
from genrep_dist.store.records import UNREADABLE, reading_record
from genrep_dist.workflow.record import UnknownNamesError, plan_of_record, read_record
from genrep_dist.workflow.user_code import AllowedCode, NamedCode, allowed_code, planning_needs, refused_code, require_unchanged

if TYPE_CHECKING:
    from genrep_dist.problems.protocol import Dataset
    from genrep_dist.workflow.context import WorkerContext

Array = npt.NDArray[Any]


class OpenedRun:
    """The record of the experiment ``name`` in a store. StoreError when the store does not have it.

    Its tables and arrays need no code of a user. ``named``: code that may be imported, in addition to what this user has run on this
    machine. A plan needs the classes of a user's own metrics and kernels: StoreError if they may not be imported.
    """

    def __init__(self, store: Store, name: str, named: NamedCode | None = None) -> None:
        self.store = store
        self.name = name
        self.record: Mapping[str, Any] = read_record(store, name)
        self._unknown_names: UnknownNamesError | None = None
        try:
            self._code: AllowedCode | None = allowed_code(store, self.record, named)
            # A record that cannot be read is refused here.
            if not isinstance(self.record["choices"], dict):
                raise TypeError(f"choices are {self.record['choices']}")
            if self._can_plan:
                try:
                    _ = self.plan.keys.results
                except UnknownNamesError as error:
                    self._unknown_names = error
        except GenRepError:
            raise
        except UNREADABLE as error:
            raise CorruptError(
                "the record of a run cannot be read",
                where=f"{store.uri}/{ExperimentPaths(name).record}",
                got=f"{type(error).__name__}: {error}",
                remedy="run the experiment again, which writes it again",
            ) from error

    @cached_property
    def plan(self) -> Plan:
        """What was planned. StoreError if :attr:`can_plan` is False."""
        if self._unknown_names is not None:
            raise self._unknown_names
        return plan_of_record(self.record, self._checked_code().folders if planning_needs(self.record) else None)

    @property
    def question(self) -> str:
        """The digest of the whole experiment."""
        return self.plan.keys.results if self.can_plan else str(self.record["question"])

    @property
    def can_plan(self) -> bool:
        """Whether all metrics, kernels and importances that the run names are known here, so that its plan can be read.

        Published tables, scores, original models, and what the run itself has recorded of its progress, can be read without it.
        """
        return self._unknown_names is None and self._can_plan

    @property
    def _can_plan(self) -> bool:
        return self.has_code or not planning_needs(self.record)

    @property
    def has_code(self) -> bool:
        """Whether the code that this run needs may be imported."""
        return self._code is not None

    def _checked_code(self) -> AllowedCode:
        """The code that may be imported; StoreError for none, ProblemError for files that are not those of the run."""
        if self._code is None:
            raise refused_code(self.record)
        if not self._code.running:
            require_unchanged(self.record, self._code.folders)
        return self._code

    @cached_property
    def train(self) -> Dataset:
        """The training samples, in the order of every array's rows."""
        from genrep_dist.workflow.data import read_data

        return read_data(self.store, self.record["data"], "train")

    @cached_property
    def test(self) -> Dataset:
        """All test samples, in the order of the ledger's outputs."""
        from genrep_dist.workflow.data import read_data

        return read_data(self.store, self.record["data"], "test")

    @property
    def context(self) -> WorkerContext:
        """What a worker opens for this run: problem, data, models at their checkpoints. Loads the problem's own code.

        StoreError for code that nobody has named on this machine.
        """
        from genrep_dist.problems.digests import Identity
        from genrep_dist.workflow.context import Job
        from genrep_dist.workflow.execute import worker_context

        code, keys = self._checked_code(), self.plan.keys
        if code.options is not None:
            problem = keys.experiment.problem.model_copy(update={"options": code.options})
            keys = replace(keys, experiment=keys.experiment.model_copy(update={"problem": problem}))
        identities = {label: Identity.from_record(found) for label, found in self.record.get("identities", {}).items()}
        rows = self.plan.prediction_rows, self.plan.gradient_rows
        return worker_context(Job(self.store.uri, keys, code.folders, (), *rows, identities=identities))

    def train_ids(self, seed: int) -> npt.NDArray[np.int64]:
        """Sample ids of the rows of attributions, importances and kernels (N,)."""
        self._check_seed(seed)
        return self.train.ids.numpy()

    def test_ids(self, seed: int) -> npt.NDArray[np.int64]:
        """Sample ids of the seed's test points, the columns of attributions and kernels (M,).

        Where means of groups are explained: of the first member of each group, the columns of attributions. Kernels have a column a member.
        """
        self._check_seed(seed)
        if not self.can_plan:
            method = next(iter(self._addresses["attribution"]))
            return np.asarray(self.store.artifact("attribution", self.attribution_key(method, seed)).manifest()["test_ids"], dtype=np.int64)
        return self.test.ids.numpy()[self.plan.keys.explained_rows(seed)]

    def test_groups(self, seed: int) -> list[list[int]]:
        """Sample ids of the members of what each column of the attributions explains: one id, or those of a group."""
        self._check_seed(seed)
        keys, ids = self.plan.keys, self.test.ids.numpy()
        positions, groups = keys.test_positions(seed), keys.test_groups(seed)
        members = [[place] for place in range(len(positions))] if groups is None else groups
        return [[int(ids[positions[place]]) for place in group] for group in members]

    def flipped_ids(self) -> frozenset[int]:
        """Ids of the training samples whose labels were flipped on purpose."""
        return frozenset(self.record["flipped_ids"])

    @property
    def choices(self) -> dict[str, Any]:
        """How the experiment that was run follows from the one that was declared: ``tune`` and ``stop``, where it has them.

        ``repeat``, where the problem's own function trains: the difference between two trainings of the first original model.
        """
        choices: dict[str, Any] = self.record["choices"]
        return choices

    def attribution_key(self, method: str, seed: int) -> str:
        """The content address of a method's scores. MethodError for what is no method or seed of this run."""
        self._check_seed(seed)
        known = self.plan.experiment.methods if self.can_plan else tuple(self._addresses["attribution"])
        if method not in known:
            raise MethodError("not a method of this run", where=self.name, expected=", ".join(known), got=method)
        if not self.can_plan:
            return str(self._addresses["attribution"][method][str(seed)])
        return self.plan.keys.attribution(seed, self.plan.experiment.method(method))

    def train_key(self, seed: int) -> str:
        """The content address of a trained original model. MethodError for what is no seed of this run."""
        self._check_seed(seed)
        return self.plan.keys.train(seed) if self.can_plan else str(self._addresses["train"][str(seed)])

    @property
    def _addresses(self) -> Mapping[str, Any]:
        """Of arrays, where the plan cannot be made. Raises as :attr:`plan` for a run that has recorded none."""
        found: Mapping[str, Any] | None = self.record.get("addresses")
        if found is None:
            _ = self.plan
        with reading_record(self.store.objects, ExperimentPaths(self.name).record):
            return {"train": dict(found["train"]), "attribution": {name: dict(keys) for name, keys in found["attribution"].items()}}  # type: ignore[index]

    def _check_seed(self, seed: int) -> None:
        seeds = list(self.plan.experiment.seeds) if self.can_plan else [int(one) for one in self._addresses["train"]]
        if seed not in seeds:
            expected = f"one of {seeds}"
            raise MethodError("not a seed of this run", where=self.name, expected=expected, got=str(seed))
