"""Conformance tests for extensions of genrep_dist, for use in another package's pytest suite.

Subclass one of the classes below in a test module; pytest then collects the inherited tests. Needs pytest, which the extra
``genrep-dist[testing]`` installs.
"""

from __future__ import annotations

import pytest

_MODULES = ("executors", "importances", "kernels", "metrics", "optimizers", "schedules", "scorers", "stages", "stores", "targets")
pytest.register_assert_rewrite(*(f"{__name__}.{module}" for module in _MODULES))

from genrep_dist.testing.executors import ExecutorTests  # noqa: E402 - after the registration above
from genrep_dist.testing.importances import OutputImportanceTests, SolvedImportanceTests  # noqa: E402
from genrep_dist.testing.kernels import DerivedKernelTests, FeatureKernelTests, PairwiseKernelTests  # noqa: E402
from genrep_dist.testing.metrics import MetricTests  # noqa: E402
from genrep_dist.testing.optimizers import OptimizerTests  # noqa: E402
from genrep_dist.testing.schedules import ScheduleTests  # noqa: E402
from genrep_dist.testing.scorers import ScorerTests  # noqa: E402
from genrep_dist.testing.stages import StageTests  # noqa: E402
from genrep_dist.testing.stores import StoreTests  # noqa: E402
from genrep_dist.testing.targets import TargetTests  # noqa: E402

__all__ = [
    "DerivedKernelTests",
    "ExecutorTests",
    "FeatureKernelTests",
    "MetricTests",
    "OptimizerTests",
    "OutputImportanceTests",
    "PairwiseKernelTests",
    "ScheduleTests",
    "ScorerTests",
    "SolvedImportanceTests",
    "StageTests",
    "StoreTests",
    "TargetTests",
]
