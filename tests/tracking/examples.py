"""A small finished experiment to publish."""

from __future__ import annotations

from typing import Any

from genrep_dist.evaluation.statistics import by_seed, curves, summarise
from genrep_dist.tracking.publication import Publication
from tests.evaluation.examples import Labels, synthetic_deletion

LABELS = (Labels("ntk-final/tracking"), Labels("random", "none", "none", "random"))


def publication(**changes: Any) -> Publication:
    design: dict[str, Any] = {"num_seeds": 3, "num_points": 2}
    design |= {name: changes.pop(name) for name in ("num_seeds", "signs", "fractions", "spread") if name in changes}
    deletion = synthetic_deletion(strengths=[(label.name, 2.0 - place) for place, label in enumerate(LABELS)], **design)
    return Publication(
        **{
            "experiment": "demo",
            "problem": "digits",
            "plan_digest": "0123456789abcdef",
            "config_yaml": "seeds: 3\n",
            "parameters": {"recipe.epochs": "20", "seeds": "3"},
            "summary": summarise(deletion, LABELS),
            "curves": curves(deletion),
            "by_seed": by_seed(deletion),
            "artifacts": {"report.html": b"<p>report</p>", "figures/curves.png": b"\x89PNG"},
            "tags": {"genrep.version": "0.1.0"},
            **changes,
        }
    )
