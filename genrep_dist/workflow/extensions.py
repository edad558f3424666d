"""Classes that other packages and programs have registered: what distinguishes each, for keys and for comparison on workers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from genrep_dist.config import Experiment
from genrep_dist.config.metrics import measured_metrics
from genrep_dist.config.stages import STAGES
from genrep_dist.core.importances import IMPORTANCES
from genrep_dist.core.kernels.base import Kernel
from genrep_dist.core.kernels.user import UserKernel
from genrep_dist.core.schedules import SCHEDULES
from genrep_dist.core.targets import TARGETS
from genrep_dist.problems.digests import Identity, class_identity, object_identity
from genrep_dist.problems.protocol import Recipe
from genrep_dist.training.optimizers import OPTIMIZERS


def extension_identities(
    experiment: Experiment, recipe: Recipe, kernels: Mapping[str, Kernel], *, on_worker: bool = False
) -> dict[str, Identity]:
    """Identities of classes that are not this package's, by kind and name: "kernel laplace"; and that of the function "augment".

    ``kernels`` are all that the experiment uses. All stages are among the classes, as all of them run, and the metrics that the experiment
    measures. On a worker, metrics are left out, which the driver computes, and classes of the driver's script: they come with the job and
    have no source file there.
    """
    left_out = ("genrep_dist", "__main__") if on_worker else ("genrep_dist",)
    classes = [*_classes(experiment, recipe, kernels), *((f"stage {name}", type(STAGES.get(name))) for name in STAGES)]
    driver_only = [] if on_worker else [(f"metric {metric.name}", type(metric)) for metric in measured_metrics(experiment)]
    found = {label: class_identity(kind) for label, kind in classes if kind.__module__.partition(".")[0] not in left_out}
    outside = [(label, kind) for label, kind in driver_only if kind.__module__.partition(".")[0] not in left_out]
    own = {name: kernels[name] for name in experiment.kernels if not isinstance(kernels[name], UserKernel)}
    objects = {f"kernel {name}": object_identity(kernel, experiment.kernels[name].options) for name, kernel in own.items()}
    if callable(recipe.augment):
        objects["augment"] = object_identity(recipe.augment)
    return found | {label: class_identity(kind, needs_file=False) for label, kind in outside} | objects


def _classes(experiment: Experiment, recipe: Recipe, kernels: Mapping[str, Kernel]) -> Iterator[tuple[str, type]]:
    # Functions of pairs have digests of their own.
    yield from ((f"kernel {name}", type(kernel)) for name, kernel in kernels.items() if not isinstance(kernel, UserKernel))
    for method in experiment.parsed_methods:
        if method.has_kernel:
            yield f"importance {method.importance}", IMPORTANCES.get(method.importance)
        if method.scorer_class is not None:
            yield f"scorer {method.importance}", method.scorer_class
    yield f"target {experiment.target.kind}", TARGETS.get(experiment.target.kind)
    yield f"optimizer {recipe.optimizer}", OPTIMIZERS.get(recipe.optimizer)
    yield f"schedule {recipe.schedule}", SCHEDULES.get(recipe.schedule)
