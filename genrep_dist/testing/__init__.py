"""Conformance tests for extensions of genrep_dist, for use in another package's pytest suite.

Subclass one of the classes below in a test module; pytest then collects the inherited tests. Needs pytest, which the extra
``genrep-dist[testing]`` installs.
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("genrep_dist.testing.executors", "genrep_dist.testing.kernels", "genrep_dist.testing.stores")

from genrep_dist.testing.executors import ExecutorTests  # noqa: E402 - after the registration above
from genrep_dist.testing.kernels import DerivedKernelTests, FeatureKernelTests, PairwiseKernelTests  # noqa: E402
from genrep_dist.testing.stores import StoreTests  # noqa: E402

__all__ = ["DerivedKernelTests", "ExecutorTests", "FeatureKernelTests", "PairwiseKernelTests", "StoreTests"]
