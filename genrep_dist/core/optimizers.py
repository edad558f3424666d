"""The registry of optimizers.

It stands here, below the optimizers, so that an experiment can be validated without importing them. Use it as
:data:`genrep_dist.training.optimizers.OPTIMIZERS`.
"""

from __future__ import annotations

from typing import Any

from genrep_dist.registry import Registry

OPTIMIZERS: Registry[Any] = Registry("optimizer", "genrep_dist.optimizers", "genrep_dist.training.optimizers.base:Optimizer")
OPTIMIZERS.register("sgd", "genrep_dist.training.optimizers.sgd:SGD")
