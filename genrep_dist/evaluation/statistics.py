"""Areas under the deletion curves and how sure they are (see :mod:`genrep_dist.evaluation.intervals`).

Row order never matters: rows are sorted first, and only full designs are accepted, in which every seed has as many test points
and every curve the same fractions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from genrep_dist.errors import NonFiniteError, NotCommittedError, StoreError
from genrep_dist.evaluation.deletion import SIGNS
from genrep_dist.evaluation.intervals import Array, bootstrap_interval, clustered_intervals, pooled_half_width
from genrep_dist.evaluation.metrics import POINTS_SCHEMA


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


@dataclass(frozen=True)
class Difference:
    """AUC of ``method`` minus AUC of ``baseline``, averaged over the same networks and test points.

    ``low`` and ``high`` bound the seed-clustered 95% interval; both are None with one seed.
    """

    method: str
    baseline: str
    sign: str
    mean: float
    low: float | None
    high: float | None
    num_seeds: int
    num_points: int


@dataclass(frozen=True)
class _Curves:
    """All deletion curves of one method and sign: delta (S, P, F), seeds (S,), test_ids (S, P), fractions (F,)."""

    seeds: npt.NDArray[np.int64]
    test_ids: npt.NDArray[np.int64]
    fractions: Array
    delta: Array

    @property
    def auc(self) -> Array:
        """AUC of every curve, (S, P): the mean of DEL over the declared fractions."""
        return np.asarray(self.delta.mean(axis=2), dtype=np.float64)

    @property
    def auc_by_seed(self) -> Array:
        """(S,): the mean over the test points of each seed."""
        return np.asarray(self.auc.mean(axis=1), dtype=np.float64)


def summarise(deletion: pl.DataFrame, methods: Sequence[MethodLabels], *, seed: int = 0) -> pl.DataFrame:
    """One row a method, in the order of ``methods``.

    Columns: method, kernel, checkpoint, importance, auc_del_negative, ci95_pooled (a half-width), ci95_clustered_low,
    ci95_clustered_high, num_seeds, num_points (test points of each seed); then auc_del_positive, ci95_pooled_positive,
    ci95_clustered_low_positive, ci95_clustered_high_positive. The columns of a sign exist where ``deletion`` has that sign.
    Intervals are null with one seed. ``seed`` starts the bootstrap; all methods share its draws, so that a method's numbers do
    not depend on which others are there. Methods of ``deletion`` that are not in ``methods`` are left out.

    Raises NotCommittedError when ``deletion`` has no, or not all, rows of a method.
    """
    curves_of = _split(deletion)
    signs = [sign for sign in SIGNS if any(found == sign for _, found in curves_of)]
    rows: list[dict[str, object]] = []
    for method in methods:
        row: dict[str, object] = {
            "method": method.name,
            "kernel": method.kernel,
            "checkpoint": method.checkpoint,
            "importance": method.importance,
        }
        for sign in signs:
            curve = _of(curves_of, method.name, sign)
            # The names of the public table: the main sign's intervals carry no suffix.
            suffix = "" if sign == "negative" else "_positive"
            low, high = bootstrap_interval(curve.auc_by_seed, seed=seed)
            row |= {
                f"auc_del_{sign}": float(curve.auc_by_seed.mean()),
                f"ci95_pooled{suffix}": pooled_half_width(curve.auc),
                f"ci95_clustered_low{suffix}": low,
                f"ci95_clustered_high{suffix}": high,
            }
            design = {"num_seeds": len(curve.seeds), "num_points": curve.test_ids.shape[1]}
            if any(row.setdefault(name, size) != size for name, size in design.items()):
                raise NotCommittedError(
                    "the signs were measured on different test points", where=f"the deletion table, method {method.name}", got=str(design)
                )
        rows.append(row)
    return pl.DataFrame(rows, schema=summary_schema(signs), orient="row")


def summary_schema(signs: Sequence[str] = ("negative",)) -> pl.Schema:
    """Names and types of the summary's columns, in their order."""
    columns: dict[str, type[pl.DataType]] = dict.fromkeys(("method", "kernel", "checkpoint", "importance"), pl.String)
    for sign in SIGNS:
        if sign in signs:
            suffix = "" if sign == "negative" else "_positive"
            names = (f"auc_del_{sign}", f"ci95_pooled{suffix}", f"ci95_clustered_low{suffix}", f"ci95_clustered_high{suffix}")
            columns |= dict.fromkeys(names, pl.Float64)
        if sign == "negative":
            columns |= dict.fromkeys(("num_seeds", "num_points"), pl.Int64)
    return pl.Schema(columns)


