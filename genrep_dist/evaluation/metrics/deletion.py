"""AUC-DEL: the area under the curve of case-deletion diagnostics, after removals of the most negative or most positive samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from genrep_dist.config.experiment import Experiment
from genrep_dist.config.metrics import RequestCount
from genrep_dist.core.policies import is_fresh
from genrep_dist.errors import NonFiniteError, NotCommittedError
from genrep_dist.evaluation.intervals import Array, clustered_intervals
from genrep_dist.evaluation.metrics.base import (
    POINTS_SCHEMA,
    CurvePlot,
    EvaluationData,
    Metric,
    MetricInfo,
    MetricTables,
    RetrainRequest,
    SeedData,
    TableSpec,
)
from genrep_dist.evaluation.removals import (
    REMOVAL_COLUMNS,
    SIGNS,
    check_removals,
    count_removals,
    deletion_table,
    largest_count,
    policy_text,
    removal_requests,
    removal_warnings,
    removals_text,
    replicates_table,
)

_REMOVAL: dict[str, type[pl.DataType]] = {
    "seed": pl.Int64,
    "method": pl.String,
    "test_id": pl.Int64,
    "sign": pl.String,
    "fraction": pl.Float64,
}
_EFFECTS = {"negative": "rise", "positive": "fall"}


class Deletion(Metric):
    """Mean of DEL over the declared removals (Tsai et al. 2023, section 6), one number for each declared sign."""

    name = "deletion"
    title = "Deletion"
    needs_all_scores = False
    numbers = (
        MetricInfo(
            "auc_del_negative",
            "AUC-DEL₋",
            "larger",
            "AUC-DEL₋: change of the prediction when a method's most negative training samples are removed and the model is "
            "retrained, averaged over the declared fractions (with 0 %, where nothing changes, if it is one of them); larger is better.",
            effect="raise",
            is_main=True,
        ),
        MetricInfo(
            "auc_del_positive",
            "AUC-DEL₊",
            "smaller",
            "AUC-DEL₊: change of the prediction when a method's most positive training samples are removed and the model is "
            "retrained, averaged over the declared fractions (with 0 %, where nothing changes, if it is one of them); smaller (more "
            "negative) is better.",
            effect="lower",
            is_main=True,
        ),
    )
    tables: Mapping[str, TableSpec] = {
        "deletion": TableSpec(
            {**_REMOVAL, "num_removed": pl.Int64, "score_original": pl.Float64, "score_retrained": pl.Float64, "delta": pl.Float64},
            version=1,
        ),
        # Every replicate of every removal, before the mean.
        "replicates": TableSpec(
            {**_REMOVAL, "replicate": pl.Int64, "num_removed": pl.Int64, "score_retrained": pl.Float64, "delta": pl.Float64}
        ),
    }

    section = None

    def measured(self, experiment: Experiment) -> tuple[str, ...]:
        return tuple(f"auc_del_{sign}" for sign in SIGNS if sign in experiment.deletion.signs)

    def disabled(self, experiment: Experiment) -> Experiment:
        """With nothing removed: every experiment has a deletion table."""
        return experiment.with_fixed_seeds(deletion={"counts": [0], "signs": list(experiment.deletion.signs)})

    def check_feasible(self, experiment: Experiment, num_train: int) -> None:
        check_removals(self.name, experiment.deletion, num_train)

    def count_requests(self, experiment: Experiment, num_train: int) -> RequestCount:
        return count_removals(experiment.deletion, experiment.num_explained, len(experiment.deletion.signs), num_train)

    def largest_removal(self, experiment: Experiment, num_train: int) -> int:
        return largest_count(experiment.deletion, num_train)

    def warnings(self, experiment: Experiment) -> list[str]:
        if not is_fresh(experiment.deletion.retrain):
            return []
        return [
            f"Retrained models draw fresh random numbers (retrain: {experiment.deletion.retrain}). Every difference contains the noise of "
            "two trainings, so the intervals are several times wider than with common random numbers (retrain: same)."
        ]

    def size_warnings(self, experiment: Experiment, num_train: int) -> list[str]:
        return removal_warnings(self.name, experiment.deletion, num_train)

    def method_requests(self, experiment: Experiment, data: SeedData, method: str) -> Iterator[RetrainRequest]:
        for point in range(len(data.points)):
            for sign in experiment.deletion.signs:
                yield from removal_requests(experiment.deletion, data, method, point, sign)

    def evaluate(self, data: EvaluationData) -> MetricTables:
        deletion = deletion_table(data.requests, data.ledger)
        tables = {"deletion": deletion}
        if data.experiment.deletion.replicates > 1:
            tables["replicates"] = replicates_table(data.requests, data.ledger)
        return MetricTables(auc_points(deletion), tables)

    def curves(self, tables: Mapping[str, pl.DataFrame]) -> Sequence[CurvePlot]:
        deletion = tables["deletion"]
        if not deletion.height:
            return ()
        means = deletion_curves(deletion)
        bands = "" if deletion["seed"].n_unique() < 2 else " Bands: 95% interval of each point, bootstrap over networks."
        found = []
        for sign, number in zip(SIGNS, self.numbers, strict=True):
            frame = means.filter(pl.col("sign") == sign).select("method", "mean", "low", "high", share="fraction")
            if frame.height:
                found.append(
                    CurvePlot(
                        f"curves_{sign}",
                        frame,
                        f"Deletion curves, {number.title}",
                        f"Removing the most {sign} training samples of a good method makes the curve {_EFFECTS[sign]}.",
                        "Change of the prediction (DEL) against the removed share of the training set; mean over networks and test "
                        f"points.{bands}",
                        f"Deletion curves, {sign} samples removed. The table above has their areas.",
                        f"most {sign} training samples removed (%)",
                        "change of the prediction (DEL)",
                        metric=number.name,
                        logged_as=f"del_{sign}",
                    )
                )
        return found

    def facts(self, experiment: Experiment, num_train: int, tables: Mapping[str, pl.DataFrame]) -> dict[str, str]:
        found = {
            "Removed": removals_text(experiment.deletion) + "; the AUC is the mean over them",
            "Retrain policy": policy_text(experiment.deletion),
        }
        spread = replicate_spread(tables["replicates"])
        if spread is not None:
            found["Replicates"] = f"the standard deviation of one retrained prediction around the mean of its removed set is {spread:.3g}"
        return found


class MethodLabels(Protocol):
    """The four words that name an attribution method in a table."""

    @property
    def name(self) -> str: ...
    @property
    def kernel(self) -> str: ...
    @property
    def checkpoint(self) -> str: ...
    @property
    def importance(self) -> str: ...


def summary_table(metrics: pl.DataFrame, methods: Sequence[MethodLabels]) -> pl.DataFrame:
    """The summary: a view of the metrics table with one row a method, in the order of ``methods``.

    Columns: method, kernel, checkpoint, importance, auc_del_negative, ci95_pooled (a half-width), ci95_clustered_low,
    ci95_clustered_high, num_seeds, num_points (test points of each seed); then auc_del_positive, ci95_pooled_positive,
    ci95_clustered_low_positive, ci95_clustered_high_positive. The columns of a sign exist if ``metrics`` has that sign.

    Raises NotCommittedError for a method without AUC-DEL, or whose signs were measured on different test points.
    """
    labels = [(method.name, method.kernel, method.checkpoint, method.importance) for method in methods]
    summary = pl.DataFrame(labels, schema=dict.fromkeys(("method", "kernel", "checkpoint", "importance"), pl.String), orient="row")
    measured = {sign: metrics.filter(metric=f"auc_del_{sign}") for sign in SIGNS}
    by_sign = {
        sign: summary.select("method").join(rows, on="method", how="left", maintain_order="left")
        for sign, rows in measured.items()
        if rows.height
    }
    if not by_sign or any(rows["mean"].null_count() for rows in by_sign.values()):
        lacking = [name for rows in by_sign.values() for name in rows.filter(pl.col("mean").is_null())["method"]]
        raise NotCommittedError(
            f"no AUC-DEL of method {lacking[0]}" if lacking else "no AUC-DEL was measured",
            where="the metrics table",
            expected="rows of every method",
            got=", ".join(dict.fromkeys(name for rows in measured.values() for name in rows["method"])) or "none",
            remedy="run the experiment again with this method",
        )
    designs = [rows.select("num_seeds", "num_points") for rows in by_sign.values()]
    if not designs[0].equals(designs[-1]):
        raise NotCommittedError(
            "the signs were measured on different test points",
            where="the metrics table",
            expected="one number of seeds and of points for each method",
            got=" and ".join(str(design.rows()) for design in designs),
            remedy="run the experiment to its end",
        )
    columns = []
    for sign in SIGNS:
        suffix = "" if sign == "negative" else "_positive"
        if sign in by_sign:
            columns.append(by_sign[sign]["mean"].alias(f"auc_del_{sign}"))
            columns += [
                by_sign[sign][name].alias(f"{name}{suffix}") for name in ("ci95_pooled", "ci95_clustered_low", "ci95_clustered_high")
            ]
        if sign == "negative":
            columns += designs[0].get_columns()
    return summary.with_columns(columns)


def auc_points(deletion: pl.DataFrame) -> pl.DataFrame:
    """AUC of every curve as rows of the points table: metric auc_del_negative or auc_del_positive, sorted as POINTS_SCHEMA says.

    Row order does not matter. Raises NotCommittedError if the curves of a sign have different fractions, or the seeds of a method
    different numbers of points, and NonFiniteError for a delta that is not finite.
    """
    frames = [
        pl.DataFrame(
            {
                "metric": [f"auc_del_{sign}"] * curves.auc.size,
                "method": [method] * curves.auc.size,
                "seed": np.repeat(curves.seeds, curves.test_ids.shape[1]),
                "test_id": curves.test_ids.ravel(),
                "value": curves.auc.ravel(),
            },
            schema=POINTS_SCHEMA,
        )
        for (method, sign), curves in _curves_by_method(deletion).items()
    ]
    return pl.concat(frames).sort("metric", "method", "seed", "test_id")


def deletion_curves(deletion: pl.DataFrame, *, seed: int = 0) -> pl.DataFrame:
    """Mean deletion curves: method, sign, fraction, mean, low, high; sorted by the first three.

    ``low`` and ``high`` are the seed-clustered 95% interval of each fraction by itself (not of the whole curve); null with one
    seed. ``seed`` starts the bootstrap. Raises as :func:`auc_points`.
    """
    frames = []
    for (method, sign), curves in _curves_by_method(deletion).items():
        means = np.ascontiguousarray(curves.delta.mean(axis=1).T, dtype=np.float64)  # (F, S)
        intervals = clustered_intervals(means, seed=seed)
        ends = [(None, None)] * len(means) if intervals is None else intervals.tolist()
        frames.append(
            pl.DataFrame(
                {
                    "method": [method] * len(means),
                    "sign": [sign] * len(means),
                    "fraction": curves.fractions,
                    "mean": means.mean(axis=1),
                    "low": [low for low, _ in ends],
                    "high": [high for _, high in ends],
                },
                schema_overrides={"low": pl.Float64, "high": pl.Float64},
            )
        )
    return pl.concat(frames).sort("method", "sign", "fraction")


def replicate_spread(replicates: pl.DataFrame) -> float | None:
    """Pooled standard deviation of ``delta`` over the replicates of one removal, in logits; None without two replicates of any."""
    groups = replicates.sort(*REMOVAL_COLUMNS, "replicate").group_by(REMOVAL_COLUMNS, maintain_order=True)
    variances = groups.agg(degrees=pl.len().cast(pl.Int64) - 1, variance=pl.col("delta").var()).filter(pl.col("degrees") > 0)
    if not variances.height:
        return None
    squares = math.fsum((variances["variance"] * variances["degrees"]).to_list())
    return math.sqrt(squares / int(variances["degrees"].sum()))


@dataclass(frozen=True)
class _Curves:
    """All deletion curves of one method and sign: delta (S, P, F), seeds (S,), test_ids (S, P), fractions (F,)."""

    seeds: npt.NDArray[np.int64]
    test_ids: npt.NDArray[np.int64]
    fractions: Array
    delta: Array

    @property
    def auc(self) -> Array:
        """AUC of every curve (S, P): the mean of DEL over the declared fractions."""
        return np.asarray(self.delta.mean(axis=2), dtype=np.float64)


def _curves_by_method(deletion: pl.DataFrame) -> dict[tuple[str, str], _Curves]:
    """The curves of every (method, sign), sorted. Refuses holes: every point of every seed has all fractions of its sign."""
    ordered = deletion.sort("method", "sign", "seed", "test_id", "fraction")
    wrong = ordered.filter(~pl.col("delta").is_finite() | pl.col("delta").is_null())
    if wrong.height:
        seed, method, test_id = wrong.select("seed", "method", "test_id").row(0)
        raise NonFiniteError(
            "a deletion is not a finite number",
            where=f"the deletion table, seed {seed}, method {method}, test id {test_id}",
            expected="a finite delta",
            got=str(wrong["delta"][0]),
        )
    if not deletion.height:
        raise NotCommittedError("the deletion table is empty", remedy="run the experiment to its end")
    grids = {sign: ordered.filter(pl.col("sign") == sign)["fraction"].unique().sort().to_numpy() for sign in ordered["sign"].unique()}
    found: dict[tuple[str, str], _Curves] = {}
    for (method, sign), rows in ordered.partition_by("method", "sign", maintain_order=True, as_dict=True).items():
        grid = grids[sign]
        seeds = rows["seed"].unique().sort().to_numpy()
        num_points, rest = divmod(rows.height, len(seeds) * len(grid))
        shape = (len(seeds), num_points, len(grid))
        # Sorted rows of a full design fill this box exactly. Areas over different fractions would not be comparable.
        columns = {name: rows[name].to_numpy() for name in ("seed", "test_id", "fraction", "delta")}
        box = {name: column.reshape(shape) for name, column in columns.items()} if rest == 0 else {}
        if not (
            box
            and (box["seed"] == seeds[:, None, None]).all()
            and (box["test_id"] == box["test_id"][:, :, :1]).all()
            and (box["fraction"] == grid).all()
        ):
            raise NotCommittedError(
                "the deletion table has holes",
                where=f"method {method}, sign {sign}",
                expected=f"as many test points in each of {len(seeds)} seeds, each with the {len(grid)} fractions {grid.tolist()} once",
                got=f"{rows.height} rows",
                remedy="run the experiment to its end; evaluate each set of fractions by itself",
            )
        found[method, sign] = _Curves(seeds, box["test_id"][:, :, 0], grid, box["delta"])
    return found
