"""The registry of optimizers.

It stands here, below the optimizers, so that an experiment can be validated without importing them. Use it as
:data:`genrep_dist.training.optimizers.OPTIMIZERS`.
"""

from __future__ import annotations

from typing import Any

from genrep_dist.registry import Registry

OPTIMIZERS: Registry[Any] = Registry("optimizer", "genrep_dist.optimizers", "genrep_dist.training.optimizers.base:Optimizer")
OPTIMIZERS.register("sgd", "genrep_dist.training.optimizers.sgd:SGD")
OPTIMIZERS.register("adam", "genrep_dist.training.optimizers.adam:Adam")
OPTIMIZERS.register("adamw", "genrep_dist.training.optimizers.adamw:AdamW")
OPTIMIZERS.register("rmsprop", "genrep_dist.training.optimizers.rmsprop:RMSprop")

DEFAULT_WEIGHT_DECAY = {"adamw": 1e-2}
"""torch's default of ``weight_decay`` by optimizer, where it is not zero."""
