"""What a problem is: data, a model, a loss and a training recipe. Torch and the standard library only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from genrep_dist.core.losses import Loss
from genrep_dist.errors import ProblemError

Schedule = Literal["constant", "cosine"]
Precision = Literal["full", "tf32", "bfloat16"]


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: mini-batch SGD on the mean loss of each batch.

    ``learning_rate`` is the rate of the first step; ``schedule`` "constant" keeps it, "cosine" lets it fall to zero over the run.
    The tracking and TracIn identities hold for plain SGD, so ``momentum`` and ``weight_decay`` default to zero.

    ``precision`` is that of training: "full" is the parameters' own dtype; "tf32" lets a GPU round the factors of float32 products to 11
    bits (refused on a CPU); "bfloat16" is torch's autocast, 8 bits for products, for what comes of them and on the way back. Parameters
    stay in their own dtype, and what is explained and judged is computed in it.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    schedule: Schedule = "constant"
    momentum: float = 0.0
    weight_decay: float = 0.0
    precision: Precision = "full"

    def __post_init__(self) -> None:
        checks: list[tuple[str, bool, str]] = [
            ("epochs", self.epochs >= 1, "at least 1"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("learning_rate", math.isfinite(self.learning_rate) and self.learning_rate > 0, "a finite number above 0"),
            ("schedule", self.schedule in ("constant", "cosine"), "'constant' or 'cosine'"),
            ("momentum", 0 <= self.momentum < 1, "at least 0 and below 1"),
            ("precision", self.precision in ("full", "tf32", "bfloat16"), "'full', 'tf32' or 'bfloat16'"),
            ("weight_decay", math.isfinite(self.weight_decay) and self.weight_decay >= 0, "a finite number, 0 or more"),
        ]
        for name, fine, expected in checks:
            if not fine:
                raise ProblemError(
                    "the training recipe is impossible", where=f"recipe.{name}", expected=expected, got=repr(getattr(self, name))
                )

    @property
    def is_plain_sgd(self) -> bool:
        """Whether the tracking identity (Eq. 8) holds for a linear model trained so."""
        return self.momentum == 0 and self.weight_decay == 0

    def rate(self, step: int, num_steps: int) -> float:
        """Learning rate eta of ``step`` (from 0) out of ``num_steps``."""
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * step / num_steps))
        return self.learning_rate


class Dataset(NamedTuple):
    """Samples: ``inputs`` (N, ...), ``targets`` (N,) or (N, C), and stable integer ``ids`` (N,)."""

    inputs: Tensor
    targets: Tensor
    ids: Tensor


@runtime_checkable
class Problem(Protocol):
    """The protocol of a user's problem. No base class is needed.

    ``loss`` is a loss, or the name of one of :mod:`genrep_dist.core.losses`. ``recipe`` describes the training.
    ``model()`` builds a new module with new random parameters: inputs (B, ...) -> logits (B,) or (B, C).
    Several small models are trained together if their layers allow it. A module with ``trains_alone = True`` is trained alone, for
    example because its forward pass has side effects.
    ``train_data()`` and ``test_data()`` return (inputs, targets, ids) as a :class:`Dataset` or a tuple.

    A problem of texts may also have ``texts(ids: Tensor) -> Sequence[str]``, the texts of samples by id, for the report. Its training
    and test ids must then differ.
    """

    @property
    def loss(self) -> str | Loss: ...

    @property
    def recipe(self) -> Recipe: ...

    def model(self) -> nn.Module: ...

    def train_data(self) -> Dataset | tuple[Tensor, Tensor, Tensor]: ...

    def test_data(self) -> Dataset | tuple[Tensor, Tensor, Tensor]: ...
