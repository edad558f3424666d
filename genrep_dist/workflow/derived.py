"""Stage influence: all derived kernels, computed from another kernel's gram or from the Hessian as the influence kernel is (Eq. 15)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from genrep_dist.config.metrics import needs_self_influence
from genrep_dist.core.kernels.base import DerivedKernel, Work
from genrep_dist.core.solvers.primal_sizes import block_rows
from genrep_dist.errors import PlanError
from genrep_dist.extension import returned
from genrep_dist.plan import FLOAT_BYTES, Plan, StagePlan, derived_kernel
from genrep_dist.seeds import derive_seed
from genrep_dist.units import Unit
from genrep_dist.workflow.base import ArtifactSpec, Rates, SampleAxis, Stage
from genrep_dist.workflow.blocks import MODELS_HELD
from genrep_dist.workflow.kernel_sizes import chunk_rows

if TYPE_CHECKING:
    from torch import Tensor, nn

    from genrep_dist.workflow.context import TestPoints, WorkerContext

BLOCK_COPIES, CHUNK_COPIES, WHOLE_COPIES = 3, 2, 3
"""Copies of a block of K and of a chunk of it, and of K where it is computed as a whole."""
SMALL_BYTES = 64 * 2**20
"""What takes less is never refused: the libraries' own memory varies by as much."""


@dataclass(frozen=True)
class DerivedUnit(Unit):
    """A derived kernel K(train, test) of one seed.

    ``block``: training rows whose whole Jacobians may be held; ``product_rows``: pairs in a pass of a product with the Hessian.
    """

    kernel: str
    epoch: int
    block: int
    product_rows: int
    stage: ClassVar[str] = "influence"

    @property
    def label(self) -> str:
        return f"{self.kernel} kernel seed={self.seed} epoch={self.epoch}"


class DerivedStage(Stage[DerivedUnit]):
    name = "influence"

    def artifacts(self, plan: Plan) -> Iterator[ArtifactSpec]:
        for seed in plan.experiment.seeds:
            for kernel, epoch in plan.needs.derived:
                unit = DerivedUnit(seed, kernel, epoch, plan.dense_rows, plan.product_rows)
                yield ArtifactSpec("kernel", plan.keys.kernel(seed, kernel, epoch), seed, (unit,))

    def run(self, unit: DerivedUnit, context: WorkerContext) -> dict[str, float]:
        """Compute K (N, C, M) with all test points of the seed and write it with its certificate. ConvergenceError otherwise."""
        import torch

        from genrep_dist.workflow.kernel_writer import KernelWriter
        from genrep_dist.workflow.returned import checked_certificate

        kernel, points = _kernel(context, unit.kernel), context.test_points(unit.seed)
        inputs = Inputs(context, unit.seed, unit.epoch, unit.block, points, product_rows=unit.product_rows)
        # The stage diagonals makes the diagonal of a kernel that needs no gram: columns of all training samples would be one.
        own = _own_outputs(context) if kernel.has_diagonal and _sized(kernel, inputs).reads_gram else None
        artifact = context.store.artifact("kernel", context.keys.kernel(unit.seed, unit.kernel, unit.epoch))
        writer = KernelWriter(artifact, (len(inputs.targets), inputs.num_outputs, len(points)), kernel, inputs.text)
        if own is None and _sized(kernel, inputs).is_blockwise:
            certificate = checked_certificate(kernel.write_rows(inputs, writer.add), "residual", kernel, "write_rows", inputs.text)
        else:
            block, certificate = derived_columns(kernel, inputs, own)
            if own is not None:
                # Before the kernel is committed: a kernel that is there then has its diagonal.
                samples = torch.arange(len(own))
                write_diagonal(context, unit.seed, unit.kernel, unit.epoch, block[samples, :, len(points) + samples])
            writer.add(0, block[:, :, : len(points)])
        writer.finish()
        about = {"seed": unit.seed, "kernel": unit.kernel, "epoch": unit.epoch, "settings": kernel.summary()}
        artifact.commit({**about, "certificate": certificate, "seconds": context.elapsed()})
        return {"residual": float(certificate["residual"])}

    def sample_axes(self, kind: str) -> dict[str, SampleAxis]:
        del kind
        return {"kernel": ("train", 0)}

    def plan(self, plan: Plan) -> StagePlan | None:
        derived, seeds = plan.needs.derived, len(plan.experiment.seeds)
        if not derived:
            return None
        written = len(derived) * FLOAT_BYTES * plan.shape.num_train * plan.shape.num_outputs * plan.experiment.num_test_points
        what = "; ".join(f"{name} kernel, {_planned(plan, name).summary()}" for name in sorted({name for name, _ in derived}))
        peak = max(peak_bytes(plan, name) for name, _ in derived)
        return StagePlan(self.name, what, seeds * len(derived), seeds * written, peak)

    def check_budget(self, plan: Plan) -> None:
        for name in sorted({name for name, _ in plan.needs.derived}):
            needed, kernel, shape = peak_bytes(plan, name), _planned(plan, name), plan.shape
            if needed > max(plan.budget_bytes, SMALL_BYTES):
                alternatives = kernel.alternatives()
                raise PlanError(
                    "the memory budget is too small for a kernel that is computed as a whole",
                    where=f"resources.memory_budget, kernel {name} ({kernel.summary()})",
                    expected=f"at least {needed:,} bytes, for {shape.num_train:,} training samples and {shape.num_outputs:,} outputs",
                    got=f"{plan.budget_bytes:,} bytes",
                    remedy="raise resources.memory_budget" + (f", {alternatives}" if alternatives else ""),
                )

    def seconds(self, plan: Plan, rates: Rates) -> float:
        return len(plan.experiment.seeds) * sum(derived_work_seconds(plan, name, rates) for name, _ in plan.needs.derived)


