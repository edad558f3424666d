"""The published content of an experiment, as data: names, numbers and files. It needs no tracking library."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any

import polars as pl

from genrep_dist.core.methods import Method
from genrep_dist.errors import NonFiniteError, StoreError
from genrep_dist.evaluation.metrics.base import metric_infos

RANDOM = "random"
MAX_PARAMETER = 500
"""Characters. MLflow would cut longer values silently; they are complete in ``config.yaml``."""
_PARAMETER_NAME = re.compile(r"[A-Za-z0-9_\-. :/]{1,250}")


@dataclass(frozen=True)
class DatasetRecord:
    """A data set that a run used. ``digest`` of its contents (36 characters at most), ``context`` "train" or "test", ``rows`` its size."""

    name: str
    digest: str
    context: str
    rows: int
    source: str


@dataclass(frozen=True)
class Publication:
    """One finished experiment.

    ``experiment`` its name, ``problem`` the name of its problem, ``plan_digest`` its digest, ``config_yaml`` the resolved experiment,
    ``parameters`` its fields as text. ``methods`` in the order of the runs. ``metrics`` and ``comparisons`` as in
    :data:`genrep_dist.evaluation.tables.STATISTICS`; ``seed_means``: metric, method, seed, value. ``curves``: name in the tracker ->
    method, share (0 to 1), mean. ``artifacts``: path inside the run ("report.html", "figures/a.png") to content; ``config.yaml`` is added.
    ``tags``: more tags of the experiment. ``diagnostics``: method to (name, value, seed) of its solvers' certificates. ``description``:
    what was found, in sentences (Markdown). ``numbers``: metrics of the experiment's own run. ``costs``: the columns method and metrics of
    its run. ``method_parameters``: what the runs of all methods have in common, as text. ``method_files``: method to artifacts of its run.
    ``datasets``: inputs of all runs.

    ``progress`` (metrics of the experiment's own run over time: name, value, step, Unix milliseconds), ``began`` and ``ended`` (Unix
    milliseconds) are not part of the digest, so a change in them alone publishes nothing.

    Raises StoreError for an artifact path outside the run's folder.
    """

    experiment: str
    problem: str
    plan_digest: str
    config_yaml: str
    parameters: Mapping[str, str]
    methods: Sequence[Method]
    metrics: pl.DataFrame
    comparisons: pl.DataFrame
    seed_means: pl.DataFrame
    curves: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    artifacts: Mapping[str, bytes] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    diagnostics: Mapping[str, Sequence[tuple[str, float, int]]] = field(default_factory=dict)
    description: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)
    costs: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema={"method": pl.String}))
    method_parameters: Mapping[str, str] = field(default_factory=dict)
    method_files: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)
    datasets: Sequence[DatasetRecord] = ()
    progress: Sequence[tuple[str, float, int, int]] = ()
    began: int | None = None
    ended: int | None = None

    def __post_init__(self) -> None:
        for name in itertools.chain(self.artifacts, *self.method_files.values()):
            path = PurePosixPath(name)
            if not path.parts or path.is_absolute() or ".." in path.parts:
                raise StoreError("an artifact's path leaves its run", where="artifacts", expected="a relative path", got=repr(name))


@dataclass(frozen=True)
class Measurement:
    """One number of a method. ``step`` is its place on the curve ``name``; 0 for a single number."""

    name: str
    value: float
    step: int = 0


@dataclass(frozen=True)
class MethodRun:
    """The content of one method's run; ``digest`` changes with any part of it."""

    method: str
    tags: Mapping[str, str]
    parameters: Mapping[str, str]
    measurements: tuple[Measurement, ...]
    files: Mapping[str, bytes]
    datasets: Sequence[DatasetRecord]

    @property
    def digest(self) -> str:
        numbers = [[m.name, m.value, m.step] for m in self.measurements]
        return json_digest([dict(self.tags), dict(self.parameters), numbers, file_digests(self.files), list(map(asdict, self.datasets))])


