"""What a problem is: data, a model, a loss and a training recipe. Imports torch and the standard library only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from genrep_dist.core.losses import Loss
from genrep_dist.errors import ProblemError

Schedule = Literal["constant", "cosine"]
Precision = Literal["full", "tf32", "bfloat16"]


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: mini-batch steps on the mean loss of each batch.

    ``learning_rate`` is the rate of the first step; ``schedule`` "constant" keeps it, "cosine" decreases it to zero over the run.
    ``optimizer`` names an update rule of :mod:`genrep_dist.training.optimizers`. The tracking and TracIn identities hold for plain SGD,
    so it is the default, and ``momentum`` and ``weight_decay`` default to zero.

    ``precision`` is that of training: "full" is the parameters' own dtype; "tf32" lets a GPU round the factors of float32 products to 11
    bits (refused on a CPU); "bfloat16" is torch's autocast, with 8 bits of significand for products and their gradients. Parameters
    keep their dtype, and explaining and judging compute in it.

    Raises ProblemError for an impossible value. An unknown optimizer is refused when it is first used.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    schedule: Schedule = "constant"
    momentum: float = 0.0
    weight_decay: float = 0.0
    precision: Precision = "full"
    optimizer: str = "sgd"

    def __post_init__(self) -> None:
        checks: list[tuple[str, bool, str]] = [
            ("epochs", self.epochs >= 1, "at least 1"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("learning_rate", math.isfinite(self.learning_rate) and self.learning_rate > 0, "a finite number above 0"),
            ("schedule", self.schedule in ("constant", "cosine"), "'constant' or 'cosine'"),
            ("momentum", 0 <= self.momentum < 1, "at least 0 and below 1"),
            ("precision", self.precision in ("full", "tf32", "bfloat16"), "'full', 'tf32' or 'bfloat16'"),
            ("optimizer", isinstance(self.optimizer, str) and bool(self.optimizer), "the name of an optimizer"),
            ("weight_decay", math.isfinite(self.weight_decay) and self.weight_decay >= 0, "a finite number, 0 or more"),
        ]
        for name, fine, expected in checks:
            if not fine:
                raise ProblemError(
                    "the training recipe is impossible", where=f"recipe.{name}", expected=expected, got=repr(getattr(self, name))
                )

    def rate(self, step: int, num_steps: int) -> float:
        """Learning rate eta of ``step`` (from 0) out of ``num_steps``."""
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * step / num_steps))
        return self.learning_rate


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
    ``train_data()`` and ``test_data()`` return (inputs, targets, ids), as a :class:`Dataset` or a plain tuple.

    A problem of texts may also have ``texts(ids: Tensor) -> Sequence[str]``, the sentences of samples by id, which the report shows;
    training and test ids must then differ.
    """

    @property
    def loss(self) -> str | Loss: ...

    @property
    def recipe(self) -> Recipe: ...

    def model(self) -> nn.Module: ...

    def train_data(self) -> Dataset | tuple[Tensor, Tensor, Tensor]: ...

    def test_data(self) -> Dataset | tuple[Tensor, Tensor, Tensor]: ...
