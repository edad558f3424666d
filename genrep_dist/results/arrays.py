"""The arrays of a run: scores, importances, kernels, checkpoints, and the solvers' certificates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from genrep_dist.config.keys import checkpoint_epoch, checkpoint_name
from genrep_dist.core.importances import IMPORTANCES
from genrep_dist.core.methods import Method
from genrep_dist.errors import MethodError, NotCommittedError
from genrep_dist.results.base import Array, OpenedRun
from genrep_dist.store.artifacts import Artifact
from genrep_dist.workflow.importances import alpha

if TYPE_CHECKING:
    from torch import Tensor


class StoredModels:
    """What importances are computed from, by the store alone."""

    def __init__(self, run: OpenedRun) -> None:
        from genrep_dist.core.losses import get_loss

        self.store, self.keys, self.experiment = run.store, run.plan.keys, run.plan.experiment
        self.loss, self.train = get_loss(run.record["loss"]), run.train

    def train_artifact(self, seed: int) -> Artifact:
        return self.store.artifact("train", self.keys.train(seed))

    def train_outputs(self, seed: int, epoch: int) -> Tensor:
        """Outputs (N, C) on the training set after ``epoch`` epochs."""
        from genrep_dist.workflow.context import stored_train_outputs

        return stored_train_outputs(self.train_artifact(seed), epoch)


class Arrays(OpenedRun):
    """Reading an array before it is computed raises NotCommittedError."""

    def attributions(self, method: str, seed: int) -> Array:
        """Phi (N, M) float64; positive: the training sample raises the explained number, by default a logit of the test point.

        Where the run keeps only the strongest scores (``attributions.top``), the others are NaN. :meth:`strongest` reads what is kept,
        without an array of N x M numbers.
        """
        artifact = self.store.artifact("attribution", self.attribution_key(method, seed))
        if not artifact.manifest().get("top"):
            return artifact.read("phi")
        train_ids = self.train_ids(seed)
        by_id = np.argsort(train_ids)
        found = [self.strongest(method, seed, sign) for sign in ("negative", "positive")]
        phi = np.full((len(train_ids), len(found[0][0])), np.nan)
        for ids, scores in found:
            rows = by_id[np.searchsorted(train_ids, ids, sorter=by_id)]
            np.put_along_axis(phi, rows.T, scores.T, axis=0)
        return phi

    def strongest(self, method: str, seed: int, sign: str = "negative", count: int | None = None) -> tuple[npt.NDArray[np.int64], Array]:
        """Ids (M, K) of the training samples with the strongest scores of one sign at each test point, and their scores (M, K).

        The strongest first; of equal scores the lowest id. Where there are too few of that sign, those of the other sign follow. At most
        ``count``; without it all that the run keeps. MethodError for another sign, and for a count that is no whole number from 1 to N.
        """
        if count is not None:
            require_count(count, f"{self.name}, count", len(self.train_ids(seed)))
        ids = self.removal_order(method, seed, sign)[:, :count].copy()
        artifact = self.store.artifact("attribution", self.attribution_key(method, seed))
        if artifact.manifest().get("top"):
            return ids, artifact.read(f"scores_{sign}")[:, :count].copy()
        train_ids = self.train_ids(seed)
        by_id = np.argsort(train_ids)
        rows = by_id[np.searchsorted(train_ids, ids, sorter=by_id)]
        return ids, np.take_along_axis(artifact.read("phi").T, rows, axis=1)

    def importance(self, name: str, seed: int) -> Array:
        """Alpha (N,), or (N, C) for several outputs: 'target', 'tracking', or one that is solved for on a kernel, 'ntk-final/surrogate'.

        The bare name of a solved one, such as 'surrogate', is understood where the run has only one.
        """
        self._check_seed(seed)
        kernel, epoch, importance = "", self.plan.keys.epochs, name
        if name not in IMPORTANCES or IMPORTANCES.get(name).kind == "solved":
            method = self.plan.experiment.method(name) if "/" in name else self._only_method(name)
            if not method.has_kernel:
                raise MethodError("this method has no importances", where=self.name, expected="a method with a kernel", got=name)
            kernel, epoch, importance = method.kernel, self.plan.keys.method_epochs(method)[0], method.importance
            if method.needs_gram and (importance, kernel, epoch) not in self.plan.needs.solved:
                raise _not_in_run(self.name, f"the importance {name}", f"{name} to the methods")
        source = StoredModels(self) if self._has_shipped_loss else self.context
        return _squeeze(alpha(source, importance, seed, kernel, epoch).numpy())

    def test_outputs(self, seed: int) -> Array:
        """The original model's outputs (T, C) on all test samples, in the order of :attr:`test`."""
        return self.store.artifact("train", self.train_key(seed)).read("outputs_test")

    @property
    def loss_name(self) -> str:
        """The name of the loss; it may be one of the problem's own."""
        return str(self.record["loss"])

    @property
    def _has_shipped_loss(self) -> bool:
        from genrep_dist.core.losses import LOSSES

        # A loss of the problem's own is described by its class.
        identity = self.record.get("identities", {}).get("problem", {"form": {"loss class": ""}})
        return self.loss_name in LOSSES and "loss class" not in identity["form"]

    def kernel(self, kernel: str, checkpoint: str | int, seed: int) -> Array:
        """K (N, M), or (N, C, M) for several outputs, at a checkpoint.

        A kernel of several outputs that the run used for products with known importances alone was not stored, nor one of a run that keeps
        only the strongest scores. It is computed at each call, which loads the problem's own code and takes C backward passes a training
        sample.
        """
        from genrep_dist.workflow.explain import computed_kernel

        self._check_seed(seed)
        epoch, needs = checkpoint_epoch(checkpoint, self.plan.keys.epochs), self.plan.needs
        key = self.plan.keys.kernel(seed, kernel, epoch)
        if (kernel, epoch) not in {*needs.features, *needs.cross, *needs.derived} and not self.store.artifact("kernel", key).is_committed():
            if epoch > self.plan.keys.epochs:
                expected = f"an epoch from 0 to {self.plan.keys.epochs}"
                raise MethodError("there is no such checkpoint", where=self.name, expected=expected, got=f"epoch {epoch}")
            place = checkpoint_name(epoch, self.plan.keys.epochs)
            raise _not_in_run(self.name, f"the kernel {kernel}-{place}", f"a method with it, such as {kernel}-{place}/target,")
        if (kernel, epoch) in needs.features and (kernel, epoch) not in needs.cross:
            return _squeeze(computed_kernel(self.plan, self.context, kernel, seed, epoch).numpy())
        return _squeeze(self.store.artifact("kernel", key).read("kernel"))

    def checkpoint(self, seed: int, which: str | int) -> dict[str, Tensor]:
        """The state dictionary at 'initial', 'middle', 'final' or an epoch number that was kept."""
        from genrep_dist.workflow.checkpoints import unpack_state

        artifact = self.store.artifact("train", self.train_key(seed))
        return unpack_state(artifact, checkpoint_epoch(which, int(self.record["recipe"]["epochs"])))

    def removal_order(self, method: str, seed: int, sign: str = "negative") -> npt.NDArray[np.int64]:
        """Ids (M, N) of the training samples in the order of their removal for each test point: the strongest scores of ``sign`` first.

        (M, K) where the run keeps only the K strongest scores (``attributions.top``). MethodError for a sign other than "negative" and
        "positive".
        """
        if sign not in ("negative", "positive"):
            raise MethodError("no such sign", where=self.name, expected="negative or positive", got=sign)
        return self.store.artifact("attribution", self.attribution_key(method, seed)).read(f"order_{sign}")

    def certificates(self) -> pl.DataFrame:
        """What the solvers proved, one row a solved importance or derived kernel: seed, importance, kernel, epoch, and their own numbers.

        Null where a solver has no such number; without rows where nothing was solved for.
        """
        places = {"seed": pl.Int64, "importance": pl.String, "kernel": pl.String, "epoch": pl.Int64}
        records = self.certificate_records()
        if not records:
            return pl.DataFrame(schema=places)
        table = pl.DataFrame(records, infer_schema_length=None)
        # What matters most comes first and last: a printed frame leaves out the columns in its middle.
        first = ["seed", "importance", "kernel", *(name for name in ("residual",) if name in table.columns)]
        last = [name for name in ("efficiency_gap", "efficiency_gap_test") if name in table.columns]
        return table.select(*first, *(name for name in table.columns if name not in (*first, *last)), *last)

    def certificate_records(self) -> list[dict[str, Any]]:
        """The rows of :meth:`certificates`, each with the numbers that its solver has."""
        keys, needs = self.plan.keys, self.plan.needs
        found = []
        for seed in self.plan.experiment.seeds:
            for importance, kernel, epoch in needs.solved:
                certificate = self.store.artifact(importance, keys.solved(importance, seed, kernel, epoch)).manifest()["certificate"]
                place = {"seed": seed, "importance": importance, "kernel": kernel, "epoch": epoch}
                found.append({**place, **certificate, "efficiency_gap_test": self._efficiency_gap_test(seed, importance, kernel, epoch)})
        for seed in self.plan.experiment.seeds:
            for kernel, epoch in needs.derived:
                certificate = self.store.artifact("kernel", keys.kernel(seed, kernel, epoch)).manifest()["certificate"]
                found.append({"seed": seed, "importance": "", "kernel": kernel, "epoch": epoch, **certificate})
        return found

    def _efficiency_gap_test(self, seed: int, importance: str, kernel: str, epoch: int) -> float | None:
        """Max |f - sum phi| over the seed's test points, of the method that uses these importances."""
        for method in self.plan.experiment.parsed_methods:
            if (method.importance, method.kernel) == (importance, kernel) and epoch in self.plan.keys.method_epochs(method):
                manifest = self.store.artifact("attribution", self.plan.keys.attribution(seed, method)).manifest()
                return float(manifest["efficiency_gap_test"])
        return None

    def _only_method(self, importance: str) -> Method:
        found = [method for method in self.plan.experiment.parsed_methods if method.importance == importance]
        if not found:
            known = dict.fromkeys(method.importance for method in self.plan.experiment.parsed_methods if method.has_kernel)
            raise MethodError(
                "the run has no such importance",
                where=self.name,
                expected=f"one of {', '.join(known) or '(none)'}, or a method of the run",
                got=importance,
                remedy="add a method with it to the experiment and run it again: only what is missing is computed",
            )
        if len(found) > 1:
            names = ", ".join(method.name for method in found)
            raise MethodError(f"which {importance}?", where=self.name, expected=f"one of {names}", got=importance)
        return found[0]


def _squeeze(values: Array) -> Array:
    """Without the axis of outputs where there is only one."""
    return values.squeeze(1) if values.shape[1] == 1 else values


def _not_in_run(name: str, what: str, addition: str) -> NotCommittedError:
    return NotCommittedError(
        f"{what} is not part of this run",
        where=name,
        expected="what a method of the run needs",
        got="nothing in the store",
        remedy=f"add {addition} and run the experiment again: only what is missing is computed",
    )


def require_count(value: object, where: str, most: int) -> None:
    """Raise MethodError unless ``value`` is a whole number from 1 to ``most``."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or not 1 <= value <= most:
        raise MethodError(
            "so many scores cannot be kept",
            where=where,
            expected=f"a whole number from 1 to {most}, the number of training samples",
            got=repr(value)[:80],
            remedy="pass how many of the strongest samples of each sign you want",
        )
