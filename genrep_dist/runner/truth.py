"""The ground truth of a run as a package of files, and such a package as rows of a store's ledger."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from genrep_dist.config.keys import NUMBERS_VERSION, retraining_key
from genrep_dist.core.changes import Change
from genrep_dist.errors import CorruptError, StoreError
from genrep_dist.external.truth import MODELS, POINTS, REQUESTS, Truth, open_truth, write_record, write_truth_table
from genrep_dist.problems.tables import to_table
from genrep_dist.results import Run
from genrep_dist.runner.export import checked_paths, refuse_other_export
from genrep_dist.store import Store
from genrep_dist.store.compaction import DUPLICATE_TOLERANCE
from genrep_dist.store.ledger import Ledger, LedgerRow
from genrep_dist.store.ledger_parts import LEDGER_SCHEMA
from genrep_dist.workflow.explained_ledger import explained_ledger
from genrep_dist.workflow.requests import StoredSeed, read_requests, requests_path


@dataclass(frozen=True)
class ImportedTruth:
    """What an import did: ``written`` models are new in the ledger of ``training``, ``known`` ones were in it."""

    training: str
    written: int
    known: int


def export_truth(run: Run, folder: Path) -> Iterator[Path]:
    """Write the models that the metrics of a ``run`` use, as a package; yield the paths written.

    Of a run that is not finished, those that are trained by now; its record then says ``"complete": false``. It is opened by
    :func:`genrep_dist.external.open_truth`. Memory: the outputs of one seed's models. Raises StoreError for a run that has retrained no
    model, and for a folder that cannot be written or that has the package of another experiment or of other models.
    """
    return checked_paths(folder, _truth_files(run, folder))


def _truth_files(run: Run, folder: Path) -> Iterator[Path]:
    exported = _Exported(run)
    folder.mkdir(parents=True, exist_ok=True)
    mine = {"experiment": run.name, "training": run.plan.keys.training}
    refuse_other_export(folder / "truth.json", folder, run.name, mine)
    (folder / "truth.json").unlink(missing_ok=True)  # a folder with this file is whole
    for name, dataset in (("train", run.train), ("test", run.test)):
        labels = to_table(dataset).drop_columns(["input"]).replace_schema_metadata(None)
        yield write_truth_table(folder, name, iter([labels]))
    yield write_truth_table(folder, "models", exported.models())
    yield write_truth_table(folder, "points", iter([exported.points()]))
    yield write_truth_table(folder, "requests", iter([exported.requests()]))
    yield write_record(folder, exported.record())


class _Exported:
    """The parts of the package of one run. The tables of points and requests follow from that of the models."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._requests, self._complete = _trained_requests(run)
        self._seeds = [seed for seed in run.plan.experiment.seeds if seed in set(self._requests["seed"])]
        scanned = run.store.ledger(run.plan.keys.training).scan()
        self._ledger = explained_ledger(run.plan, scanned, self._requests, lambda: run.context)
        ids = run.train.ids.numpy(), run.test.ids.numpy()
        self._data = {seed: StoredSeed(run.plan, run.store, seed, *ids) for seed in self._seeds}
        self._rows: dict[str, int] = {}
        self._numbers: dict[int, list[float]] = {}

    def models(self) -> Iterator[pa.Table]:
        """The models of one seed after the other, by key."""
        num_outputs = self._run.plan.shape.num_test * self._run.plan.shape.num_outputs
        for seed in self._seeds:
            requested = self._requests.filter(seed=seed)
            keys = pl.concat([requested["key"], requested["original_key"]]).unique()
            places = [point.output_position for point in self._data[seed].points]
            # A model that two tasks have trained has two rows, which are equal but for the rounding of machines.
            found = self._ledger.filter(pl.col("key").is_in(keys.to_list())).collect().sort("key", "seconds").unique("key", keep="first")
            found = found.sort("key").with_columns(
                numbers=pl.col("outputs").list.gather(places).cast(pl.List(pl.Float64)),
                outputs=pl.col("outputs").list.head(num_outputs).cast(pl.List(pl.Float64)),
            )
            self._rows |= {key: len(self._rows) + place for place, key in enumerate(found["key"])}
            original = found.filter(pl.col("key") == self._run.plan.keys.retraining(seed, (), "same"))
            self._numbers[seed] = original["numbers"].explode().to_list() if original.height else []
            yield _with_changes(found, self._run.store.ledger(self._run.plan.keys.training).changes(keys.to_list()))

    def points(self) -> pa.Table:
        chosen = {seed: self._chosen_outputs(seed) for seed in self._seeds}
        rows = [
            {"seed": seed, "test_id": members[0], "members": members, "output": output, "number": number}
            for seed in self._seeds
            for members, output, number in zip(self._run.test_groups(seed), chosen[seed], self._numbers[seed], strict=True)
        ]
        return pa.Table.from_pylist(rows, schema=POINTS)

    def _chosen_outputs(self, seed: int) -> list[int | None]:
        """The output that each number is about; None where it is of several outputs or points."""
        num_test, num_outputs = self._run.plan.shape.num_test, self._run.plan.shape.num_outputs
        places = [point.output_position for point in self._data[seed].points]
        return [place % num_outputs if place < num_test * num_outputs else None for place in places]

    def requests(self) -> pa.Table:
        rows = self._requests.sort("metric", "seed", "replicate", "subset", maintain_order=True).with_columns(
            model=pl.col("key").replace_strict(self._rows, return_dtype=pl.Int64),
            original=pl.col("original_key").replace_strict(self._rows, return_dtype=pl.Int64),
        )
        return rows.select(REQUESTS.names).to_arrow(compat_level=pl.CompatLevel.oldest()).cast(REQUESTS)

    def record(self) -> dict[str, Any]:
        plan, keys = self._run.plan, self._run.plan.keys
        return {
            "experiment": self._run.name,
            "complete": self._complete,
            "declared": plan.experiment.to_yaml(),
            "training": keys.training,
            "numbers_version": NUMBERS_VERSION,
            "trained_on": {"data": keys.data, "problem": keys.problem, "numbers": keys.numbers, "extensions": dict(keys.extensions)},
            "recipe": keys.recipe,
            "loss": self._run.loss_name,
            "target": {
                **plan.experiment.target.model_dump(mode="json"),
                "description": plan.experiment.target.description(plan.shape.num_outputs),
            },
            "models": {str(seed): keys.model(seed) for seed in self._seeds},
            "seeds": self._seeds,
            "num_train": plan.shape.num_train,
            "num_test": plan.shape.num_test,
            "num_outputs": plan.shape.num_outputs,
        }


