"""Attributions for test points that a run did not ask for: from its models and solved importances, without training anything."""

from __future__ import annotations

import torch
from torch import Tensor

from genrep_dist.core.methods import Method
from genrep_dist.errors import MethodError
from genrep_dist.plan import Plan
from genrep_dist.problems.protocol import Dataset
from genrep_dist.training.loop import predict
from genrep_dist.training.threads import one_thread
from genrep_dist.units import InfluenceUnit, KernelUnit
from genrep_dist.workflow.attributions import attribution
from genrep_dist.workflow.context import Job, Workbench
from genrep_dist.workflow.influence import influence_columns
from genrep_dist.workflow.kernels import kernel_block


class OtherPoints(Workbench):
    """A workbench whose test points are these, for every seed. ``points.ids`` name them; their targets are not looked at."""

    def __init__(self, job: Job, points: Dataset) -> None:
        super().__init__(job)
        self.test = Dataset(points.inputs.to(self.device), points.targets, points.ids)

    def test_positions(self, seed: int) -> list[int]:
        del seed
        return list(range(len(self.test.ids)))

    def target_outputs(self, seed: int) -> Tensor:
        """The declared output; else the class that the original model predicts."""
        declared = self.experiment.target.output
        if isinstance(declared, int):
            return torch.full((len(self.test.ids),), declared, dtype=torch.int64, device=self.device)
        return predict(self.model(seed, self.keys.epochs), self.test.inputs).argmax(dim=1)


def explain(plan: Plan, bench: OtherPoints, method: Method, seed: int) -> Tensor:
    """Phi (N, M) float64 of the bench's points, by the formula and blocks of the run itself.

    Kernels with the new points are computed in blocks of rows, from stored gradients where there are any; of what the run has
    solved for (surrogate, descent, the gram of an influence kernel) the stored one serves. NotCommittedError where it lacks, MethodError
    for a kernel of which the run knows nothing.
    """
    needed = "ntk" if method.kernel == "influence" else method.kernel
    if needed not in (*plan.block_rows, "none"):
        raise MethodError(
            "this run has nothing of that kernel",
            where=f"method of kernel {method.kernel}",
            expected=", ".join(plan.block_rows),
            got=needed,
        )

    def plain(kernel: str, epoch: int) -> Tensor:
        stored = (kernel, epoch) in plan.features_stored() and bench.store.artifact(
            "features", bench.keys.features(seed, kernel, epoch)
        ).is_committed()
        rows, total = plan.block_rows[kernel], plan.shape.num_train
        spans = [(start, min(start + rows, total)) for start in range(0, total, rows)]
        return torch.cat([kernel_block(KernelUnit(seed, kernel, epoch, *span, stored), bench).float().cpu() for span in spans])

    def kernel(name: str, epoch: int) -> Tensor:
        if name != "influence":
            return plain(name, epoch)
        block, _ = influence_columns(InfluenceUnit(seed, epoch, plan.dense_rows), bench, lambda base: plain(base, epoch))
        # As it is stored: float32.
        return block.float().cpu()

    with one_thread():
        return attribution(method, seed, bench, kernel)
