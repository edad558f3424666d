"""The tables of a run: published ones, and what can be computed from the ledger."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import polars as pl

from genrep_dist.errors import NotCommittedError, StoreError
from genrep_dist.evaluation.metrics.base import RESULTS_VERSION, metric_infos
from genrep_dist.evaluation.tables import EvaluationTables, table_specs
from genrep_dist.report.tables import sorted_methods
from genrep_dist.results.base import OpenedRun
from genrep_dist.store.paths import ResultPaths
from genrep_dist.store.publications import Publications
from genrep_dist.store.tables import scan_frame
from genrep_dist.store.versions import refuse_newer
from genrep_dist.workflow.costs import method_costs, model_costs
from genrep_dist.workflow.requests import read_requests


class Tables(OpenedRun):
    """Reading a table before the run is finished raises NotCommittedError."""

    def summary(self) -> pl.DataFrame:
        """One row a method, best first: AUC-DEL with its intervals, then how many networks and points, then the parts of the name."""
        table = self._published("summary").collect()
        infos = [info for info in metric_infos().values() if info.is_main and info.name in table.columns]
        means = pl.concat([table.select(pl.lit(info.name).alias("metric"), "method", mean=info.name) for info in infos])
        order = {method: place for place, method in enumerate(sorted_methods(means, infos, table["method"].to_list()))}
        # What matters most comes first: a printed frame leaves out the columns in its middle.
        ends = ["ci95_clustered_low", "ci95_clustered_high"] if "auc_del_negative" in table.columns else []
        first = ["method", infos[0].name, *ends] if infos else ["method"]
        rest = [name for name in table.columns if name not in first]
        names = [name for name in rest if name in ("kernel", "checkpoint", "importance")]
        columns = [*first, *(name for name in rest if name not in names), *names]
        return table.sort(pl.col("method").replace_strict(order, return_dtype=pl.Int64)).select(columns)

    def deletion(self) -> pl.LazyFrame:
        """One row a (seed, method, test point, sign, fraction)."""
        return self._published("deletion")

    def metrics(self) -> pl.DataFrame:
        """One row a (metric, method): mean, pooled, clustered and (where points are shared by all seeds) two-way 95% intervals."""
        return self._published("metrics").collect()

    def points(self) -> pl.LazyFrame:
        """One row a (metric, method, seed, test point): what every mean and interval is computed from."""
        return self._published("points")

    def comparisons(self) -> pl.DataFrame:
        """One row a (metric, method, baseline): paired difference, its interval, p-value and Holm's correction."""
        return self._published("comparisons").collect()

    def ranks(self) -> pl.DataFrame:
        """One row a (metric, method, other): in which share of bootstrap draws the method is better."""
        return self._published("ranks").collect()

    def tables(self) -> dict[str, pl.DataFrame]:
        """All published tables by name, as in the store: the summary, then those of :meth:`judged` that have rows."""
        self._published("metrics")  # raises when nothing is published
        published = (self.manifest() or {})["tables"]
        names = ["summary", *(name for name in table_specs() if f"{name}.parquet" in published)]
        return {name: self._published(name).collect() for name in names}

    def judged(self) -> EvaluationTables:
        """All published tables of the evaluation: points, metrics, comparisons, ranks, ceilings, costs and the metrics' own."""
        self._published("metrics")  # raises when nothing is published
        published = (self.manifest() or {})["tables"]
        names = [name for name in table_specs() if f"{name}.parquet" in published]
        return EvaluationTables(**{name: self._published(name).collect() for name in names})

    def judge(self) -> EvaluationTables:
        """All tables of the evaluation, computed again from the ledger."""
        from genrep_dist.workflow.evaluate import evaluate

        return evaluate(self.plan, self.store, self._requests(), lambda: self.context, self.flipped_ids())

    def training(self) -> pl.DataFrame:
        """One row a seed: final training loss and test accuracy of the original model."""
        manifests = [self.store.artifact("train", self.plan.keys.train(seed)).manifest() for seed in self.plan.experiment.seeds]
        rows = [(m["seed"], m["train_loss"], m["test_accuracy"]) for m in manifests]
        return pl.DataFrame(rows, schema={"seed": pl.Int64, "train_loss": pl.Float64, "test_accuracy": pl.Float64}, orient="row")

    def costs(self) -> dict[str, float]:
        """Models ``asked`` for, distinct retrainings (``unique``) behind them, ``originals``; one worker's training ``seconds``."""
        return model_costs(self._requests(), self._ledger())

    def costs_by_method(self) -> pl.DataFrame:
        """One row a method: the retrainings that it requested, and one worker's seconds for them and for its scores."""
        return method_costs(self.plan, self.store, self._requests(), self._ledger())

    def manifest(self) -> dict[str, Any] | None:
        """What was proved when the run was published: digest, counts, tracking link, files; None while it is not finished.

        StoreError if a newer version of this package published it, CorruptError if it is damaged.
        """
        manifest = Publications(self.store.objects, self.name).manifest()
        if manifest is None or manifest["question"] != self.question:
            return None
        where = f"{self.store.uri}/{ResultPaths(self.name).manifest}"
        refuse_newer("these results", manifest.get("results_version"), RESULTS_VERSION, where, manifest.get("package"))
        return manifest

    def _published(self, table: str) -> pl.LazyFrame:
        """A published table, whose bytes are verified; one of another experiment under the same name is not this run's."""
        manifest = self.manifest()
        if manifest is None:
            raise NotCommittedError(
                "this run is not finished",
                where=f"{self.store.uri}/{ResultPaths(self.name).folder}",
                expected="published results of this experiment",
                got="none",
                remedy="run the experiment again: only what is missing is computed",
            )
        publications, name = Publications(self.store.objects, self.name), f"{table}.parquet"
        sha256, published = manifest.get("tables", {}).get(name), ResultPaths(self.name).table(table)
        staged = publications.find(manifest, name)
        if staged != published:
            # It is moved in this moment, so a query that runs later would not find it.
            with suppress(StoreError):
                return scan_frame(self.store.objects, staged, sha256=sha256).collect().lazy()
        return scan_frame(self.store.objects, published, sha256=sha256)

    def _requests(self) -> pl.DataFrame:
        return read_requests(self.plan, self.store).collect()

    def _ledger(self) -> pl.LazyFrame:
        return self.store.ledger(self.plan.keys.training).scan()
