"""Stage preconditioner: the optimizer's metric at checkpoints, for the kernels that are taken in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from genrep_dist.config.keys import Keys
from genrep_dist.core.kernels.base import FeatureKernel
from genrep_dist.errors import NonFiniteError
from genrep_dist.plan import Plan, StagePlan
from genrep_dist.units import Unit
from genrep_dist.workflow.base import ArtifactSpec, Rates, Stage
from genrep_dist.workflow.train import model_bytes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from genrep_dist.workflow.context import WorkerContext

NUMBER_BYTES = 8


@dataclass(frozen=True)
class PreconditionerUnit(Unit):
    """Train one seed's original model again and keep the optimizer's preconditioner after ``epochs``."""

    epochs: tuple[int, ...]
    stage: ClassVar[str] = "preconditioner"


class PreconditionerStage(Stage[PreconditionerUnit]):
    """Its artifacts exist only where a kernel needs them. The original is trained once more for them, so that no other artifact changes."""

    name = "preconditioner"

    def artifacts(self, plan: Plan) -> Iterator[ArtifactSpec]:
        epochs = needed_epochs(plan.keys)
        if epochs:
            for seed in plan.experiment.seeds:
                key = plan.keys.preconditioner(seed, epochs)
                yield ArtifactSpec("preconditioner", key, seed, (PreconditionerUnit(seed, epochs),))

    def run(self, unit: PreconditionerUnit, context: WorkerContext) -> dict[str, float]:
        """Write D (checkpoints, P) float64. NonFiniteError for an element that is zero or not finite."""
        import torch

        from genrep_dist.training.loop import TrainingRun
        from genrep_dist.training.randomness import Randomness
        from genrep_dist.training.trainer import Trainer
        from genrep_dist.workflow.context import to_numpy

        observer = _Preconditioners(unit.epochs)
        trainer = context.trainer
        assert isinstance(trainer, Trainer)
        trainer.train(TrainingRun(Randomness(unit.seed)), observers=(observer,))
        found = torch.stack(observer.found)
        good = torch.isfinite(found) & (found > 0)
        if not bool(good.all()):
            raise NonFiniteError(
                "the optimizer's preconditioner cannot be divided by",
                where=f"seed {unit.seed}, recipe.optimizer: {context.recipe.optimizer}",
                expected="finite numbers above 0",
                got=f"{int((~good).sum())} other numbers of {found.numel()}",
                remedy="set recipe.eps above 0, or look at parameters without gradients",
            )
        artifact = context.store.artifact("preconditioner", context.keys.preconditioner(unit.seed, unit.epochs))
        artifact.write("preconditioner", to_numpy(found), ("checkpoint", "parameter"))
        artifact.commit({"seed": unit.seed, "epochs": list(unit.epochs), "seconds": context.elapsed()})
        return {"models": 1.0}

    def plan(self, plan: Plan) -> StagePlan | None:
        epochs, seeds = needed_epochs(plan.keys), len(plan.experiment.seeds)
        if not epochs:
            return None
        values = NUMBER_BYTES * len(epochs) * plan.shape.num_parameters
        what = f"{seeds} models trained again for the optimizer's metric at epoch {', '.join(map(str, epochs))}"
        return StagePlan(self.name, what, seeds, seeds * values, model_bytes(plan) + 3 * values)

    def seconds(self, plan: Plan, rates: Rates) -> float:
        return len(plan.experiment.seeds) * rates.train_seconds if needed_epochs(plan.keys) else 0.0


def needed_epochs(keys: Keys) -> tuple[int, ...]:
    """The epochs at which a kernel of the experiment is taken in the optimizer's metric, ascending."""
    methods = [method for method in keys.experiment.parsed_methods if method.has_kernel and method.kernel not in keys.own_kernels]
    kernels = {name: keys.experiment.kernel(name) for name in {method.kernel for method in methods}}
    needing = {name for name, kernel in kernels.items() if isinstance(kernel, FeatureKernel) and kernel.needs_preconditioner}
    return tuple(sorted({epoch for method in methods if method.kernel in needing for epoch in keys.method_epochs(method)}))


def read_preconditioner(context: WorkerContext, seed: int, epoch: int) -> Tensor:
    """D (P,) float64 of the original model of ``seed`` after ``epoch`` epochs, in the order of its parameters, on the worker's device."""
    import torch

    epochs = needed_epochs(context.keys)
    artifact = context.store.artifact("preconditioner", context.keys.preconditioner(seed, epochs))
    row = epochs.index(epoch)
    return torch.from_numpy(artifact.read("preconditioner", (slice(row, row + 1), slice(None)))[0]).to(context.device)


class _Preconditioners:
    """Keeps the preconditioner after each of ``epochs``."""

    def __init__(self, epochs: tuple[int, ...]) -> None:
        self._epochs = epochs
        self.found: list[Tensor] = []

    def start(self, model: nn.Module, num_rows: int, num_steps: int) -> None:
        pass

    def step(self, rows: Tensor, output_gradient: Tensor, rate: float) -> None:
        pass

    def epoch_end(self, epoch: int, model: nn.Module, next_step: int) -> None:
        pass

    def optimizer_state(self, epoch: int, preconditioner: Callable[[], list[Tensor]]) -> None:
        import torch

        from genrep_dist.core.gradients.model import as_real

        if epoch in self._epochs:
            self.found.append(torch.cat([as_real(part).reshape(-1).double() for part in preconditioner()]).cpu())