def auc_by_point(deletion: pl.DataFrame) -> pl.DataFrame:
    """AUC of every curve: seed, method, test_id, sign, auc; sorted by the first four."""
    frames = [
        pl.DataFrame(
            {
                "seed": np.repeat(curve.seeds, curve.test_ids.shape[1]),
                "method": [method] * curve.auc.size,
                "test_id": curve.test_ids.ravel(),
                "sign": [sign] * curve.auc.size,
                "auc": curve.auc.ravel(),
            }
        )
        for (method, sign), curve in _split(deletion).items()
    ]
    return pl.concat(frames).sort("seed", "method", "test_id", "sign")


def auc_points(deletion: pl.DataFrame) -> pl.DataFrame:
    """AUC of every curve as rows of the points table: metric auc_del_negative or auc_del_positive, sorted as POINTS_SCHEMA says."""
    named = auc_by_point(deletion).with_columns(metric=pl.lit("auc_del_") + pl.col("sign")).rename({"auc": "value"})
    return named.select(pl.col(name).cast(kind) for name, kind in POINTS_SCHEMA.items()).sort("metric", "method", "seed", "test_id")


def by_seed(deletion: pl.DataFrame) -> pl.DataFrame:
    """Mean AUC of each network: method, sign, seed, auc; sorted by the first three."""
    frames = [
        pl.DataFrame({"method": [method] * len(c.seeds), "sign": [sign] * len(c.seeds), "seed": c.seeds, "auc": c.auc_by_seed})
        for (method, sign), c in _split(deletion).items()
    ]
    return pl.concat(frames).sort("method", "sign", "seed")


def curves(deletion: pl.DataFrame, *, seed: int = 0) -> pl.DataFrame:
    """Mean deletion curves: method, sign, fraction, mean, low, high; sorted by the first three.

    ``low`` and ``high`` are the seed-clustered 95% interval of each fraction by itself (not of the whole curve); null with one
    seed.
    """
    frames = []
    for (method, sign), curve in _split(deletion).items():
        means = np.ascontiguousarray(curve.delta.mean(axis=1).T, dtype=np.float64)  # (F, S)
        found = clustered_intervals(means, seed=seed)
        bands = [(None, None)] * len(means) if found is None else found.tolist()
        frames.append(
            pl.DataFrame(
                {
                    "method": [method] * len(bands),
                    "sign": [sign] * len(bands),
                    "fraction": curve.fractions,
                    "mean": means.mean(axis=1),
                    "low": [low for low, _ in bands],
                    "high": [high for _, high in bands],
                },
                schema_overrides={"low": pl.Float64, "high": pl.Float64},
            )
        )
    return pl.concat(frames).sort("method", "sign", "fraction")


def paired_difference(deletion: pl.DataFrame, method: str, baseline: str, *, sign: str = "negative", seed: int = 0) -> Difference:
    """AUC of ``method`` minus AUC of ``baseline``, paired over (seed, test point), with its seed-clustered interval.

    Raises NotCommittedError when one of them is not there, StoreError when they were not measured on the same points.
    """
    split = _split(deletion)
    first, second = _of(split, method, sign), _of(split, baseline, sign)
    if not (np.array_equal(first.seeds, second.seeds) and np.array_equal(first.test_ids, second.test_ids)):
        raise StoreError(
            "a paired difference needs the same seeds and test points on both sides",
            where="the deletion table",
            got=", ".join(f"{name}: {c.test_ids.size} points of {len(c.seeds)} seeds" for name, c in ((method, first), (baseline, second))),
        )
    per_seed = np.asarray((first.auc - second.auc).mean(axis=1), dtype=np.float64)
    low, high = bootstrap_interval(per_seed, seed=seed)
    return Difference(method, baseline, sign, float(per_seed.mean()), low, high, len(first.seeds), first.test_ids.shape[1])


def _of(split: Mapping[tuple[str, str], _Curves], method: str, sign: str) -> _Curves:
    if (method, sign) not in split:
        raise NotCommittedError(
            f"no {sign} deletions of method {method}",
            where="the deletion table",
            expected="a method that was judged",
            got=", ".join(sorted({name for name, found in split if found == sign})) or "none",
            remedy="run the experiment again with this method",
        )
    return split[method, sign]


def _split(deletion: pl.DataFrame) -> dict[tuple[str, str], _Curves]:
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
    split: dict[tuple[str, str], _Curves] = {}
    for (method, sign), rows in ordered.partition_by("method", "sign", maintain_order=True, as_dict=True).items():
        grid = grids[sign]
        seeds = rows["seed"].unique().sort().to_numpy()
        num_points, rest = divmod(rows.height, len(seeds) * len(grid))
        shape = (len(seeds), num_points, len(grid))
        # Sorted rows of a full design are this box exactly; an area over other fractions, or a mean over other points, would be
        # another number under the same name.
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
                remedy="run the experiment to its end; judge each set of fractions on its own",
            )
        split[method, sign] = _Curves(seeds, box["test_id"][:, :, 0], grid, box["delta"])
    return split
