"""What a global importance is. Three kinds: from the model's outputs, tracked while it trains, and solved for on a kernel's gram.

Code outside an importance's own file asks for its kind, never for its name. torch is imported by the methods that compute.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from genrep_dist.extension import Extension

if TYPE_CHECKING:
    from torch import Tensor

    from genrep_dist.core.losses import Loss

Kind = Literal["outputs", "tracked", "solved"]


def needs_gram(system: str, gram_rows: int, row_width: int) -> bool:
    """Whether products with K (R, R), R = ``gram_rows``, are made of a gram, for a ``system`` as :class:`SolvedImportance` has it.

    ``row_width``: D, the numbers of a feature vector, 0 where there is none. "auto" takes the features if R x D numbers are at most the
    half of the gram that is stored: a function of sizes alone.
    """
    return system == "dual" or not row_width or (system == "auto" and 2 * row_width > gram_rows)


class Importance(Extension, ABC):
    """A global importance alpha (N, C): the part of an attribution that depends on the training sample alone (Eq. 2)."""

    name: ClassVar[str]
    kind: ClassVar[Kind]
    formula: ClassVar[str]
    source: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    settings: ClassVar[tuple[str, ...]] = ()
    """Fields of an experiment that the importance is built from, and which enter its content address."""
    follows_training: ClassVar[bool] = False
    """Whether its meaning rests on what plain SGD did: a recipe with another optimizer then breaks its identity."""

    @property
    def description(self) -> str:
        """The settings that matter to a reader of the report; "" if there are none."""
        return ""


class OutputImportance(Importance):
    """A function of the model's outputs on the training set."""

    kind = "outputs"

    @abstractmethod
    def compute(self, loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
        """Alpha (N, C) of ``outputs`` (N, C) of the model that is explained, and the ``targets`` that it was trained on."""


class TrackedImportance(Importance):
    """Gathered while the model trains; ``array`` is its name in the artifact of the trained model, (N, C) float64."""

    kind = "tracked"
    array: ClassVar[str]


class GramOperator(Protocol):
    """A stored gram K over the training set, larger than memory if need be."""

    size: int

    def matvec(self, alpha: Tensor) -> Tensor:
        """K alpha (N, C) for ``alpha`` (N, C) float64."""

    def sample(self, rows: Tensor, num_outputs: int) -> Tensor:
        """Columns K[:, rows] (N C, r) float64."""

    def columns(self, rows: Tensor, update: Tensor) -> Tensor:
        """K[:, rows] ``update`` (N, C) for ``rows`` (B,) and ``update`` (B, C)."""


class SolveInputs(Protocol):
    """What an importance is solved from besides the gram."""

    loss: Loss
    outputs: Tensor
    """(N, C) float64, of the model that is explained."""
    recipe: Any
    """The training recipe in force."""

    def epoch_orders(self, epochs: int) -> list[Tensor]:
        """For each epoch the order (N,) in which training visited the rows."""


class SolvedImportance(Importance):
    """Solved for on a kernel's gram. The certificate has ``efficiency_gap``, max |f - K alpha|, and ``residual`` where there is one."""

    kind = "solved"
    needs = ("gram",)
    advice: ClassVar[str]
    """How to bring K alpha closer to the model's outputs."""
    curvature_copies: ClassVar[int] = 0
    """Copies of the loss's second derivatives (N, C, C) float64 that a solve holds."""
    system: str = "dual"
    """What products with K are made of: "dual", the gram; "primal", the kernel's features; "auto", what has fewer numbers."""

    @abstractmethod
    def solve(self, gram: GramOperator, inputs: SolveInputs) -> tuple[Tensor, dict[str, Any]]:
        """Alpha (N, C) float64 and its certificate. Raises ConvergenceError instead of returning a bad one."""

    @abstractmethod
    def gram_products(self, epochs: int) -> int:
        """About how many products with the gram a solve takes, for a recipe of so many epochs."""

    def extra_bytes(self, gram_rows: int) -> int:
        """Memory of a solve beside a few vectors and the gram's tiles."""
        del gram_rows
        return 0
