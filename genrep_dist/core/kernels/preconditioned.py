"""Kernels K = J S g: a positive definite matrix S, made from the training samples, is applied to the gradients of test points.

Neither a gram nor a matrix of P x P is formed. J (N, C, P) are the training samples' Jacobians, g (M, P) the gradients of what is
explained.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from genrep_dist.core.kernels.base import DerivedInputs, DerivedKernel, KernelSizes, RowWriter, Work

if TYPE_CHECKING:
    from torch import Tensor

VECTOR_COPIES, BLOCK_COPIES = 7, 2
"""Copies float64 of the test points' gradients (M, P); times that a block of Jacobians, with its float64 copy, is held."""
DIAGONAL_PARTS = 4
"""Parts of a block of Jacobians whose diagonal is computed one after the other, as it takes several copies."""


class Preconditioner(Protocol):
    """S (P, P), positive definite."""

    def solve(self, vectors: Tensor) -> Tensor:
        """S ``vectors`` (M, P), float64 on the device of the model."""

    def certificate(self, vectors: Tensor, solution: Tensor) -> dict[str, Any]:
        """The quality of ``solution`` (M, P) of ``vectors`` (M, P): its "residual", and what else there is to say."""


class PreconditionedKernel(DerivedKernel):
    """K = J S g with S of :meth:`preconditioner`. Whole gradients are used, also where the features of the NTK are projected.

    Memory: J in blocks, S, and some copies of g and K. Subclasses define :meth:`preconditioner`, and the sizes and the passes of it.
    """

    settings: ClassVar[tuple[str, ...]] = ("influence",)
    needs: ClassVar[tuple[str, ...]] = ("gradients",)

    def __init__(self, influence: Any) -> None:
        self.options = influence
        self._base_sizes = KernelSizes()

    @classmethod
    def supports(cls, checkpoint: str, *, needs_gram: bool) -> bool:
        """The final parameters alone, as for the influence kernel."""
        return checkpoint == "final" and not needs_gram

    @property
    def base(self) -> str | None:
        return "ntk"

    @property
    def reads_gram(self) -> bool:
        return False

    def at_base(self, sizes: KernelSizes) -> PreconditionedKernel:
        sized = copy(self)
        sized._base_sizes = sizes
        return sized

    @abstractmethod
    def preconditioner(self, inputs: DerivedInputs) -> Preconditioner:
        """S from the training samples."""

    @abstractmethod
    def preconditioner_bytes(self, num_outputs: int, num_parameters: int, num_test: int) -> int:
        """Memory of S and of making it."""

    passes: ClassVar[int]
    """Passes over the training samples' gradients in which S is made and applied."""

    @property
    def is_blockwise(self) -> bool:
        return True

    def write_rows(self, inputs: DerivedInputs, write: RowWriter) -> dict[str, Any]:
        from genrep_dist.core.solvers.hessian import influence_block

        found, vectors = self.preconditioner(inputs), inputs.test_gradients().double()
        solution = found.solve(vectors)
        certificate = found.certificate(vectors, solution)
        del vectors
        for jacobians, at in _jacobians(inputs):
            write(at.start, influence_block(jacobians, solution.T).cpu())
        return certificate

    def columns(self, inputs: DerivedInputs, own_outputs: Tensor | None = None) -> tuple[Tensor, dict[str, Any]]:
        import torch

        from genrep_dist.core.solvers.hessian import influence_block

        found, vectors = self.preconditioner(inputs), inputs.test_gradients().double()
        if own_outputs is not None:
            own = [jacobians[torch.arange(len(jacobians)), own_outputs[at]] for jacobians, at in _jacobians(inputs)]
            vectors = torch.cat([vectors, *(rows.to(vectors) for rows in own)])
        solution = found.solve(vectors)
        certificate = found.certificate(vectors, solution)
        del vectors
        block = torch.cat([influence_block(jacobians, solution.T).cpu() for jacobians, _ in _jacobians(inputs)])
        return block, certificate

    def diagonal(self, inputs: DerivedInputs, own_outputs: Tensor) -> Tensor:
        import torch

        found, parts = self.preconditioner(inputs), []
        for jacobians, at in _jacobians(inputs):
            step = -(-len(jacobians) // DIAGONAL_PARTS)
            for rows, outputs in zip(torch.split(jacobians, step), torch.split(own_outputs[at], step), strict=True):
                own = rows[torch.arange(len(rows)), outputs.to(rows.device)].double()
                parts.append(torch.einsum("bcp,bp->bc", rows.double(), found.solve(own)).cpu())
        return torch.cat(parts)

    def peak_bytes(self, num_train: int, num_outputs: int, num_parameters: int, num_test: int, dense_bytes: int, *, diagonal: bool) -> int:
        """Jacobians in float64, the test points' gradients, and the matrix S. A diagonal is made by itself, a block at a time."""
        del diagonal
        del num_train
        columns = 8 * num_test * VECTOR_COPIES * num_parameters
        return BLOCK_COPIES * dense_bytes + columns + self.preconditioner_bytes(num_outputs, num_parameters, num_test)

    def alternatives(self) -> str:
        return "explain fewer test points at once, or use influence-function with a projection"

    def work(self, num_train: int, num_outputs: int, num_test: int) -> Work:
        """Passes over the training gradients, and products of rows with the test points' columns."""
        width = self._base_sizes.dimension
        return Work(num_train * num_outputs * width * num_test, (self.passes + 1) * num_train)

    def summary(self) -> str:
        return f"damping {self.options.damping_text}"


def _jacobians(inputs: DerivedInputs) -> Iterator[tuple[Tensor, slice]]:
    """Jacobians (rows, C, P) of all training samples by blocks, with the samples of each."""
    count = len(inputs.targets)
    for start in range(0, count, inputs.block_rows):
        at = slice(start, min(start + inputs.block_rows, count))
        yield inputs.train_gradients(at.start, at.stop), at
