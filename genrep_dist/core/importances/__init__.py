"""Global importances by name. A package adds one by an entry point of the group `genrep_dist.importances`, or with ``register``."""

from __future__ import annotations

from typing import Any

from genrep_dist.core.importances.base import Importance
from genrep_dist.core.importances.descent import KernelDescent
from genrep_dist.core.importances.surrogate import SurrogateDerivative
from genrep_dist.core.importances.target import TargetDerivative
from genrep_dist.core.importances.tracking import TrackedDerivative
from genrep_dist.core.reserved import RESERVED_NAMES
from genrep_dist.registry import Registry, subclass_of


def _importance_class(found: Any) -> type[Importance]:
    checked = subclass_of(Importance)(found)
    if checked.kind == "tracked" and not checked.__module__.startswith("genrep_dist."):
        raise TypeError("an importance that is gathered in training cannot be added from outside")
    return checked


IMPORTANCES: Registry[type[Importance]] = Registry("importance", "genrep_dist.importances", _importance_class, RESERVED_NAMES)
for _importance in (TargetDerivative, SurrogateDerivative, KernelDescent, TrackedDerivative):
    IMPORTANCES.register(_importance.name, _importance)
