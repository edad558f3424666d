"""Global importances by name. A package adds one by an entry point of the group `genrep_dist.importances`, or with ``register``."""

from __future__ import annotations

from genrep_dist.core.importances.base import Importance
from genrep_dist.core.importances.descent import KernelDescent
from genrep_dist.core.importances.same_label import SameLabel
from genrep_dist.core.importances.surrogate import SurrogateDerivative
from genrep_dist.core.importances.target import TargetDerivative
from genrep_dist.core.importances.tracking import TrackedDerivative
from genrep_dist.core.reserved import RESERVED_NAMES
from genrep_dist.extension import is_shipped_class
from genrep_dist.registry import Registry


def _not_tracked(found: type[Importance]) -> None:
    if found.kind == "tracked" and not is_shipped_class(found):
        raise TypeError("an importance that is gathered in training cannot be added from outside")


IMPORTANCES: Registry[type[Importance]] = Registry(
    "importance", "genrep_dist.importances", Importance, check=_not_tracked, reserved=RESERVED_NAMES
)
for _importance in (TargetDerivative, SurrogateDerivative, KernelDescent, TrackedDerivative, SameLabel):
    IMPORTANCES.register(_importance.name, _importance)
