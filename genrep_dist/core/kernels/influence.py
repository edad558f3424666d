"""The influence kernel (Eq. 15): the NTK in the metric of the inverse damped curvature of the training loss."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from genrep_dist.core.kernels.base import DerivedInputs, DerivedKernel, RowWriter, Work
from genrep_dist.core.solvers.primal_sizes import block_rows, system_bytes
from genrep_dist.errors import MethodError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from genrep_dist.core.losses import Loss
    from genrep_dist.core.solvers.primal_system import PrimalSystem

BASES = {"ggn": "ntk", "last-layer": "last-layer"}
"""Curvature -> the feature kernel from whose gram or features its system is built. The true Hessian has no such system."""
MATRICES = 3
"""Matrices of the gram's size: the gram, the system and its factor; one more where outputs are multiplied block by block."""
COLUMN_COPIES, SOLVED_COPIES, COLUMNS_AT_ONCE = 5, 12, 512
"""Copies of K(train, points) float64: as given, with further points, solved, and as it is written; copies of those columns that are solved
for at once, and how many these are.
"""
CURVATURE_COPIES = 6
"""Copies of the loss's second derivatives (N, C, C) float64, with their square roots."""
HESSIAN_COPIES, TRACE_PROBES = 12, 8
"""Copies of the columns (P, M) float64 that conjugate gradients and a product with the Hessian hold; columns of a product for the trace."""
HESSIAN_PRODUCTS = 50
"""Hessian-vector products of a solve, for estimates; or its largest number of steps if that is smaller."""
PRIMAL_COPIES, PRIMAL_PASSES = 8, 2
"""Copies of the columns (D, M) float64 of a primal system, and its passes over the training features."""


