"""Trains models by a problem's own function ``train(model, data, run)``, one at a time."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genrep_dist.core.gradients.model import as_outputs
from genrep_dist.core.inputs import unpacked
from genrep_dist.core.losses import Loss
from genrep_dist.core.tensors import OUT_OF_MEMORY, numpy_array
from genrep_dist.errors import GenRepError, NonFiniteError, ProblemError, TimeLimitError, describe_error
from genrep_dist.problems.canonical import unwrapped
from genrep_dist.problems.functions import PredictFunction, TrainingFunction
from genrep_dist.problems.protocol import Dataset, Problem, Recipe
from genrep_dist.training.loop import TrainingRun, all_finite
from genrep_dist.training.randomness import Randomness
from genrep_dist.training.resume import StateStore, StateStores
from genrep_dist.training.torch_settings import preserved_torch_settings
from genrep_dist.training.user_run import KeptSamples, Record, UserRun

PROBE_ROWS = 32
SHOWN_FRAMES = 12
SHOWN_IDS = 50

Limit = Callable[[str], AbstractContextManager[object]]
"""Raises TimeLimitError when what runs inside takes too long; the argument says what it is."""

_PACKAGE = str(Path(__file__).parents[1] / "x").removesuffix("x")


class FunctionTrainer:
    """Trains models of one problem by its own function.

    A trained model is a function of the problem's code, the randomness and the kept rows: the default generators and torch's settings are
    set before each call, and restored after it. What a function keeps between calls is its own fault; trainings are repeated to find it.
    """

    pack_kind = "solo"
    solo_reason = "the problem's own function trains it"
    shares_batches = False
    graphs = None

    def __init__(
        self,
        problem: Problem,
        function: TrainingFunction,
        loss: Loss,
        recipe: Recipe,
        data: Dataset,
        *,
        epochs: int | None,
        limit: Limit | None = None,
    ) -> None:
        """``epochs``: those of ``recipe``, or None if nobody declared a recipe."""
        self._problem, self._function, self._loss, self._recipe, self._data = problem, function, loss, recipe, data
        self._epochs, self._limit = epochs, limit or (lambda _: nullcontext())

    def build(self, randomness: Randomness) -> Any:
        """A model with its initial parameters; a module on the device of the data."""
        model: object = randomness.build(self._problem.model)
        return model.to(self._data.inputs.device) if isinstance(model, nn.Module) else model

    def train(self, run: TrainingRun, record: Record | None = None, states: StateStore | None = None) -> Any:
        """One trained model; what its function called hooks for goes to ``record``, and what it saves of its state to ``states``.

        Raises ProblemError, with the traceback and the removed ids, for an error in the function and for a model that cannot be used;
        NonFiniteError for one that diverged; TimeLimitError; MemoryError or torch.OutOfMemoryError.
        """
        device = self._data.inputs.device
        kept = torch.ones(len(self._data.ids), dtype=torch.bool) if run.kept is None else run.kept.cpu()
        model, where = self.build(run.randomness), self._where(run, kept)
        data = self._data if run.targets is None else self._data._replace(targets=run.targets.to(self._data.targets))
        settings: dict[str, Any] = {"rebatch": run.rebatch, "weights": run.weights, "states": states}
        user = UserRun(data, kept, run.randomness, self._recipe, self._epochs, self._loss, record, **settings)
        form = _form(model)
        user.begin(model)
        with run.randomness.scope("train"), preserved_torch_settings():
            try:
                with self._limit(where):
                    returned = self._function(model, KeptSamples(data, kept), user)
            except GenRepError:
                raise
            except OUT_OF_MEMORY as error:
                kind = MemoryError if isinstance(error, MemoryError) else torch.OutOfMemoryError
                raise kind(f"{where}: {error}") from error
            except (Exception, SystemExit) as error:
                raise _raised(error, where) from error
        if run.weights is not None and not user.reads_weights:
            raise unread_weights(where)
        if not isinstance(model, nn.Module):
            return model if returned is None else returned
        return _checked(_adopted(model, returned, where).to(device), form, where)

    def train_all(self, runs: Sequence[TrainingRun], states: StateStores | None = None) -> list[Any]:
        """The trained model of each run, or the error of one that failed. ``states``: as for :meth:`Trainer.train_all`."""
        results: list[Any] = []
        for run in runs:
            try:
                results.append(self.train(run, states=None if states is None else states(run.description)))
            except (ProblemError, TimeLimitError, *OUT_OF_MEMORY) as error:
                results.append(error)
        return results

    def pack_size(self, models: int | None = None) -> int:
        """One model at a time."""
        del models
        return 1

    def seconds_per_model(self, pack_size: int | None = None, *, own_batches: bool = False) -> float:
        """About how long one training takes here, from trainings on a few rows and on twice as many."""
        del pack_size, own_batches
        few = min(PROBE_ROWS, len(self._data.ids))
        more = min(2 * few, len(self._data.ids))
        first, second = self._seconds(few), self._seconds(more)
        if more == few:
            return second
        return second + max(0.0, second - first) * (len(self._data.ids) - more) / (more - few)

    def _seconds(self, rows: int) -> float:
        part = Dataset(*(tensor[:rows] for tensor in self._data))
        trainer = FunctionTrainer(self._problem, self._function, self._loss, self._recipe, part, epochs=self._epochs, limit=self._limit)
        began = time.perf_counter()
        trainer.train_all([TrainingRun(Randomness(0))])
        return time.perf_counter() - began

    def _where(self, run: TrainingRun, kept: Tensor) -> str:
        removed = sorted(self._data.ids[~kept].tolist())
        ids = ", ".join(map(str, removed[:SHOWN_IDS])) + (f" and {len(removed) - SHOWN_IDS} more" if len(removed) > SHOWN_IDS else "")
        return (run.description or f"seed {run.randomness.seed}") + (f"; removed ids: {ids}" if removed else "; nothing removed")


def predict_with(function: PredictFunction, model: object, inputs: Tensor, *, batch_size: int) -> Tensor:
    """Outputs (N, C) of a model that is no module, by the problem's ``predict``. ProblemError if it fails or returns something else."""
    parts = []
    for start in range(0, len(inputs), batch_size):
        some = inputs[start : start + batch_size].clone()
        try:
            with preserved_torch_settings():
                found = function(model, unpacked(some))
                raw = found.detach() if isinstance(found, Tensor) else torch.from_numpy(numpy_array(found).copy())
        except (GenRepError, *OUT_OF_MEMORY):
            raise
        except Exception as error:
            what, remedy = "the problem's predict fails", "return outputs (B,) or (B, C): a tensor, an array, or a list of numbers"
            raise ProblemError(what, where="predict(model, inputs)", got=describe_error(error), remedy=remedy) from error
        parts.append(as_outputs(raw, len(some), "predict"))
    return torch.cat(parts)


