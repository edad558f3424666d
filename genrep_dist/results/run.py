"""A run's results, read from the store alone: what a user's script, notebook or another tool works with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import numpy.typing as npt

from genrep_dist.config import Experiment, load_experiment
from genrep_dist.errors import MethodError, NonFiniteError
from genrep_dist.results.arrays import require_count
from genrep_dist.results.base import Array
from genrep_dist.results.presentation import Presentation
from genrep_dist.store import Store
from genrep_dist.store.catalogue import open_existing
from genrep_dist.workflow.record import read_record
from genrep_dist.workflow.user_code import NamedCode

if TYPE_CHECKING:
    from torch import Tensor, nn

    from genrep_dist.core.losses import Loss
    from genrep_dist.problems.protocol import Dataset

SIGNS: tuple[Literal["negative", "positive"], ...] = ("negative", "positive")


@dataclass(frozen=True)
class SeedProblem:
    """A problem exactly as one seed used it: the trained model and its data."""

    model: nn.Module
    loss: Loss
    train: Dataset
    test: Dataset


class Run(Presentation):
    """One experiment in one store. Reading something that is not finished raises NotCommittedError."""

    def problem(self, seed: int) -> SeedProblem:
        """The trained model in evaluation mode, the loss, and the data as that seed used them."""
        from genrep_dist.core.inputs import unpacked

        self._check_seed(seed)
        model = self.context.fresh_model()
        model.load_state_dict(self.checkpoint(seed, "final"))
        train, test = (data._replace(inputs=unpacked(data.inputs)) for data in (self.train, self.test))
        return SeedProblem(model.eval(), self.context.loss, train, test)

    @overload
    def explain(
        self,
        method: str,
        seed: int,
        *,
        inputs: Any = None,
        test_ids: Sequence[int] | None = None,
        targets: Array | Tensor | None = None,
        top: None = None,
    ) -> Array: ...
    @overload
    def explain(
        self,
        method: str,
        seed: int,
        *,
        inputs: Any = None,
        test_ids: Sequence[int] | None = None,
        targets: Array | Tensor | None = None,
        top: int,
    ) -> dict[str, tuple[npt.NDArray[np.int64], Array]]: ...
    def explain(
        self,
        method: str,
        seed: int,
        *,
        inputs: Any = None,
        test_ids: Sequence[int] | None = None,
        targets: Array | Tensor | None = None,
        top: int | None = None,
    ) -> Array | dict[str, tuple[npt.NDArray[np.int64], Array]]:
        """Phi (N, M) float64 for other points, without retraining: ``inputs`` (M, ...) of any origin, in the form
        of the problem's, or samples of the test set by id.

        With ``top``: for "negative" and "positive" the ids (M, K) of the K = ``top`` training samples with the strongest scores of that
        sign, as :meth:`strongest` has them, and their scores (M, K). The scores of all samples are then not held. All points share one pass
        over the features of the training samples for each checkpoint of a method, as far as the memory budget allows: the features of the
        points and their products with a block are to fit a quarter of it each.

        ``targets`` (M, ...) of the ``inputs``, in the form of the problem's, are needed where the explained number depends on them. Each
        point is explained by itself, also where the run explains means of groups.

        Any method that the run has, or whose importances it has solved for: every `.../target` and `.../tracking` of the checkpoints
        that were kept. Random scores are drawn by a test point's id and so need ``test_ids``. Loads the problem's own code.

        Raises MethodError for external scores, for a missing id and for inputs of another form, NonFiniteError for NaN or
        Inf in them, NotCommittedError for what the run has not kept.
        """
        from genrep_dist.workflow.explain import explain, explain_strongest, other_points

        self._check_seed(seed)
        num_train = len(self.train.ids)
        if top is not None:
            require_count(top, f"{self.name}, top", num_train)
        parsed = self.plan.experiment.method(method)
        if parsed.is_external or (parsed.is_random and test_ids is None):
            raise MethodError(
                "this method has scores for the test points of the run only",
                where=method,
                expected="a method with a formula" + ("; for random scores test_ids" if parsed.is_random else ""),
                got="external scores" if parsed.is_external else "inputs without ids",
            )
        chosen, ids, known = self._points(inputs, test_ids, targets)
        context = self.context
        points = other_points(context, seed, chosen, ids, known)
        if top is None:
            return explain(self.plan, context, parsed, seed, points).cpu().numpy()
        found = explain_strongest(self.plan, context, parsed, seed, points, top)
        kept = {sign: found.strongest(sign) for sign in SIGNS}
        return {sign: (one.ids.numpy(), one.scores.numpy()) for sign, one in kept.items()}

    def _points(self, inputs: Any, test_ids: Sequence[int] | None, targets: Array | Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Inputs (M, ...), ids (M,) and targets of the points to be explained, checked; the targets are None where they are unknown."""
        import torch

        from genrep_dist.core.inputs import input_leaves

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
            return known.inputs[chosen], known.ids[chosen], known.targets[chosen]
        given, form = _rows_like(inputs, known.inputs), known.inputs
        if given.shape[1:] != form.shape[1:] or not len(given) or given.is_floating_point() != form.is_floating_point():
            raise MethodError(
                "these inputs are not of the form of the problem's",
                where=self.name,
                expected=f"{form.dtype} (M, {', '.join(map(str, form.shape[1:]))})",
                got=f"{given.dtype} {tuple(given.shape)}",
            )
        finite = [torch.isfinite(leaf.reshape(len(given), -1)).all(dim=1) for leaf in input_leaves(given)]
        bad = (~torch.stack(finite).all(dim=0)).nonzero().flatten().tolist()
        if bad:
            raise NonFiniteError("NaN or Inf in the inputs", where=f"rows {bad[:5]}", expected="finite numbers", got=f"{len(bad)} bad rows")
        own = None if targets is None else torch.as_tensor(targets)
        if own is not None and (own.shape != (len(given), *known.targets.shape[1:]) or own.is_complex()):
            expected = f"{known.targets.dtype} ({', '.join(map(str, (len(given), *known.targets.shape[1:])))})"
            got = f"{own.dtype} {tuple(own.shape)}"
            raise MethodError("these targets are not of the form of the problem's", where=self.name, expected=expected, got=got)
        return given.to(form.dtype), torch.arange(len(given)), None if own is None else own.to(known.targets.dtype)


