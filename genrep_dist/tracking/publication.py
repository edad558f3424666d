"""What is published of an experiment, as data: names, numbers and files, without any tracking library."""

from __future__ import annotations

import hashlib
import json
import math
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import polars as pl

from genrep_dist.errors import NonFiniteError, StoreError
from genrep_dist.evaluation.results import empty

SIGNS = ("negative", "positive")
RANDOM = "random"
MAX_PARAMETER = 500
"""Characters; longer values would be cut silently, and are in ``config.yaml`` whole."""
_PARAMETER_NAME = re.compile(r"[A-Za-z0-9_\-. :/]{1,250}")


@dataclass(frozen=True)
class Publication:
    """One finished experiment.

    ``experiment`` its name, ``problem`` the name of its problem, ``plan_digest`` what identifies it, ``config_yaml`` the resolved
    experiment, ``parameters`` its fields flattened to text. ``summary``, ``curves`` and ``by_seed`` as
    :mod:`genrep_dist.evaluation.statistics` returns them; ``metrics`` and ``comparisons`` as in
    :data:`genrep_dist.evaluation.results.SCHEMAS`. ``artifacts``: path inside the run ("report.html", "figures/a.png") to
    content; ``config.yaml`` is added. ``tags``: more tags of the experiment. ``diagnostics``: method to (name, value, seed), what its
    solvers certified. ``description``: what was found, in sentences (Markdown). ``course``: how the run went, as metrics of the
    experiment's own run: (name, value, step, Unix milliseconds); where and when a run went on is no part of what is compared, so it
    alone makes no new publication.

    Raises StoreError for an artifact path that leaves the run's folder.
    """

    experiment: str
    problem: str
    plan_digest: str
    config_yaml: str
    parameters: Mapping[str, str]
    summary: pl.DataFrame
    curves: pl.DataFrame
    by_seed: pl.DataFrame
    metrics: pl.DataFrame = field(default_factory=lambda: empty("metrics"))
    comparisons: pl.DataFrame = field(default_factory=lambda: empty("comparisons"))
    artifacts: Mapping[str, bytes] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    diagnostics: Mapping[str, Sequence[tuple[str, float, int]]] = field(default_factory=dict)
    description: str = ""
    course: Sequence[tuple[str, float, int, int]] = ()

    def __post_init__(self) -> None:
        for name in self.artifacts:
            path = PurePosixPath(name)
            if not path.parts or path.is_absolute() or ".." in path.parts:
                raise StoreError("an artifact's name leaves its run", where="artifacts", expected="a relative path", got=repr(name))


@dataclass(frozen=True)
class Measurement:
    """One number of a method. ``step`` is what the curve named ``name`` is drawn over; 0 for a single number."""

    name: str
    value: float
    step: int = 0


@dataclass(frozen=True)
class MethodRun:
    """What one method's run holds; ``digest`` changes with any of it."""

    method: str
    tags: Mapping[str, str]
    measurements: tuple[Measurement, ...]

    @property
    def digest(self) -> str:
        return digest_of([dict(self.tags), [[m.name, m.value, m.step] for m in self.measurements]])


def method_runs(publication: Publication) -> list[MethodRun]:
    """One run a method, in the order of the summary.

    Measurements, for each sign that was measured: ``auc_del_{sign}``, ``..._ci95_low`` and ``..._ci95_high`` (clustered),
    ``..._ci95_pooled`` (half-width); the curve ``del_{sign}`` over percent removed; ``auc_del_{sign}_by_seed`` over seeds; and
    ``num_seeds``, ``num_points``; and the diagnostics over seeds. For each other metric ``{metric}``, ``..._ci95_low`` and
    ``..._ci95_high`` (clustered); for each metric ``{metric}_p_vs_random``, the Holm-corrected p-value of the difference from random
    removal, as in the report. What is null (the intervals of one seed) is left out. Steps are whole numbers: where the removed
    fractions are no whole percents, the curve is ``del_{sign}_ppm`` over parts per million.

    Raises NonFiniteError for a NaN or Inf, so that none is ever logged.
    """
    return [
        MethodRun(
            row["method"],
            {
                "genrep.method": row["method"],
                "genrep.kernel": row["kernel"],
                "genrep.checkpoint": row["checkpoint"],
                "genrep.importance": row["importance"],
                "genrep.problem": publication.problem,
            },
            tuple(_checked(row["method"], _measurements(publication, row))),
        )
        for row in publication.summary.iter_rows(named=True)
    ]