def _adopted(model: nn.Module, returned: object, where: str) -> nn.Module:
    """``model`` with the state of what the function returned; None means that it was trained in place."""
    found = unwrapped(returned) if isinstance(returned, nn.Module) else returned
    if found is None or found is model:
        return model
    if not isinstance(found, nn.Module):
        raise ProblemError(
            "the training function returned something else than a model",
            where=where,
            expected="the trained torch.nn.Module, or None for one that is trained in place",
            got=type(found).__name__,
            remedy="return the model, or nothing",
        )
    try:
        model.load_state_dict(found.state_dict())
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise ProblemError(
            "a new model does not take the state of the one that the training function returned",
            where=where,
            expected="a module with the names and shapes of model().state_dict()",
            got=f"{type(found).__name__}: {' '.join(str(error).split())[:300]}",
            remedy="return the module inside of a wrapper, for example `return averaged.module`",
        ) from error
    return model


def _form(model: object) -> dict[str, str]:
    """Dtype and shape of all tensors of a module's state, and which parameters are trained."""
    if not isinstance(model, nn.Module):
        return {}
    form = {name: f"{value.dtype} {tuple(value.shape)}" for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    return form | {
        name: f"{parameter.dtype} {tuple(parameter.shape)}, {'trained' if parameter.requires_grad else 'frozen'}"
        for name, parameter in model.named_parameters()
    }


def _checked(model: nn.Module, form: dict[str, str], where: str) -> nn.Module:
    """``model``, trained. Raises ProblemError if the form of its state has changed, NonFiniteError if it diverged."""
    after = _form(model)
    changed = [name for name in dict.fromkeys((*form, *after)) if form.get(name) != after.get(name)]
    if changed:
        raise ProblemError(
            "the training function changes the form of the model",
            where=f"{where}; {changed[0]!r}",
            expected=form.get(changed[0], "nothing of this name"),
            got=after.get(changed[0], "nothing of this name"),
            remedy="create and freeze parameters in model(), and leave the model in its dtype: explanations load the state of the trained "
            "model into a new one",
        )
    if not all_finite([parameter.detach() for parameter in model.parameters()]):
        raise NonFiniteError(
            "training diverged: a parameter became NaN or Inf",
            where=where,
            expected="finite parameters",
            got="NaN or Inf",
            remedy="lower the learning rate of the training function, clip its gradients, or look at the scale of the inputs",
        )
    return model


def unread_weights(where: str) -> ProblemError:
    """The error of a training function that leaves weights of samples out of its loss."""
    return ProblemError(
        "the training function does not weight its samples",
        where=where,
        expected="a call of run.weights(ids): samples have other weights here",
        got="none",
        remedy="multiply each sample's loss by `run.weights(ids)` and divide by their sum, or leave out the metric that changes weights",
    )


def _raised(error: BaseException, where: str) -> ProblemError:
    """The error of a training function that raised: with the traceback of the user's own code."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_PACKAGE)]
    lines = "".join(traceback.format_list(frames[-SHOWN_FRAMES:])).rstrip()
    return ProblemError(
        "the training function raised an error",
        where=where,
        got=f"{type(error).__name__}: {error}\n{lines}",
        remedy="correct train(), and run the same command again: what is computed is kept where it is still valid",
    )