def _trained_requests(run: Run) -> tuple[pl.DataFrame, bool]:
    """The requests whose models the ledger has, and whether these are all. StoreError if there are none."""
    there = pl.Series(sorted(run.store.ledger(run.plan.keys.training).keys()), dtype=pl.String)
    if run.store.objects.exists(requests_path(run.plan)):
        requests = read_requests(run.plan, run.store).collect()
        trained = requests.filter(pl.col("key").is_in(there.implode()) & pl.col("original_key").is_in(there.implode()))
        if trained.height:
            return trained, trained.height == requests.height
    raise StoreError(
        "the run has no ground truth yet",
        where=f"{run.store.uri}, {run.name}",
        expected="models that were retrained for its metrics",
        got="none",
        remedy="start the run, and export when it has retrained some models: `genrep status` shows how many",
    )


def _with_changes(models: pl.DataFrame, changes: Mapping[str, Change]) -> pa.Table:
    """The table of ``models`` with what was changed besides removals, by key."""
    columns: dict[str, list[Any]] = {name: [] for name in ("reweighted", "weights", "relabelled", "labels")}
    for change in map(changes.__getitem__, models["key"]):
        for pairs, (ids, values) in ((change.weights, ("reweighted", "weights")), (change.labels, ("relabelled", "labels"))):
            columns[ids].append([sample for sample, _ in pairs])
            columns[values].append([value for _, value in pairs])
    table = models.select([*LEDGER_SCHEMA.names, "numbers"]).to_arrow(compat_level=pl.CompatLevel.oldest())
    for name, column in columns.items():
        table = table.append_column(name, pa.array(column, MODELS.field(name).type))
    return table.select(MODELS.names).cast(MODELS)