class InfluenceKernel(DerivedKernel):
    """K = J (H + delta I)^-1 g with H the exact Gauss-Newton matrix, the last layer's alone, or the true Hessian."""

    name = "influence"
    formula = "df/dtheta(x_i)^T (H + delta I)^-1 df/dtheta(x)"
    source = "influence function kernel, Koh and Liang 2017; Tsai et al. 2023, Eq. 15"
    needs = ("gradients", "curvature")
    settings = ("influence", "projection", "last_layer")

    def __init__(self, influence: Any, projection: Any = None, last_layer: str | None = None) -> None:
        del projection, last_layer  # of the base kernel; here they enter the content address only
        self.options = influence
        self._sizes = (0, 0, 0)

    @classmethod
    def supports(cls, checkpoint: str, *, needs_gram: bool) -> bool:
        """Only the final parameters: H is the curvature at the minimum, and elsewhere it need not be positive semi-definite.

        Solved importances would need a train-by-train gram of the influence kernel itself.
        """
        return checkpoint == "final" and not needs_gram

    def key_settings(self) -> tuple[str, ...]:
        return ("influence", *{"ggn": ("projection",), "last-layer": ("last_layer",)}.get(self.options.curvature, ()))

    @property
    def base(self) -> str | None:
        return BASES.get(self.options.curvature)

    def at_sizes(self, num_train: int, num_outputs: int, width: int) -> InfluenceKernel:
        sized = copy(self)
        sized._sizes = (num_train, num_outputs, width)
        return sized

    @property
    def reads_gram(self) -> bool:
        """Whether the system is the dual one. "auto" takes the one with less memory, and the dual one where sizes are unknown."""
        if self.base is None or self.options.system != "auto":
            return self.base is not None and self.options.system == "dual"
        return not self._sizes[2] or self._system_bytes(dual=True) <= self._system_bytes(dual=False)

    def _system_bytes(self, *, dual: bool) -> int:
        """Memory of a system's matrices: a function of sizes alone, as the choice between two systems is."""
        num_train, num_outputs, width = self._sizes
        matrices = MATRICES if num_outputs == 1 else MATRICES + 1
        return 8 * matrices * (num_train * num_outputs) ** 2 if dual else system_bytes(num_train, num_outputs, width)

    def summary(self) -> str:
        text = f"curvature {self.options.curvature}, damping {self.options.damping_text}"
        num_train, num_outputs, width = self._sizes
        if self.base is None or not width:
            return text
        dual, primal = ("dual", num_train * num_outputs), ("primal", width)
        (chosen, size), (other, its_size) = (dual, primal) if self.reads_gram else (primal, dual)
        reason = f", which takes less memory than the {other} one of {its_size:,}" if self.options.system == "auto" else ""
        return f"{text}, {chosen} system of {size:,} rows{reason}"

    def check_curvature(self, flat_share: float) -> None:
        """The Gauss-Newton matrix of a loss that is linear on all samples is zero, which leaves the damping alone."""
        if self.base is not None and not self.options.allow_zero_curvature:
            hessian = "set influence.curvature: hessian, which has the curvature of the model too"
            refuse_flat_loss(flat_share, f"influence.curvature: {self.options.curvature}", self.base, hessian)

    def model_notes(self, model: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor) -> list[str]:
        if self.base is not None:
            return []
        import torch

        from genrep_dist.core.gradients.inspection import inspect_model, slow_layers
        from genrep_dist.core.gradients.model import num_parameters
        from genrep_dist.core.solvers.hessian import hessian_product

        slow = slow_layers(inspect_model(model, inputs))
        product = hessian_product(model, loss, inputs, targets, batch_size=len(inputs))
        product(torch.ones(num_parameters(model), 1))
        return slow + ([f"products with the Hessian: twice backward, because {product.slow_reason}"] if product.slow_reason else [])

    def columns(self, inputs: DerivedInputs, own_outputs: Tensor | None = None) -> tuple[Tensor, dict[str, Any]]:
        import torch

        from genrep_dist.core.losses import flat_share
        from genrep_dist.core.solvers.gauss_newton import influence_kernel

        if self.base is None:
            parts: list[Tensor] = []
            found = self._write_true_hessian(inputs, lambda _, rows: parts.append(rows))
            return torch.cat(parts), found
        curvature = self._curvature(inputs)
        flat = flat_share(curvature)
        self.check_curvature(flat)
        if not self._sized(inputs).reads_gram:
            system, right = self._primal_system(inputs, curvature), inputs.test_features(self.base)
            right = right if own_outputs is None else torch.cat([right, system.own_features(own_outputs)])
            block, proof = system.kernel(right.T)
            return block, {**asdict(proof), "flat_share": flat, "system": "primal"}
        gram, columns = inputs.gram(self.base), inputs.cross(self.base)
        if own_outputs is not None:
            # The training samples as further test points: one factorisation serves both.
            n, num_outputs = columns.shape[:2]
            mirrored = gram[:, torch.arange(n) * num_outputs + own_outputs].reshape(n, num_outputs, n)
            columns = torch.cat([columns.double(), mirrored], dim=2)
        block, certificate = influence_kernel(gram, columns, curvature, **self._damping(inputs))
        return block, {**asdict(certificate), "flat_share": flat, "system": "dual"}

    @property
    def is_blockwise(self) -> bool:
        """All but the dual system, which solves for the columns of K."""
        return not self.reads_gram

    def write_rows(self, inputs: DerivedInputs, write: RowWriter) -> dict[str, Any]:
        from genrep_dist.core.losses import flat_share

        if self.base is None:
            return self._write_true_hessian(inputs, write)
        if self._sized(inputs).reads_gram:
            return super().write_rows(inputs, write)
        curvature = self._curvature(inputs)
        flat = flat_share(curvature)
        self.check_curvature(flat)
        proof = self._primal_system(inputs, curvature).write_kernel(inputs.test_features(self.base).T, write)
        return {**asdict(proof), "flat_share": flat, "system": "primal"}

    def diagonal(self, inputs: DerivedInputs, own_outputs: Tensor) -> Tensor:
        from genrep_dist.core.self_influence import influence_diagonal

        assert self.base is not None
        if not self._sized(inputs).reads_gram:
            return self._primal_system(inputs, self._curvature(inputs)).diagonal(own_outputs)
        gram, cross = inputs.gram(self.base), inputs.cross(self.base)  # together, as in columns()
        return influence_diagonal(gram, self._curvature(inputs), own_outputs, cross=cross, **self._damping(inputs))

    def peak_bytes(self, num_train: int, num_outputs: int, num_parameters: int, num_test: int, dense_bytes: int, *, diagonal: bool) -> int:
        """The system's float64 matrices; for the true Hessian the columns of conjugate gradients and products."""
        rows, points = num_train * num_outputs, num_test + (num_train if diagonal else 0)
        if self.base is not None and not self.reads_gram:
            width = self._sizes[2]
            columns = 8 * num_test * PRIMAL_COPIES * width
            return system_bytes(num_train, num_outputs, width) + columns + 8 * CURVATURE_COPIES * rows * num_outputs
        if self.base is None:
            columns = HESSIAN_COPIES * num_parameters * max(num_test, TRACE_PROBES)
            return 8 * (columns + CURVATURE_COPIES * rows * num_outputs) + 2 * dense_bytes
        matrices = MATRICES if num_outputs == 1 else MATRICES + 1
        columns = COLUMN_COPIES * points + SOLVED_COPIES * min(points, COLUMNS_AT_ONCE)
        return 8 * rows * (matrices * rows + columns + CURVATURE_COPIES * num_outputs)

    def alternatives(self) -> str:
        if self.base is None:
            return "explain fewer test points at once, or choose influence.curvature: ggn for a small training set"
        is_dual, instead = self.reads_gram, ""
        if self._sizes[2] and self._system_bytes(dual=not is_dual) < self._system_bytes(dual=is_dual):
            instead = ", choose influence.system: " + ("primal" if is_dual else "dual")
        return f"use fewer training samples or a projection{instead}, or choose influence.curvature: hessian, which has no such matrix"

    def work(self, num_train: int, num_outputs: int, num_test: int) -> Work:
        """One Cholesky factorisation, of a matrix that is summed or given; or some Hessian-vector products for each test point."""
        rows, width = num_train * num_outputs, self._sizes[2]
        if self.base is not None and self.reads_gram:
            return Work(multiply_adds=2 * rows**3 / 3)
        if self.base is not None:
            return Work(rows * width**2 + 2 * width**3 / 3 + 4 * rows * width * num_test, PRIMAL_PASSES * num_train)
        products = min(HESSIAN_PRODUCTS, self.options.max_iterations)
        return Work(gradient_rows=products * num_test * 3 * num_train)

    def _curvature(self, inputs: DerivedInputs) -> Tensor:
        """The loss's second derivative (N, C, C) at the training outputs."""
        return inputs.loss.second_derivative(inputs.outputs(), inputs.targets.cpu())

    def _sized(self, inputs: DerivedInputs) -> InfluenceKernel:
        assert self.base is not None
        num_train, num_outputs = inputs.outputs().shape
        return self.at_sizes(num_train, num_outputs, inputs.width(self.base))

    def _primal_system(self, inputs: DerivedInputs, curvature: Tensor) -> PrimalSystem:
        from genrep_dist.core.solvers.primal_system import PrimalSystem

        assert self.base is not None
        base, width, (num_train, num_outputs) = self.base, inputs.width(self.base), curvature.shape[:2]
        step = block_rows(num_train, num_outputs, width)

        def blocks() -> Iterator[Tensor]:
            return (inputs.train_features(base, at, min(at + step, num_train)) for at in range(0, num_train, step))

        return PrimalSystem(blocks, curvature, width, **self._damping(inputs))

    def _own_products(self, inputs: DerivedInputs, alpha: Tensor) -> Tensor:
        """g_i^T (H + delta I)^-1 g_i (N,) float64 of g_i = sum_c ``alpha[i, c]`` J_i[c], for ``alpha`` (N, C) float64."""
        import torch

        from genrep_dist.core.solvers.gauss_newton import influence_kernel

        assert self.base is not None
        if not self._sized(inputs).reads_gram:
            return self._primal_system(inputs, self._curvature(inputs)).self_products(alpha)
        gram, (num_train, num_outputs) = inputs.gram(self.base), alpha.shape
        mixed = gram.reshape(-1, num_train, num_outputs)
        columns = torch.einsum("rnc,nc->rn", mixed, alpha).reshape(num_train, num_outputs, num_train)
        found, _ = influence_kernel(gram, columns, self._curvature(inputs), **self._damping(inputs))
        samples = torch.arange(num_train)
        return (found[samples, :, samples] * alpha).sum(dim=1)

    def _damping(self, inputs: DerivedInputs) -> dict[str, Any]:
        assert self.base is not None
        relative = self.options.damping_unit == "mean-eigenvalue"
        return {"damping": self.options.damping, "relative": relative, "num_parameters": inputs.num_parameters(self.base)}

    def _write_true_hessian(self, inputs: DerivedInputs, write: RowWriter) -> dict[str, Any]:
        """By products with the Hessian of the mean training loss: one linear system for each test point."""
        from genrep_dist.core.solvers.conjugate_gradients import conjugate_gradients
        from genrep_dist.core.solvers.hessian import hessian_product, influence_block
        from genrep_dist.core.solvers.hessian_system import declare_damping
        from genrep_dist.core.solvers.lissa import lissa

        options = self.options
        product = hessian_product(inputs.model(), inputs.loss, inputs.train_inputs, inputs.targets, batch_size=inputs.product_rows)
        right = inputs.test_gradients().T.double()
        relative = options.damping_unit == "mean-eigenvalue"
        damping = declare_damping(product, len(right), damping=options.damping, relative=relative, seed=inputs.seed("trace"))
        common = {"damping": damping.delta, "tolerance": options.tolerance, "allow_unconverged": options.allow_unconverged}
        if options.solver == "cg":
            solution, certificate = conjugate_gradients(product, right, max_iterations=options.max_iterations, **common)
        else:
            seed = inputs.seed("power iteration")
            solution, certificate = lissa(product, right, scale=options.scale, depth=options.max_iterations, seed=seed, **common)
        for start in range(0, len(inputs.targets), inputs.block_rows):
            write(start, influence_block(inputs.train_gradients(start, start + inputs.block_rows), solution))
        slow = {"twice_backward": product.slow_reason} if product.slow_reason else {}
        return {**asdict(damping), **asdict(certificate), **slow}


def refuse_flat_loss(flat_share: float, where: str, base: str, remedy: str) -> None:
    """Raise MethodError if the loss is linear in the outputs on all samples: the Gauss-Newton matrix is then zero."""
    if flat_share < 1:
        return
    raise MethodError(
        f"the loss has no curvature in the model's outputs, so this influence kernel would be the {base} kernel divided by the damping",
        where=where,
        expected="a loss whose second derivative in the outputs is not zero on all training samples",
        got="a second derivative of zero on all of them: the Gauss-Newton matrix H is zero",
        remedy=f"{remedy}; or use the method {base}-final/target, whose ranking is the same; or accept this with "
        "influence.allow_zero_curvature: true",
    )
