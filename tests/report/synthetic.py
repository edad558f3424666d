"""A judged experiment of ten methods with every metric, as the pipeline would hand it to the report."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import polars as pl
import torch

from genrep_dist.evaluation.metrics.base import metric_info, metric_infos
from genrep_dist.evaluation.tables import EvaluationTables, table_specs
from genrep_dist.report.examples import Example, Sample, SelectedSamples
from genrep_dist.report.page import ReportData
from genrep_dist.report.pixels import PixelRange, png
from tests.evaluation.examples import SHOWN, Labels, synthetic_deletion

LABELS = (
    *(labels for labels, _ in SHOWN[:-1]),
    Labels("influence-function", "influence", "final", "target"),
    Labels("their-scores", "external", "final", "external"),
    SHOWN[-1][0],
)
STRENGTHS = dict(zip((labels.name for labels in LABELS), (2.3, 2.05, 1.7, 2.2, 1.2, 1.9, 2.4, 1.1, 1.4, 0.03), strict=True))
NAMES = tuple(STRENGTHS)
BLOCKS = {"Neural tangent kernel": NAMES[:5], "Last layer, and TracIn": NAMES[5:7], "Others": NAMES[7:]}
BEST = {"auc_del_positive": -2.4, "lds": 0.42, "loo_correlation": 0.21, "brittleness_flipped": 0.7, "brittleness_removed": 0.03}
WORST = {"auc_del_positive": 0.0, "brittleness_removed": 0.1, "mislabel_auroc": 0.5, "mislabel_inspection_area": 0.5}


def judged(
    num_seeds: int = 12, metrics: Sequence[str] = tuple(metric_infos()), *, two_way: bool = True, names: Sequence[str] = NAMES
) -> EvaluationTables:
    """Invented numbers of the right form; they do not agree with any points, which the report never compares."""
    draw = np.random.default_rng(3)
    tables: dict[str, list[dict[str, object]]] = {name: [] for name in table_specs()}
    for metric in metrics:
        low, high = WORST.get(metric, 0.0), BEST.get(metric, 2.4 if metric.startswith("auc") else 0.9)
        chosen = [name for name in names if not (metric.startswith("mislabel") and name == "their-scores")]
        mean = {name: low + (high - low) * STRENGTHS.get(name, 1.0) / 2.4 for name in chosen}
        about_points = not metric.startswith("mislabel")
        design = {"num_seeds": num_seeds, "num_points": 5 if about_points else 1}
        width = abs(high - low) * 0.12
        known = num_seeds > 1
        for name in chosen:
            per_seed = mean[name] + width * draw.normal(size=num_seeds)
            tables["points"] += [
                {"metric": metric, "method": name, "seed": seed, "test_id": point if about_points else None, "value": float(value)}
                for seed, value in enumerate(per_seed)
                for point in range(design["num_points"])
            ]
            crossed = two_way and known and about_points
            tables["metrics"].append(
                {
                    "metric": metric,
                    "method": name,
                    "mean": mean[name],
                    "ci95_pooled": width / 3 if known else None,
                    "ci95_clustered_low": mean[name] - width / 2 if known else None,
                    "ci95_clustered_high": mean[name] + width / 2 if known else None,
                    "ci95_two_way_low": mean[name] - width if crossed else None,
                    "ci95_two_way_high": mean[name] + width if crossed else None,
                    **design,
                }
            )
        for name, other in itertools.permutations(chosen, 2):
            better = metric_info(metric).direction
            z = better * (mean[name] - mean[other]) / width
            tables["ranks"].append(
                {"metric": metric, "method": name, "other": other, "share": float(1 / (1 + np.exp(-2 * z))) if known else None}
            )
            if other in ("random", "influence-function"):
                p = float(min(1.0, np.exp(-3 * abs(z)))) if known else None
                gap = mean[name] - mean[other]
                tables["comparisons"].append(
                    {
                        "metric": metric,
                        "method": name,
                        "baseline": other,
                        "mean": gap,
                        "ci95_low": gap - width / 2 if known else None,
                        "ci95_high": gap + width / 2 if known else None,
                        "p_value": p,
                        "p_holm": p,
                        **design,
                    }
                )
        ordered = sorted(chosen, key=lambda name: (-mean[name] if metric_info(metric).better == "larger" else mean[name], name))
        tables["best"] += [
            {"metric": metric, "method": name, "mean_rank": ordered.index(name) + 1.2, "share_best": 0.5 ** ordered.index(name) * 0.51}
            for name in ordered
        ]
    if "lds" in metrics:
        tables["ceilings"] += [
            {"metric": "lds", "seed": 0, "test_id": point, "reliability": 0.4 if point else None, "ceiling": 0.75 if point else None}
            for point in range(4)
        ]
    if "loo_correlation" in metrics:
        tables["ceilings"] += [{"metric": "loo_correlation", "seed": 0, "test_id": 1, "reliability": None, "ceiling": None}]
    if "mislabel_auroc" in metrics:
        share = np.linspace(0, 1, 41)
        for name in names:
            if name != "their-scores":
                power = 1 + 2 * STRENGTHS.get(name, 1.0)
                found = 1 - (1 - share) ** power
                tables["inspection"] += [
                    {"method": name, "inspected": float(x), "found": float(y)} for x, y in zip(share, found, strict=True)
                ]
    for name in names:
        tables["costs"].append({"method": name, "retrainings": 660, "retraining_seconds": 1234.5, "explanation_seconds": 3.21})
        tables["replicates"] += [
            {
                "seed": 0,
                "method": name,
                "test_id": 1,
                "sign": "negative",
                "fraction": 0.1,
                "replicate": replicate,
                "num_removed": 25,
                "score_retrained": 1.0 + replicate,
                "delta": float(replicate),
            }
            for replicate in range(2)
        ]
    return EvaluationTables(**{name: pl.DataFrame(rows, schema=dict(table_specs()[name].columns)) for name, rows in tables.items()})


def pictures(count: int, channels: int = 1) -> list[bytes]:
    images = torch.rand(count, channels, 8, 8, generator=torch.Generator().manual_seed(4))
    return [png(image, PixelRange.from_images(images)) for image in images]


def shown(*, sentences: Sequence[str] = ()) -> tuple[Example, ...]:
    """Two examples, of pictures or of sentences."""

    def sample(number: int, phi: float | None) -> Sample:
        text = sentences[number % len(sentences)] if sentences else None
        return Sample(number, "1", phi, number % 4 == 3, None if sentences else drawn[number % len(drawn)], text)

    drawn = [] if sentences else pictures(6)
    return tuple(
        Example(
            0,
            sample(1000 + point, None),
            "class 1, logit 2.31",
            tuple(
                SelectedSamples(
                    name,
                    tuple(sample(n + point, 0.5 / (n + 1)) for n in range(5)),
                    tuple(sample(n + 7, -0.4 / (n + 1)) for n in range(3 * (1 - point))),
                )
                for name in (NAMES[6], "random")
            ),
        )
        for point in range(2)
    )


def report(num_seeds: int = 12, metrics: Sequence[str] = tuple(metric_infos()), *, sentences: Sequence[str] = ()) -> ReportData:
    signs = tuple(sign for sign in ("negative", "positive") if f"auc_del_{sign}" in metrics)
    deletion = synthetic_deletion(num_seeds=num_seeds, num_points=5, strengths=tuple(STRENGTHS.items()), signs=signs)
    facts = {"Problem": "digits", "Data": "250 training samples", "Stopping": "After 12 of at most 200 seeds the widest interval was 0.04."}
    return ReportData(
        "demo: which attributions survive retraining",
        NAMES,
        EvaluationTables(**{**judged(num_seeds, metrics), "deletion": deletion}),
        facts,
        ("Momentum breaks the tracking identity.",),
        "seeds: 12\n",
        shown(sentences=sentences),
        BLOCKS,
        baseline="influence-function",
    )