def import_truth(folder: str | Path, store: Store) -> ImportedTruth:
    """Add the models of a package to the ledger of ``store``, so that no run trains them again. What the ledger has stays.

    Every byte is verified before anything is written, and every row's key is that of its seed, policy and changed samples. The numbers
    themselves are trusted. Memory: a row group, and the outputs of models that the ledger has too.

    Raises as :func:`~genrep_dist.external.open_truth`; CorruptError for rows that contradict themselves; StoreError for a package of
    another version of the numbers, and for outputs that differ from those in the ledger.
    """
    truth = open_truth(folder)
    if truth.record["numbers_version"] != NUMBERS_VERSION:
        raise StoreError(
            "the models were trained by a version whose numbers are others",
            where=str(folder),
            expected=f"numbers_version {NUMBERS_VERSION}",
            got=str(truth.record["numbers_version"]),
            remedy="export the package with this version",
        )
    train_ids, seen = set(truth.table("train").column("id").to_pylist()), set[str]()
    for batch in truth.batches("models"):
        _check_rows(truth, batch, train_ids, seen)
    store.objects.check_access()
    ledger = store.ledger(truth.training)
    there, written, known = ledger.keys(), 0, 0
    _require_agreement(truth, ledger, there)
    for batch in truth.batches("models"):
        new = [row for row in _ledger_rows(batch) if row.key not in there]
        if new:
            ledger.write(new)
        written, known = written + len(new), known + batch.num_rows - len(new)
    return ImportedTruth(truth.training, written, known)


def _ledger_rows(batch: pa.Table) -> Iterator[LedgerRow]:
    """The rows of the ledger in a row group of the table of models."""
    outputs = (one for chunk in batch.column("outputs").chunks for one in chunk)
    for row, values in zip(batch.drop_columns(["outputs", "numbers", "num_removed"]).to_pylist(), outputs, strict=True):
        # Lists of other lengths belong to no key: they are refused with it.
        weights = tuple(zip(row.pop("reweighted"), row["weights"], strict=False))
        labels = tuple(zip(row.pop("relabelled"), map(tuple, row["labels"]), strict=False))
        changed = {"removed": tuple(row["removed"]), "weights": weights, "labels": labels}
        yield LedgerRow(**{**row, **changed}, outputs=values.values.to_numpy(zero_copy_only=False))


def _check_rows(truth: Truth, batch: pa.Table, train_ids: set[int], seen: set[str]) -> None:
    """Raise CorruptError for a row that is not what its key says, or without (T, C) finite numbers; add its key to ``seen``."""
    num_outputs = truth.record["num_test"] * truth.record["num_outputs"]
    for row, num_removed in zip(_ledger_rows(batch), batch.column("num_removed").to_pylist(), strict=True):
        change = Change(row.removed, row.weights, row.labels)
        key = retraining_key(truth.training, row.seed, change, row.policy, row.replicate)
        faults = {
            f"the key {key}": row.key != key,
            "one row a model": row.key in seen,
            "ids of training samples, ascending": change != Change.of(row.removed, dict(row.weights), dict(row.labels))
            or not train_ids.issuperset(change.samples)
            or len(change) != num_removed,
            f"{num_outputs} finite outputs": row.outputs.shape != (num_outputs,) or not np.isfinite(row.outputs).all(),
            "seconds of at least 0": not row.seconds >= 0,
        }
        wrong = next((expected for expected, is_wrong in faults.items() if is_wrong), None)
        if wrong is not None:
            raise CorruptError(
                "a model of the ground truth contradicts its own key",
                where=f"{truth.folder}/models.parquet, key {row.key[:16]}",
                expected=wrong,
                got=f"seed {row.seed}, policy {row.policy}, {len(change)} samples changed, {len(row.outputs)} outputs",
                remedy="export the package again; nothing was imported",
            )
        seen.add(row.key)


def _require_agreement(truth: Truth, ledger: Ledger, there: set[str]) -> None:
    """Raise StoreError if the ``ledger``, with the keys ``there``, has other outputs of a model. Memory: those of the models of both."""
    ours = {row.key: row.outputs for batch in truth.batches("models") for row in _ledger_rows(batch) if row.key in there}
    if not ours:
        return
    found = ledger.scan().select("key", "outputs").filter(pl.col("key").is_in(sorted(ours))).collect(engine="streaming")
    for key, values in zip(found["key"], found["outputs"], strict=True):
        theirs, own = values.to_numpy(), ours[key]
        apart = np.abs(theirs - own) if theirs.shape == own.shape else np.array([np.inf])
        if (apart > DUPLICATE_TOLERANCE * (1 + (np.abs(own) if theirs.shape == own.shape else 0.0))).any():
            raise StoreError(
                "the ground truth and the ledger have other outputs of one model",
                where=f"{truth.folder}, key {key}",
                expected=f"outputs equal to {DUPLICATE_TOLERANCE}",
                got=f"a difference of {apart.max():.4g}",
                remedy="import it into another --store: training on this machine does not give the same models",
            )