class Inputs:
    """:class:`~genrep_dist.core.kernels.base.DerivedInputs` from a worker's context.

    ``cross_block(kernel)`` replaces the stored K(train, test), for points that the run did not explain, and ``whole_gram(kernel)`` the
    stored gram, for networks that it does not explain. ``product_rows``: by default as many as ``block_rows``.
    """

    def __init__(
        self,
        context: WorkerContext,
        seed: int,
        epoch: int,
        block_rows: int,
        points: TestPoints,
        cross_block: Callable[[str], Tensor] | None = None,
        product_rows: int | None = None,
        whole_gram: Callable[[str], Tensor] | None = None,
    ) -> None:
        self._context, self._seed, self._epoch, self._points, self._cross_block = context, seed, epoch, points, cross_block
        self._whole_gram = whole_gram
        self.loss, self.block_rows, self.product_rows = context.loss, block_rows, product_rows or block_rows
        self.train_inputs, self.targets = context.train.inputs, context.train.targets
        self.num_points, self.num_outputs, self.text = len(points), context.num_outputs(seed), f"seed {seed}, epoch {epoch}"

    def model(self) -> nn.Module:
        return self._context.model(self._seed, self._epoch)

    def gram(self, kernel: str) -> Tensor:
        import torch

        from genrep_dist.workflow.gram import Gram

        # The whole matrix at once: a factorisation needs it. The plan counts its bytes.
        if self._whole_gram is not None:
            gram = self._whole_gram(kernel).double()
        else:
            artifact = self._context.store.artifact("gram", self._context.keys.gram(self._seed, kernel, self._epoch))
            gram = torch.from_numpy(Gram(artifact, 1).dense()).double()
        repeats = len(self.targets) * self.num_outputs // len(gram)
        return gram if repeats == 1 else torch.kron(gram, torch.eye(repeats, dtype=gram.dtype))

    def cross(self, kernel: str) -> Tensor:
        import torch

        if self._cross_block is not None:
            return self._cross_block(kernel)
        artifact = self._context.store.artifact("kernel", self._context.keys.kernel(self._seed, kernel, self._epoch))
        return torch.from_numpy(artifact.read("kernel"))

    def outputs(self) -> Tensor:
        return self._context.train_outputs(self._seed, self._epoch).double()

    def num_parameters(self, kernel: str) -> int:
        from genrep_dist.workflow.features import feature_kernel

        return feature_kernel(self._context, kernel).num_parameters(self._context.fresh_model().eval(), self.train_inputs[:2].cpu())

    def width(self, kernel: str) -> int:
        from genrep_dist.workflow.features import feature_kernel

        sizes = feature_kernel(self._context, kernel).sizes(self._context.fresh_model().eval(), self.train_inputs[:2].cpu())
        return sizes.width(self.num_outputs)

    def train_features(self, kernel: str, start: int, stop: int) -> Tensor:
        from genrep_dist.workflow.features import dense_features

        return dense_features(self._context, kernel, self._seed, self._epoch, start, stop)

    def test_features(self, kernel: str) -> Tensor:
        from genrep_dist.workflow.features import dense_point_features

        return dense_point_features(self._context, kernel, self._seed, self._epoch, self._points, self.num_outputs)

    def train_gradients(self, start: int, stop: int) -> Tensor:
        from genrep_dist.workflow.features import train_jacobians

        return train_jacobians(self._context, self._seed, self._epoch, start, stop)

    def test_gradients(self) -> Tensor:
        from genrep_dist.workflow.features import point_gradients

        return point_gradients(self._context, self._seed, self._epoch, self._points)

    def seed(self, purpose: str) -> int:
        return derive_seed(self._seed, purpose)


