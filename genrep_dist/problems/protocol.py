"""What a problem is: data, a model, a loss and a training recipe. Imports torch and the standard library only."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from genrep_dist.core.losses import Loss
from genrep_dist.core.optimizers import DEFAULT_WEIGHT_DECAY
from genrep_dist.core.schedules import SCHEDULES, make_schedule
from genrep_dist.errors import ProblemError

Schedule = str
"""The name of a schedule of :mod:`genrep_dist.core.schedules`."""
Precision = Literal["full", "tf32", "bfloat16"]
Augment = Callable[[Any, int, torch.Generator], Any]
"""(one row of the inputs, epoch from 1, generator) -> the row that is trained on in this epoch, of the same shape and dtype."""


class _OptimizerDefault(float):
    """A number that was not given: it follows the optimizer."""


@dataclass(frozen=True)
class ParamGroup:
    """Parameters with settings of their own: those whose name matches ``params``, a pattern such as ``*.bias`` (:mod:`fnmatch`).

    ``learning_rate`` is that of the first step after a warm-up, and follows the recipe's schedule. None: the recipe's value.
    """

    params: str
    learning_rate: float | None = None
    weight_decay: float | None = None


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: mini-batch steps on the mean loss of each batch.

    ``learning_rate`` is the rate that ``schedule`` (a name of :mod:`genrep_dist.core.schedules`) varies over the run: "constant" keeps it,
    "cosine" and "linear" decrease it to zero, "step" multiplies it by ``gamma`` every ``step_size`` epochs, "one_cycle" raises it to
    ``learning_rate`` and lowers it again. ``warmup`` is the number of steps in which the rate rises linearly at the start; below 1 it is a
    share of all steps.

    ``optimizer`` names an update rule of :mod:`genrep_dist.training.optimizers`. The tracking and TracIn identities hold for plain SGD,
    so it is the default. ``momentum``, ``dampening``, ``nesterov``, ``weight_decay``, ``betas``, ``eps``, ``amsgrad``, ``alpha`` and
    ``centered`` are those of ``torch.optim``, with its defaults; ``weight_decay`` is zero, and 0.01 for "adamw".
    ``clip_norm`` is the largest norm of a model's gradient in a step, as in ``torch.nn.utils.clip_grad_norm_``. A parameter belongs to
    the first of ``param_groups`` that it matches. ``drop_last`` leaves out the last batch of an epoch where it is smaller than the others.

    ``augment`` changes each row before it is trained on: a function, or its name as ``module:function``. What it draws comes from the
    generator that it is given, and depends on the sample and the epoch alone. Explanations are taken on the rows as they are.

    ``precision`` is that of training: "full" is the parameters' own dtype; "tf32" lets a GPU round the factors of float32 products to 11
    bits (refused on a CPU); "bfloat16" is torch's autocast, with 8 bits of significand for products and their gradients. Parameters
    keep their dtype, and explaining and judging compute in it.

    Raises ProblemError for an impossible value. An unknown optimizer, and settings that an optimizer does not have, are refused when it
    is first used.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    schedule: str = "constant"
    momentum: float = 0.0
    weight_decay: float = _OptimizerDefault(0.0)
    precision: Precision = "full"
    optimizer: str = "sgd"
    nesterov: bool = False
    dampening: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    amsgrad: bool = False
    alpha: float = 0.99
    centered: bool = False
    warmup: float | None = None
    step_size: int | None = None
    gamma: float = 0.1
    clip_norm: float | None = None
    param_groups: tuple[ParamGroup, ...] = ()
    drop_last: bool = False
    augment: Augment | str | None = None

    def __post_init__(self) -> None:
        """Check the values; take plain data, such as lists and dictionaries, for the tuples and groups that they describe."""
        if isinstance(self.weight_decay, _OptimizerDefault):
            object.__setattr__(self, "weight_decay", _OptimizerDefault(DEFAULT_WEIGHT_DECAY.get(self.optimizer, 0.0)))
        given: dict[str, object] = {name: getattr(self, name) for name in ("betas", "param_groups")}
        for name, value in given.items():
            if isinstance(value, list | tuple):
                object.__setattr__(self, name, tuple(_as_group(item) if isinstance(item, dict) else item for item in value))
        checks: list[tuple[str, bool, str]] = [
            ("epochs", self.epochs >= 1, "at least 1"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("learning_rate", _is_positive(self.learning_rate), "a finite number above 0"),
            ("schedule", self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
            ("momentum", 0 <= self.momentum < 1, "at least 0 and below 1"),
            ("precision", self.precision in ("full", "tf32", "bfloat16"), "'full', 'tf32' or 'bfloat16'"),
            ("optimizer", isinstance(self.optimizer, str) and bool(self.optimizer), "the name of an optimizer"),
            ("weight_decay", _is_finite(self.weight_decay), "a finite number, 0 or more"),
            ("dampening", 0 <= self.dampening <= 1, "from 0 to 1"),
            ("nesterov", not self.nesterov or (self.momentum > 0 and not self.dampening), "false without momentum, or with dampening"),
            ("betas", _are_betas(self.betas), "two numbers, each at least 0 and below 1"),
            ("eps", _is_finite(self.eps), "a finite number, 0 or more"),
            ("alpha", 0 <= self.alpha < 1, "at least 0 and below 1"),
            ("warmup", _is_warmup(self.warmup), "a whole number of steps, or a share of them: at least 0 and below 1"),
            ("step_size", self.step_size is None or self.step_size >= 1, "at least 1 epoch"),
            ("gamma", _is_positive(self.gamma), "a finite number above 0"),
            ("clip_norm", self.clip_norm is None or _is_positive(self.clip_norm), "a finite number above 0, or None"),
            (
                "param_groups",
                _are_groups(self.param_groups),
                "groups with params, and a learning_rate above 0 or a weight_decay of 0 or more",
            ),
            ("augment", self.augment is None or isinstance(self.augment, str) or callable(self.augment), "a function or module:function"),
        ]
        for name, fine, expected in checks:
            if not fine:
                raise ProblemError(
                    "the training recipe is impossible", where=f"recipe.{name}", expected=expected, got=repr(getattr(self, name))
                )
        make_schedule(self)

    def rate(self, step: int, num_steps: int) -> float:
        """Learning rate eta of ``step`` (from 0) out of ``num_steps``."""
        return self.learning_rate * make_schedule(self).relative_rate(step, num_steps)

    def steps_per_epoch(self, num_rows: int) -> int:
        """Batches of an epoch over ``num_rows`` rows."""
        return num_rows // self.batch_size if self.drop_last else -(-num_rows // self.batch_size)

    def record(self) -> dict[str, Any]:
        """The fields of this class as plain data, from which ``Recipe(**data)`` makes them again; ``augment`` by its name."""
        return {part.name: getattr(self, part.name) for part in fields(Recipe)} | {
            "augment": augment_name(self.augment),
            "betas": list(self.betas),
            "param_groups": [asdict(group) for group in self.param_groups],
            "weight_decay": float(self.weight_decay),
        }


def augment_name(augment: Augment | str | None) -> str | None:
    """``module:function`` of a function, or of the class of an object that is called."""
    if augment is None or isinstance(augment, str):
        return augment
    named: Any = augment if hasattr(augment, "__qualname__") else type(augment)
    return f"{named.__module__}:{named.__qualname__}"


def _as_group(data: dict[str, Any]) -> ParamGroup:
    names = [field.name for field in fields(ParamGroup)]
    if "params" not in data or set(data) - set(names):
        expected = f"params, and some of {', '.join(names)}"
        raise ProblemError("the training recipe is impossible", where="recipe.param_groups", expected=expected, got=repr(data))
    return ParamGroup(**data)


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value) and bool(value >= 0)
    except TypeError:
        return False


def _is_positive(value: Any) -> bool:
    return _is_finite(value) and bool(value > 0)


def _are_betas(betas: object) -> bool:
    return isinstance(betas, tuple) and len(betas) == 2 and all(isinstance(beta, int | float) and 0 <= beta < 1 for beta in betas)


def _is_warmup(warmup: Any) -> bool:
    return warmup is None or (_is_finite(warmup) and (warmup < 1 or warmup == int(warmup)))


def _are_groups(groups: object) -> bool:
    return isinstance(groups, tuple) and all(
        isinstance(group, ParamGroup)
        and isinstance(group.params, str)
        and bool(group.params)
        and (group.learning_rate is None or _is_positive(group.learning_rate))
        and (group.weight_decay is None or _is_finite(group.weight_decay))
        and (group.learning_rate, group.weight_decay) != (None, None)
        for group in groups
    )


def recorded_recipe(values: Mapping[str, Any]) -> Recipe:
    """A recipe with the fields that a record names. Those that a subclass added are attributes; its methods are not there."""
    own = {part.name for part in fields(Recipe)}
    recipe = Recipe(**{name: value for name, value in values.items() if name in own})
    for name in values.keys() - own:
        object.__setattr__(recipe, name, values[name])
    return recipe


class Dataset(NamedTuple):
    """Samples: ``inputs`` (N, ...), ``targets`` (N, ...) and stable integer ``ids`` (N,)."""

    inputs: Tensor
    targets: Tensor
    ids: Tensor


@runtime_checkable
class Problem(Protocol):
    """The protocol of a user's problem; no base class is needed.

    ``loss`` is a loss or the name of one in :mod:`genrep_dist.core.losses`; ``recipe`` says how to train.
    ``model()`` builds a new module with new random parameters: inputs (B, ...) -> logits (B,) or (B, C).
    Several small models train at once where their layers allow it. A module whose attribute ``trains_alone`` is true always trains
    alone, for instance because its forward pass has side effects, and takes no step of training before the run.
    All that its outputs depend on is in ``state_dict()``: a new model that loads a trained one's state gives the same outputs.
    ``train_data()`` and ``test_data()`` return (inputs, targets, ids), as a :class:`Dataset` or a plain tuple. ``inputs`` is a tensor
    (N, ...), or a dictionary, tuple, list or dataclass of such tensors, which the model is called with: model(**dictionary),
    model(*tuple), model(dataclass). They may also return a torch ``Dataset`` or a ``datasets.Dataset``: its rows are made one batch by
    the problem's ``collate(rows)``, if it has one (:func:`genrep_dist.problems.collections.collected`).

    A problem may train its models itself: ``train(model, data, run)`` gets a new model, the kept samples as a torch data set
    (:class:`genrep_dist.training.user_run.KeptSamples`) and :class:`genrep_dist.training.user_run.UserRun`, and trains in place or returns
    the trained model. It then needs no ``recipe``. With ``predict(model, inputs)`` beside it, ``model()`` may return what is no module.

    A problem may bring its own target, an attribute ``target`` with the methods of
    :class:`~genrep_dist.core.function_targets.OwnTarget`: `target: {kind: problem}` explains it.

    For the report, which shows samples, a problem may have ``texts(ids: Tensor) -> Sequence[str]``, the sentences of samples by id, or
    ``describe(ids: Tensor) -> Sequence[Mapping[str, object]]``, their values by name (the first eight are shown); training and test ids
    must then differ. An attribute ``class_names`` names the classes in the order of the targets.
    """

    @property
    def loss(self) -> str | Loss: ...

    @property
    def recipe(self) -> Recipe: ...

    def model(self) -> nn.Module: ...

    def train_data(self) -> Any: ...

    def test_data(self) -> Any: ...
