"""Scorers by name. A package adds one by an entry point of the group `genrep_dist.scorers`, or with ``SCORERS.register``."""

from __future__ import annotations

from genrep_dist.core.reserved import RESERVED_NAMES
from genrep_dist.core.scorers.base import Scorer
from genrep_dist.core.scorers.bm25 import BM25
from genrep_dist.core.scorers.gradcos import GradCos
from genrep_dist.core.scorers.gradient_norm import GradientNorm
from genrep_dist.core.scorers.knn_shapley import KNNShapley
from genrep_dist.core.scorers.own_loss import OwnLoss
from genrep_dist.registry import Registry

SCORERS: Registry[type[Scorer]] = Registry("scorer", "genrep_dist.scorers", Scorer, reserved=RESERVED_NAMES)
for _scorer in (GradCos, KNNShapley, BM25, OwnLoss, GradientNorm):
    SCORERS.register(_scorer.name, _scorer)