def derived_columns(kernel: DerivedKernel, inputs: Inputs, own: Tensor | None = None) -> tuple[Tensor, dict[str, Any]]:
    """What the kernel returns for ``inputs``, checked: K (N, C, M), with ``own`` (N, C, M + N), and its certificate."""
    from genrep_dist.workflow.returned import checked_certificate, checked_pair, checked_tensor

    value, found = checked_pair(kernel.columns(inputs, own), kernel, "columns", inputs.text)
    num_points = inputs.num_points + (0 if own is None else len(own))
    block = checked_tensor(value, (len(inputs.targets), inputs.num_outputs, num_points), kernel, "columns", inputs.text)
    return block, checked_certificate(found, "residual", kernel, "columns", inputs.text)


def derived_work_seconds(plan: Plan, name: str, rates: Rates) -> float:
    """Seconds of one worker for a derived kernel of one seed."""
    shape, kernel = plan.shape, _planned(plan, name)
    found = kernel.work(shape.num_train, shape.num_outputs, plan.experiment.num_test_points)
    work = returned(Work, kernel, "work", found)
    return work.multiply_adds / rates.multiply_adds_per_second + work.gradient_rows / rates.gradient_rows_per_second


def peak_bytes(plan: Plan, name: str) -> int:
    """Memory of computing a derived kernel and writing it, by rows where that is how it is computed."""
    shape, points = plan.shape, plan.experiment.num_test_points
    dense = shape.parameter_bytes * shape.num_outputs * (3 * plan.dense_rows + points)
    diagonal = any(kernel == name for kernel, _ in plan.needs.diagonals)
    kernel = _planned(plan, name)
    found = kernel.peak_bytes(shape.num_train, shape.num_outputs, shape.num_parameters, points, dense, diagonal=diagonal)
    needed = returned(int, kernel, "peak_bytes", found)
    if kernel.base is None:
        needed += plan.curvature_row_bytes * plan.product_rows
    elif not kernel.reads_gram:
        # A pass for the base's features.
        passing = plan.gradient_row_bytes * min(plan.gradient_rows, shape.num_train)
        needed += passing if shape.kernels[kernel.base].factored else plan.prediction_bytes
    row_bytes = shape.num_outputs * points
    # A block of rows in float64 while it is multiplied, and a chunk as it is written.
    rows = max(plan.dense_rows, block_rows(shape.num_train, shape.num_outputs, shape.width(kernel.base))) if kernel.is_blockwise else 0
    needed += row_bytes * (8 * BLOCK_COPIES * rows + CHUNK_COPIES * FLOAT_BYTES * chunk_rows(shape.num_train, shape.num_outputs, points))
    return needed + MODELS_HELD * shape.checkpoint_bytes


def whole_kernel_bytes(plan: Plan, name: str) -> int:
    """Memory of K(train, test) float64 where a kernel that can be written by rows is computed as a whole."""
    copies = WHOLE_COPIES if _planned(plan, name).is_blockwise else 0
    return 8 * copies * plan.shape.num_train * plan.shape.num_outputs * plan.experiment.num_test_points


def write_diagonal(context: WorkerContext, seed: int, kernel: str, epoch: int, diagonal: Tensor) -> None:
    """Write K_c(x_i, x_i) (N, C) of a kernel as float64."""
    from genrep_dist.workflow.context import to_numpy

    artifact = context.store.artifact("diagonal", context.keys.diagonal(seed, kernel, epoch))
    artifact.write("diagonal", to_numpy(diagonal.double()), ("train", "output"))
    artifact.commit({"seed": seed, "kernel": kernel, "epoch": epoch, "seconds": context.elapsed()})


def _own_outputs(context: WorkerContext) -> Tensor | None:
    """The output (N,) of each sample's own label where the experiment asks for self-influence; else None."""
    from genrep_dist.core.self_influence import own_outputs
    from genrep_dist.workflow.context import label_loss

    if not needs_self_influence(context.experiment):
        return None
    return own_outputs(context.train.targets.cpu(), label_loss(context.loss))[0]


def _kernel(context: WorkerContext, name: str) -> DerivedKernel:
    kernel = context.kernel(name)
    assert isinstance(kernel, DerivedKernel)
    return kernel


def _planned(plan: Plan, name: str) -> DerivedKernel:
    kernel = derived_kernel(plan.keys, name, plan.shape)
    assert kernel is not None
    return kernel


def _sized(kernel: DerivedKernel, inputs: Inputs) -> DerivedKernel:
    return kernel.at_sizes(len(inputs.targets), inputs.num_outputs, 0 if kernel.base is None else inputs.width(kernel.base))
