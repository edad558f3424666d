"""Kernels, importances, targets and optimizers of other packages and programs: their digests, and their names on workers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from genrep_dist.config import Experiment
from genrep_dist.core.importances import IMPORTANCES
from genrep_dist.core.kernels.base import Kernel
from genrep_dist.core.kernels.user import UserKernel
from genrep_dist.core.targets import TARGETS
from genrep_dist.problems.digests import class_digest
from genrep_dist.problems.protocol import Recipe
from genrep_dist.training.optimizers import OPTIMIZERS


def extension_digests(experiment: Experiment, recipe: Recipe, kernels: Mapping[str, Kernel], *, on_worker: bool = False) -> dict[str, str]:
    """Digests of the source files of registered classes that are not this package's, by kind and name: "kernel laplace".

    ``kernels`` are all that the experiment uses. On a worker, classes of the driver's script are left out: they come with the job and
    have no source file there.
    """
    left_out = ("genrep_dist", "__main__") if on_worker else ("genrep_dist",)
    return {
        label: class_digest(kind)
        for label, kind in _classes(experiment, recipe, kernels)
        if kind.__module__.partition(".")[0] not in left_out
    }


def _classes(experiment: Experiment, recipe: Recipe, kernels: Mapping[str, Kernel]) -> Iterator[tuple[str, type]]:
    # Functions of pairs have digests of their own.
    yield from ((f"kernel {name}", type(kernel)) for name, kernel in kernels.items() if not isinstance(kernel, UserKernel))
    for method in experiment.parsed_methods:
        if method.has_kernel:
            yield f"importance {method.importance}", IMPORTANCES.get(method.importance)
    yield f"target {experiment.target.kind}", TARGETS.get(experiment.target.kind)
    yield f"optimizer {recipe.optimizer}", OPTIMIZERS.get(recipe.optimizer)
