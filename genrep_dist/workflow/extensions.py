"""Kernels, importances, targets and optimizers of other packages and programs: their digests, and their names on workers."""

from __future__ import annotations

from collections.abc import Iterator

from genrep_dist.config import Experiment
from genrep_dist.core.importances import IMPORTANCES
from genrep_dist.core.kernels import KERNELS
from genrep_dist.core.targets import TARGETS
from genrep_dist.plan import derived_kernel, kernel_names
from genrep_dist.problems.digests import class_digest
from genrep_dist.problems.protocol import Recipe
from genrep_dist.training.optimizers import OPTIMIZERS


def extension_digests(experiment: Experiment, recipe: Recipe, *, on_worker: bool = False) -> dict[str, str]:
    """Digests of the source files of registered classes that are not this package's, by kind and name: "kernel laplace".

    On a worker, classes of the driver's script are left out: they come with the job and have no source file there.
    """
    left_out = ("genrep_dist", "__main__") if on_worker else ("genrep_dist",)
    return {label: class_digest(kind) for label, kind in _classes(experiment, recipe) if kind.__module__.partition(".")[0] not in left_out}


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