def _rows_like(inputs: Any, known: Tensor) -> Tensor:
    """Inputs, or arrays in the containers of the problem's inputs, as rows like ``known``. ProblemError for other containers."""
    import torch

    from genrep_dist.core.inputs import form_of, map_leaves

    form = form_of(known)
    if form is None:
        try:
            return torch.as_tensor(inputs)
        except (TypeError, ValueError, RuntimeError) as error:
            expected, got = f"an array or tensor, {known.dtype} (M, ...)", f"{type(inputs).__name__} ({error})"
            raise MethodError("these inputs are not of the form of the problem's", where="inputs", expected=expected, got=got) from error
    dtypes = iter([one.dtype for one in form.fields])
    return form.pack(map_leaves(inputs, lambda leaf: torch.as_tensor(leaf).to(next(dtypes))))


def open_run(
    store: str | os.PathLike[str] | Store,
    name: str,
    *,
    experiment: Experiment | str | Path | None = None,
    search_path: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> Run:
    """Open the experiment ``name`` of a store, finished or not. StoreError when the store does not know it.

    Tables and arrays need no code of a user. What does (:meth:`Run.problem`, :meth:`Run.explain`) imports the classes that this user has
    run on this machine. For a store from elsewhere, name the ``experiment`` that it was made with, as a file, the name of one that ships,
    or an Experiment: its classes are imported then, from ``search_path``, the file's folder and the current folder, if their files are
    those of the run. ``overrides`` as for :func:`genrep_dist.load_experiment`. ConfigError if it is another experiment.
    """
    if not isinstance(store, Store):
        # A reader creates no folder. What is no address at all is refused by Store.
        store = open_existing(os.fspath(store)) if isinstance(store, str | os.PathLike) else Store(store)
    opened = store
    if experiment is None:
        return Run(opened, name)
    folders = tuple(search_path)
    if not isinstance(experiment, Experiment):
        profile = read_record(opened, name)["experiment"].get("profile")
        if os.path.isfile(experiment):
            folders = (*folders, str(Path(experiment).resolve().parent))
        experiment = load_experiment(experiment, overrides, profile)
    return Run(opened, name, NamedCode(experiment, folders))
