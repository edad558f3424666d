"""A run's results, read from the store alone: what a user's script, notebook or another tool works with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor, nn

from genrep_dist.core.losses import Loss
from genrep_dist.errors import MethodError, NonFiniteError, NotCommittedError
from genrep_dist.evaluation.results import Judged
from genrep_dist.plan import Plan, named_checkpoint
from genrep_dist.problems.protocol import Dataset
from genrep_dist.store import Store
from genrep_dist.store.paths import ResultPaths
from genrep_dist.store.tables import scan_frame
from genrep_dist.units import ImportanceUnit
from genrep_dist.workflow.checkpoints import unpack_state
from genrep_dist.workflow.context import Job, Workbench, read_data
from genrep_dist.workflow.costs import method_costs, model_costs
from genrep_dist.workflow.evaluate import judge
from genrep_dist.workflow.execute import workbench
from genrep_dist.workflow.explain import OtherPoints, explain
from genrep_dist.workflow.importances import importance
from genrep_dist.workflow.prepare import plan_of_record, read_record
from genrep_dist.workflow.requests import read_asked

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class SeedProblem:
    """A problem exactly as one seed used it: the trained model and its data."""

    model: nn.Module
    loss: Loss
    train: Dataset
    test: Dataset


class Run:
    """One experiment in one store. Reading something that is not finished raises NotCommittedError."""

    def __init__(self, store: Store, name: str) -> None:
        self.store = store
        self.name = name
        self._record = read_record(store, name)
        self.plan: Plan = plan_of_record(self._record)

    def summary(self) -> pl.DataFrame:
        """One row a method: AUC-DEL with its intervals."""
        return self._result("summary").collect()

    def deletion(self) -> pl.LazyFrame:
        """One row a (seed, method, test point, sign, fraction)."""
        return self._result("deletion")

    def train_ids(self, seed: int) -> npt.NDArray[np.int64]:
        """Sample ids of the rows of attributions, importances and kernels (N,)."""
        self._check_seed(seed)
        return self.train.ids.numpy()

    def test_ids(self, seed: int) -> npt.NDArray[np.int64]:
        """Sample ids of the seed's test points, the columns of attributions and kernels (M,)."""
        self._check_seed(seed)
        return self.test.ids.numpy()[self.plan.keys.test_positions(seed)]

    def metrics(self) -> pl.DataFrame:
        """One row a (metric, method): mean, pooled, clustered and (where points are shared by all seeds) two-way 95% intervals."""
        return self._result("metrics").collect()

    def points(self) -> pl.LazyFrame:
        """One row a (metric, method, seed, test point): what every mean and interval is made from."""
        return self._result("points")

    def comparisons(self) -> pl.DataFrame:
        """One row a (metric, method, baseline): paired difference, its interval, p-value and Holm's correction."""
        return self._result("comparisons").collect()

    def ranks(self) -> pl.DataFrame:
        """One row a (metric, method, other): in which share of bootstrap draws the method is better."""
        return self._result("ranks").collect()

    def attributions(self, method: str, seed: int) -> Array:
        """Phi (N, M) float64; positive: the training sample raises the test point's logit."""
        self._check_seed(seed)
        if method not in self.plan.experiment.methods:
            raise MethodError("not a method of this run", where=self.name, expected=", ".join(self.plan.experiment.methods), got=method)
        return self.store.artifact("attribution", self.plan.keys.attribution(seed, self.plan.experiment.method(method))).read("phi")

    def explain(self, method: str, seed: int, *, inputs: Array | Tensor | None = None, test_ids: Sequence[int] | None = None) -> Array:
        """Phi (N, M) float64 for other points, without retraining: ``inputs`` (M, ...) of any origin, or samples of the test set by id.

        Any method that the run has, or whose importances it has solved for: every `.../target` and `.../tracking` of the checkpoints
        that were kept. Random scores are drawn by a test point's id and so need ``test_ids``. Loads the problem's own code.

        Raises MethodError for scores from elsewhere, for a missing id and for inputs of another form, NonFiniteError for NaN or
        Inf in them, NotCommittedError for what the run has not kept.
        """
        self._check_seed(seed)
        parsed = self.plan.experiment.method(method)
        if method in self.plan.experiment.judged or (parsed.importance == "random" and test_ids is None):
            raise MethodError(
                "this method has scores for the test points of the run only",
                where=method,
                expected="a method with a formula" + ("; for random scores test_ids" if parsed.importance == "random" else ""),
                got="scores from elsewhere" if method in self.plan.experiment.judged else "inputs without ids",
            )
        points = self._points(inputs, test_ids)
        return explain(self.plan, OtherPoints(self._job, points), parsed, seed).cpu().numpy()

    def importance(self, name: str, seed: int) -> Array:
        """Alpha (N,), or (N, C) for several outputs: 'target', 'tracking', or the surrogate of a kernel, 'ntk-final/surrogate'.

        The bare name 'surrogate' is understood where the run has only one.
        """
        self._check_seed(seed)
        kernel, epoch, kind = "ntk", self.plan.keys.epochs, name
        if name not in ("target", "tracking"):
            full = name if "/" in name else self._only_surrogate()
            method = self.plan.experiment.method(full)
            kernel, epoch, kind = method.kernel, self.plan.keys.method_epochs(method)[0], method.importance
        return _squeeze(importance(self.bench, kind, seed, kernel, epoch).numpy(), axis=1)

    def kernel(self, kernel: str, checkpoint: str | int, seed: int) -> Array:
        """K (N, M), or (N, C, M) for several outputs, of 'ntk' or 'last-layer' at a checkpoint."""
        self._check_seed(seed)
        epoch = named_checkpoint(checkpoint, self.plan.keys.epochs)
        return _squeeze(self.store.artifact("kernel", self.plan.keys.kernel(seed, kernel, epoch)).read("kernel"), axis=1)

    def checkpoint(self, seed: int, which: str | int) -> dict[str, Tensor]:
        """The state dictionary at 'initial', 'middle', 'final' or an epoch number that was kept."""
        self._check_seed(seed)
        artifact = self.store.artifact("train", self.plan.keys.train(seed))
        return unpack_state(artifact, named_checkpoint(which, self.plan.keys.epochs))

    def problem(self, seed: int) -> SeedProblem:
        """The trained model in evaluation mode, the loss, and the data as that seed used them."""
        self._check_seed(seed)
        bench = self.bench
        with torch.random.fork_rng(devices=[]):
            model = bench.problem.model()
        model.load_state_dict(self.checkpoint(seed, "final"))
        return SeedProblem(model.eval(), bench.loss, self.train, self.test)

    def certificates(self) -> list[dict[str, Any]]:
        """What the solvers proved of each surrogate, descent and influence kernel: seed, kernel, epoch, residual, and their own numbers."""
        found = []
        for unit in self.plan.importance_units():
            key = self.plan.keys.solved(unit.importance, unit.seed, unit.kernel, unit.epoch)
            certificate = self.store.artifact(unit.importance, key).manifest()["certificate"]
            place = {"seed": unit.seed, "importance": unit.importance, "kernel": unit.kernel, "epoch": unit.epoch}
            found.append({**place, **certificate, "efficiency_gap_test": self._efficiency_gap_test(unit)})
        for influence in self.plan.influence_units():
            key = self.plan.keys.kernel(influence.seed, "influence", influence.epoch)
            certificate = self.store.artifact("kernel", key).manifest()["certificate"]
            found.append({"seed": influence.seed, "importance": "", "kernel": "influence", "epoch": influence.epoch, **certificate})
        return found

    def training(self) -> pl.DataFrame:
        """One row a seed: final training loss and test accuracy of the original model."""
        manifests = [self.store.artifact("train", self.plan.keys.train(seed)).manifest() for seed in self.plan.experiment.seeds]
        rows = [(m["seed"], m["train_loss"], m["test_accuracy"]) for m in manifests]
        return pl.DataFrame(rows, schema={"seed": pl.Int64, "train_loss": pl.Float64, "test_accuracy": pl.Float64}, orient="row")

    def manifest(self) -> dict[str, Any] | None:
        """What was proved when the run was published: question, counts, tracking link, files; None while it is not finished."""
        path = ResultPaths(self.name).manifest
        if not self.store.objects.exists(path):
            return None
        manifest: dict[str, Any] = self.store.objects.get_json(path)
        return manifest if manifest["question"] == self.plan.keys.question else None

    def costs(self) -> dict[str, float]:
        """Models ``asked`` for, distinct retrainings (``unique``) behind them, ``originals``; one worker's training ``seconds``."""
        return model_costs(self._asked, self._ledger)

    def costs_by_method(self) -> pl.DataFrame:
        """One row a method: the retrainings that it asked for, and one worker's seconds for them and for its scores."""
        return method_costs(self.plan, self.store, self._asked, self._ledger)

    def judged(self) -> Judged:
        """Everything that was judged, as published: points, metrics, comparisons, ranks, ceilings, costs and the metrics' own tables."""
        self._result("metrics")  # raises when nothing is published
        results = ResultPaths(self.name)
        names = [field.name for field in fields(Judged) if self.store.objects.exists(results.table(field.name))]
        return Judged(**{name: scan_frame(self.store.objects, results.table(name)).collect() for name in names})

    def judge(self) -> tuple[pl.DataFrame, Judged]:
        """The deletion table and everything else that the metrics say, computed anew from the ledger."""
        return judge(self.plan, self.store, self._asked, lambda: self.bench, self.flipped_ids())

    def flipped_ids(self) -> frozenset[int]:
        """Ids of the training samples whose labels were flipped on purpose."""
        return frozenset(self._record["flipped_ids"])

    @property
    def choices(self) -> dict[str, Any]:
        """How the experiment that was run came out of the one that was declared: ``tune`` and ``stop``, where it has them."""
        choices: dict[str, Any] = self._record["choices"]
        return choices

    @property
    def _asked(self) -> pl.DataFrame:
        return read_asked(self.plan, self.store).collect()

    @property
    def _ledger(self) -> pl.LazyFrame:
        return self.store.ledger(self.plan.keys.training).scan()

    @cached_property
    def train(self) -> Dataset:
        """The training samples, in the order of every array's rows."""
        return read_data(self.store, self._record["data"], "train")

    @cached_property
    def test(self) -> Dataset:
        """All test samples, in the order of the ledger's outputs."""
        return read_data(self.store, self._record["data"], "test")

    @property
    def bench(self) -> Workbench:
        """What a worker opens for this run: problem, data, models at their checkpoints. Loads the problem's own code."""
        return workbench(self._job)

    @property
    def _job(self) -> Job:
        return Job(self.store.uri, self.plan.keys, tuple(self._record["search_path"]))

    def _points(self, inputs: Array | Tensor | None, test_ids: Sequence[int] | None) -> Dataset:
        """The points to be explained, checked; without targets."""
        if (inputs is None) == (test_ids is None):
            raise MethodError(
                "which points?", where=self.name, expected="inputs or test_ids", got="both" if inputs is not None else "neither"
            )
        known = self.test
        if test_ids is not None:
            rows = {sample: row for row, sample in enumerate(known.ids.tolist())}
            unknown = [sample for sample in test_ids if sample not in rows]
            if unknown or not len(test_ids):
                ids = f"ids of the test set, such as {known.ids[:3].tolist()}"
                raise MethodError("no such test samples", where=self.name, expected=ids, got=str(unknown[:5]))
            chosen = torch.tensor([rows[sample] for sample in test_ids])
            return Dataset(known.inputs[chosen], known.targets[chosen], known.ids[chosen])
        given = torch.as_tensor(inputs)
        form = known.inputs
        if given.shape[1:] != form.shape[1:] or not len(given) or given.is_floating_point() != form.is_floating_point():
            raise MethodError(
                "these inputs are not of the form of the problem's",
                where=self.name,
                expected=f"{form.dtype} (M, {', '.join(map(str, form.shape[1:]))})",
                got=f"{given.dtype} {tuple(given.shape)}",
            )
        bad = (~torch.isfinite(given.reshape(len(given), -1)).all(dim=1)).nonzero().flatten().tolist()
        if bad:
            raise NonFiniteError("NaN or Inf in the inputs", where=f"rows {bad[:5]}", expected="finite numbers", got=f"{len(bad)} bad rows")
        return Dataset(given.to(form.dtype), known.targets[:0], torch.arange(len(given)))

    def _result(self, table: str) -> pl.LazyFrame:
        """A published table; what lies there of another question under the same name is not this run's."""
        if self.manifest() is None:
            raise NotCommittedError(
                "this run is not finished",
                where=f"{self.store.uri}/{ResultPaths(self.name).folder}",
                expected="published results of this experiment",
                got="none",
                remedy="run the experiment again: only what is missing is computed",
            )
        return scan_frame(self.store.objects, ResultPaths(self.name).table(table))

    def _efficiency_gap_test(self, unit: ImportanceUnit) -> float | None:
        """Max |f - sum phi| over the seed's test points, of the method that uses these importances."""
        for method in self.plan.experiment.parsed_methods:
            if (method.importance, method.kernel) == (unit.importance, unit.kernel) and unit.epoch in self.plan.keys.method_epochs(method):
                manifest = self.store.artifact("attribution", self.plan.keys.attribution(unit.seed, method)).manifest()
                return float(manifest["efficiency_gap_test"])
        return None

    def _only_surrogate(self) -> str:
        names = [
            n for n, m in zip(self.plan.experiment.methods, self.plan.experiment.parsed_methods, strict=True) if m.importance == "surrogate"
        ]
        if len(names) != 1:
            raise MethodError(
                "which surrogate?", where=self.name, expected="one of " + (", ".join(names) or "none in this run"), got="surrogate"
            )
        return names[0]

    def _check_seed(self, seed: int) -> None:
        if seed not in self.plan.experiment.seeds:
            raise MethodError(
                "not a seed of this run", where=self.name, expected=f"one of {list(self.plan.experiment.seeds)}", got=str(seed)
            )


def open_run(store: str | Store, name: str) -> Run:
    """Open the experiment ``name`` of a store, finished or not. StoreError when the store does not know it."""
    return Run(store if isinstance(store, Store) else Store(store), name)


def _squeeze(values: Array, axis: int) -> Array:
    return values.squeeze(axis) if values.shape[axis] == 1 else values