def method_runs(publication: Publication) -> list[MethodRun]:
    """One run a method, in the order of ``publication.methods``.

    Measurements of each metric: ``{metric}``, ``{metric}_ci95_low`` and ``{metric}_ci95_high`` (clustered), and
    ``{metric}_p_vs_random``, the Holm-corrected p-value of the difference from random removal. Of AUC-DEL also ``{metric}_ci95_pooled``
    (half-width) and ``{metric}_by_seed`` over seeds. Curves, such as ``del_{sign}``, over percent removed; then the diagnostics over
    seeds, the costs, ``num_seeds`` and ``num_points``. Nulls (the intervals of one seed) are left out. Steps are whole numbers: if the
    fractions are not whole percents, a curve is ``{name}_ppm`` over parts per million.

    No name has a ``/``: MLflow's charts would begin with the section of that prefix, and the metrics themselves come last.

    Raises NonFiniteError for NaN or Inf, so that none is ever logged.
    """
    runs = []
    for method in publication.methods:
        tags = {
            "genrep.method": method.name,
            "genrep.kernel": method.kernel,
            "genrep.checkpoint": method.checkpoint,
            "genrep.importance": method.importance,
            "genrep.problem": publication.problem,
        }
        own = {"method": method.name, "kernel": method.kernel, "checkpoint": method.checkpoint, "importance": method.importance}
        parameters = acceptable(own | dict(publication.method_parameters))
        measurements = tuple(_measurements(publication, method.name))
        for measurement in measurements:
            _check_finite(method.name, measurement)
        files = publication.method_files.get(method.name, {})
        runs.append(MethodRun(method.name, tags, parameters, measurements, files, publication.datasets))
    return runs


def acceptable(parameters: Mapping[str, str]) -> dict[str, str]:
    """The parameters that MLflow accepts, sorted by name: short, and with a valid name. The others are in config.yaml."""
    return {
        name: value
        for name, value in sorted(parameters.items())
        if len(value) <= MAX_PARAMETER and _PARAMETER_NAME.fullmatch(name) and posixpath.normpath(name) == name
    }


def run_files(publication: Publication) -> dict[str, bytes]:
    """All files of the experiment's run, sorted by name."""
    return dict(sorted({**publication.artifacts, "config.yaml": publication.config_yaml.encode()}.items()))


def file_digests(files: Mapping[str, bytes]) -> dict[str, str]:
    """sha256 of each file."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def json_digest(value: Any) -> str:
    """sha256 of a JSON value; floats by their exact decimal form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _measurements(publication: Publication, method: str) -> Iterator[Measurement]:
    mine, infos = pl.col("method") == method, metric_infos()
    rows = {row["metric"]: row for row in publication.metrics.filter(mine).iter_rows(named=True)}
    for metric, info in infos.items():
        row = rows.get(metric)
        if row is None:
            continue
        columns = {metric: "mean", f"{metric}_ci95_low": "ci95_clustered_low", f"{metric}_ci95_high": "ci95_clustered_high"}
        if info.is_main:
            columns[f"{metric}_ci95_pooled"] = "ci95_pooled"
        # The mean comes first: MLflow's plots start with the first metric.
        yield from (Measurement(name, row[column]) for name, column in columns.items() if row[column] is not None)
        if info.is_main:
            seeds = publication.seed_means.filter(mine & (pl.col("metric") == metric)).sort("seed")
            yield from (Measurement(f"{metric}_by_seed", value, seed) for seed, value in seeds.select("seed", "value").iter_rows())
    for name, frame in publication.curves.items():
        yield from _curve(name, frame.filter(mine).sort("share"))
    tested = publication.comparisons.filter(mine & (pl.col("baseline") == RANDOM) & pl.col("p_holm").is_not_null())
    for metric, p in tested.sort("metric").select("metric", "p_holm").iter_rows():
        yield Measurement(f"{metric}_p_vs_random", p)
    for name, value, seed in publication.diagnostics.get(method, ()):
        yield Measurement(name, value, seed)
    for row in publication.costs.filter(mine).drop("method").iter_rows(named=True):
        yield from (Measurement(name, float(value)) for name, value in row.items())
    # The design of the first metric: all metrics about test points share it.
    design = next(rows[metric] for metric in infos if metric in rows)
    yield Measurement("num_seeds", float(design["num_seeds"]))
    yield Measurement("num_points", float(design["num_points"]))


def _curve(name: str, rows: pl.DataFrame) -> Iterator[Measurement]:
    shares = rows["share"].to_list()
    if all(abs(100 * share - round(100 * share)) < 1e-9 for share in shares):
        scale = 100
    else:
        name, scale = f"{name}_ppm", 1_000_000
    for share, mean in zip(shares, rows["mean"], strict=True):
        yield Measurement(name, mean, round(scale * share))


def _check_finite(method: str, measurement: Measurement) -> None:
    if not math.isfinite(measurement.value):
        raise NonFiniteError(
            "a number to be published is not finite",
            where=f"method {method}, {measurement.name}, step {measurement.step}",
            expected="a finite number",
            got=str(measurement.value),
        )