def short_parameters(publication: Publication) -> dict[str, str]:
    """The parameters that can be logged as such, sorted by name: short, and named as MLflow allows. The rest is in config.yaml."""
    return {
        name: value
        for name, value in sorted(publication.parameters.items())
        if len(value) <= MAX_PARAMETER and _PARAMETER_NAME.fullmatch(name) and posixpath.normpath(name) == name
    }


def files_of(publication: Publication) -> dict[str, bytes]:
    """All files of the experiment's run, sorted by name."""
    return dict(sorted({**publication.artifacts, "config.yaml": publication.config_yaml.encode()}.items()))


def digest_of(value: Any) -> str:
    """sha256 of a JSON value; floats by their exact decimal form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _measurements(publication: Publication, row: Mapping[str, Any]) -> Iterator[Measurement]:
    for sign in SIGNS:
        area = f"auc_del_{sign}"
        if area not in row:
            continue
        suffix = "" if sign == "negative" else "_positive"
        columns = {
            area: area,
            f"{area}_ci95_low": f"ci95_clustered_low{suffix}",
            f"{area}_ci95_high": f"ci95_clustered_high{suffix}",
            f"{area}_ci95_pooled": f"ci95_pooled{suffix}",
        }
        for name, column in columns.items():
            if row[column] is not None:
                yield Measurement(name, row[column])
        chosen = (pl.col("method") == row["method"]) & (pl.col("sign") == sign)
        yield from _curve(f"del_{sign}", publication.curves.filter(chosen).sort("fraction"))
        for seed, auc in publication.by_seed.filter(chosen).sort("seed").select("seed", "auc").iter_rows():
            yield Measurement(f"{area}_by_seed", auc, seed)
    yield from _other_metrics(publication, row)
    for name, value, seed in publication.diagnostics.get(row["method"], ()):
        yield Measurement(name, value, seed)
    yield Measurement("num_seeds", float(row["num_seeds"]))
    yield Measurement("num_points", float(row["num_points"]))


def _other_metrics(publication: Publication, row: Mapping[str, Any]) -> Iterator[Measurement]:
    """What the summary does not hold: the metrics beside the deletion areas, and every metric's p-value."""
    mine = pl.col("method") == row["method"]
    for record in publication.metrics.filter(mine).sort("metric").iter_rows(named=True):
        metric = record["metric"]
        columns = {metric: "mean", f"{metric}_ci95_low": "ci95_clustered_low", f"{metric}_ci95_high": "ci95_clustered_high"}
        for name, column in columns.items():
            if metric not in row and record[column] is not None:
                yield Measurement(name, record[column])
    tested = publication.comparisons.filter(mine & (pl.col("baseline") == RANDOM) & pl.col("p_holm").is_not_null())
    for metric, p in tested.sort("metric").select("metric", "p_holm").iter_rows():
        yield Measurement(f"{metric}_p_vs_random", p)


def _curve(name: str, rows: pl.DataFrame) -> Iterator[Measurement]:
    fractions = rows["fraction"].to_list()
    if all(abs(100 * fraction - round(100 * fraction)) < 1e-9 for fraction in fractions):
        scale = 100
    else:
        name, scale = f"{name}_ppm", 1_000_000
    for fraction, mean in zip(fractions, rows["mean"], strict=True):
        yield Measurement(name, mean, round(scale * fraction))


def _checked(method: str, measurements: Iterator[Measurement]) -> Iterator[Measurement]:
    for measurement in measurements:
        if not math.isfinite(measurement.value):
            raise NonFiniteError(
                "a number to be published is not finite",
                where=f"method {method}, {measurement.name}, step {measurement.step}",
                expected="a finite number",
                got=str(measurement.value),
            )
        yield measurement
