"""Scores from other tools: read and checked against the experiment's models. And those models as files, for other tools to score."""

from __future__ import annotations

from genrep_dist.config.score_layouts import SCORE_LAYOUTS, ScoreLayout
from genrep_dist.external.exported import Exported, open_exported
from genrep_dist.external.load import ExternalScores, load_external
from genrep_dist.external.truth import Truth, open_truth

__all__ = [
    "SCORE_LAYOUTS",
    "Exported",
    "ExternalScores",
    "ScoreLayout",
    "Truth",
    "load_external",
    "open_exported",
    "open_truth",
]
