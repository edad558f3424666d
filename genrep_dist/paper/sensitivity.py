"""Whether the order of methods changes with the set-up: areas and mean ranks in several variants of one experiment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from genrep_dist.errors import StoreError
from genrep_dist.evaluation.statistics import best, metrics_table
from genrep_dist.report.canvas import WIDTH, drawable, figure_style, render
from genrep_dist.report.markdown import escaped
from genrep_dist.report.styles import styles
from genrep_dist.report.tables import RANDOM

METRIC = "auc_del_negative"


@dataclass(frozen=True)
class Variant:
    """One set-up: a short ``title`` and its ``points`` (metric, method, seed, test_id, value)."""

    title: str
    points: pl.DataFrame


def sensitivity_table(variants: Sequence[Variant], methods: Sequence[str]) -> pl.DataFrame:
    """One row a (variant, method): variant, method, mean, low, high, mean_rank of AUC-DEL_-.

    The interval is the seed-clustered bootstrap's of 95%. ``mean_rank``: over the draws of the bootstrap, 1 is best.
    Raises StoreError for a variant that lacks a method or has one seed.
    """
    found = []
    for variant in variants:
        points = variant.points.filter(pl.col("metric") == METRIC)
        missing = set(methods) - set(points["method"])
        if missing:
            raise StoreError(
                "a variant was not measured for all methods", where=variant.title, expected=", ".join(methods), got=f"no {missing}"
            )
        if points["seed"].n_unique() < 2:
            raise StoreError(
                "a variant needs more networks",
                where=variant.title,
                expected="points of at least 2 seeds",
                got="points of 1 seed",
                remedy="run more seeds or more test points",
            )
        columns = {"ci95_clustered_low": "low", "ci95_clustered_high": "high"}
        areas = metrics_table(points, methods).select("method", "mean", *columns).rename(columns)
        ranked = best(points, methods).select("method", "mean_rank")
        found.append(areas.join(ranked, on="method", maintain_order="left").with_columns(variant=pl.lit(variant.title)))
    return pl.concat(found).select("variant", "method", "mean", "low", "high", "mean_rank")


def rank_correlations(table: pl.DataFrame) -> pl.DataFrame:
    """variant, tau: Kendall's tau-b of the methods' mean areas with those of the first variant, random removal left out."""
    from scipy.stats import kendalltau

    titles = table["variant"].unique(maintain_order=True).to_list()
    areas = [
        table.filter((pl.col("variant") == title) & (pl.col("method") != RANDOM)).sort("method")["mean"].to_numpy() for title in titles
    ]
    return pl.DataFrame({"variant": titles, "tau": [float(kendalltau(areas[0], one).statistic) for one in areas]})


def sensitivity_figure(table: pl.DataFrame, x_label: str) -> bytes:
    """The mean rank of each method in each variant, as a PNG; a line a method, the best on top."""
    titles = table["variant"].unique(maintain_order=True).to_list()
    methods = table["method"].unique(maintain_order=True).to_list()
    style_of = styles(methods)
    with figure_style():
        figure = Figure(figsize=(WIDTH, 0.9 + 0.34 * len(methods)), layout="constrained")
        axes = figure.add_subplot()
        for method in methods:
            ranks = table.filter(pl.col("method") == method)["mean_rank"].to_numpy()
            style = style_of[method]
            axes.plot(range(len(titles)), ranks, color=style.colour, linestyle=style.line, marker=style.marker, markersize=5, linewidth=1.4)
        last = table.filter(pl.col("variant") == titles[-1]).sort("mean_rank")
        # Labels stand in the order of the last variant, one below the other, with a line of their own each.
        places = np.linspace(1, len(methods), len(methods))
        for place, (method, rank) in zip(places, last.select("method", "mean_rank").iter_rows(), strict=True):
            axes.annotate(
                drawable(method),
                (len(titles) - 1, rank),
                (len(titles) - 0.88, place),
                va="center",
                arrowprops={"arrowstyle": "-", "color": style_of[method].colour, "linewidth": 0.7},
            )
        axes.set_xticks(range(len(titles)), titles)
        axes.set_xlim(-0.2, len(titles) + 0.6)
        axes.set_ylim(len(methods) + 0.5, 0.5)
        axes.set_yticks(range(1, len(methods) + 1))
        axes.set_xlabel(x_label)
        axes.set_ylabel("mean rank (1 is best)")
        return render(figure, "png")


def write_sensitivity(folder: Path, name: str, heading: str, x_label: str, table: pl.DataFrame) -> list[Path]:
    """Write NAME.md, NAME.png and NAME.parquet; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    titles = table["variant"].unique(maintain_order=True).to_list()
    tau = dict(rank_correlations(table).iter_rows())
    lines = [f"# {escaped(heading)}\n", f"![mean ranks]({name}.png)\n"]
    lines.append(
        "AUC-DEL₋ with its 95% interval, clustered by network. Kendall's tau: of the methods' order with that of the first column.\n"
    )
    lines.append("| method | " + " | ".join(map(escaped, titles)) + " |\n|:--|" + "--:|" * len(titles))
    for method in table["method"].unique(maintain_order=True).to_list():
        cells = [_cell(*row) for row in table.filter(pl.col("method") == method).select("mean", "low", "high").iter_rows()]
        lines.append("| " + " | ".join([escaped(method), *cells]) + " |")
    lines.append("| Kendall's tau | " + " | ".join(f"{tau[title]:.2f}" for title in titles) + " |")
    (folder / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / f"{name}.png").write_bytes(sensitivity_figure(table, x_label))
    table.write_parquet(folder / f"{name}.parquet")
    return [folder / f"{name}.{ending}" for ending in ("md", "png", "parquet")]


def _cell(mean: float, low: float | None, high: float | None) -> str:
    return f"{mean:.2f}" if low is None or high is None else f"{mean:.2f} [{low:.2f}, {high:.2f}]"
