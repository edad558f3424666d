"""Classes that other packages and programs have registered: what distinguishes each, for keys and for comparison on workers."""

from __future__ import annotations

from collections.abc import Iterator

from genrep_dist.config import Experiment
from genrep_dist.config.metrics import measured_metrics
from genrep_dist.config.stages import STAGES
from genrep_dist.core.importances import IMPORTANCES
from genrep_dist.core.kernels import KERNELS
from genrep_dist.core.targets import TARGETS
from genrep_dist.plan import derived_kernel, kernel_names
from genrep_dist.problems.digests import Identity, class_identity
from genrep_dist.problems.protocol import Recipe
from genrep_dist.training.optimizers import OPTIMIZERS


def extension_identities(experiment: Experiment, recipe: Recipe, *, on_worker: bool = False) -> dict[str, Identity]:
    """Identities of registered classes that are not this package's, by kind and name: "kernel laplace".

    All stages are among them, as all of them run, and the metrics that the experiment measures. On a worker, metrics are left out, which
    the driver computes, and classes of the driver's script: they come with the job and have no source file there.
    """
    left_out = ("genrep_dist", "__main__") if on_worker else ("genrep_dist",)
    classes = [*_classes(experiment, recipe), *((f"stage {name}", type(STAGES.get(name))) for name in STAGES)]
    driver_only = [] if on_worker else [(f"metric {metric.name}", type(metric)) for metric in measured_metrics(experiment)]
    found = {label: class_identity(kind) for label, kind in classes if kind.__module__.partition(".")[0] not in left_out}
    outside = [(label, kind) for label, kind in driver_only if kind.__module__.partition(".")[0] not in left_out]
    return found | {label: class_identity(kind, needs_file=False) for label, kind in outside}


def _classes(experiment: Experiment, recipe: Recipe) -> Iterator[tuple[str, type]]:
    for name in kernel_names(experiment):
        if name not in experiment.kernels:
            yield f"kernel {name}", KERNELS.get(name)
            derived = derived_kernel(experiment, name)
            if derived is not None and derived.base is not None:
                yield f"kernel {derived.base}", KERNELS.get(derived.base)
    for method in experiment.parsed_methods:
        if method.has_kernel:
            yield f"importance {method.importance}", IMPORTANCES.get(method.importance)
    yield f"target {experiment.target.kind}", TARGETS.get(experiment.target.kind)
    yield f"optimizer {recipe.optimizer}", OPTIMIZERS.get(recipe.optimizer)
