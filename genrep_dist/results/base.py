"""A run opened from its record: plan, data, and what a worker would open for it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from genrep_dist.errors import MethodError
from genrep_dist.plan import Plan
from genrep_dist.problems.digests import Identity
from genrep_dist.problems.protocol import Dataset
from genrep_dist.store import Store
from genrep_dist.workflow.context import Job, WorkerContext
from genrep_dist.workflow.data import read_data
from genrep_dist.workflow.execute import worker_context
from genrep_dist.workflow.record import plan_of_record, read_record

Array = npt.NDArray[Any]


class OpenedRun:
    """The record of the experiment ``name`` in a store. StoreError when the store does not have it."""

    def __init__(self, store: Store, name: str) -> None:
        self.store = store
        self.name = name
        self.record: Mapping[str, Any] = read_record(store, name)
        self.plan: Plan = plan_of_record(self.record)

    @cached_property
    def train(self) -> Dataset:
        """The training samples, in the order of every array's rows."""
        return read_data(self.store, self.plan.keys.data, "train")

    @cached_property
    def test(self) -> Dataset:
        """All test samples, in the order of the ledger's outputs."""
        return read_data(self.store, self.plan.keys.data, "test")

    @property
    def context(self) -> WorkerContext:
        """What a worker opens for this run: problem, data, models at their checkpoints. Loads the problem's own code."""
        folders, rows = tuple(self.record["search_path"]), (self.plan.prediction_rows, self.plan.gradient_rows)
        identities = {label: Identity.from_record(found) for label, found in self.record.get("identities", {}).items()}
        return worker_context(Job(self.store.uri, self.plan.keys, folders, (), *rows, identities=identities))

    def train_ids(self, seed: int) -> npt.NDArray[np.int64]:
        """Sample ids of the rows of attributions, importances and kernels (N,)."""
        self._check_seed(seed)
        return self.train.ids.numpy()

    def test_ids(self, seed: int) -> npt.NDArray[np.int64]:
        """Sample ids of the seed's test points, the columns of attributions and kernels (M,).

        Where means of groups are explained: of the first member of each group, the columns of attributions. Kernels have a column a member.
        """
        self._check_seed(seed)
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
        """How the experiment that was run follows from the one that was declared: ``tune`` and ``stop``, where it has them."""
        choices: dict[str, Any] = self.record["choices"]
        return choices

    def _check_seed(self, seed: int) -> None:
        if seed not in self.plan.experiment.seeds:
            expected = f"one of {list(self.plan.experiment.seeds)}"
            raise MethodError("not a seed of this run", where=self.name, expected=expected, got=str(seed))
