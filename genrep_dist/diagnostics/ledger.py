"""The ledger of retrainings: complete, tied to the originals, true to its content addresses, and repeatable now."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from genrep_dist.diagnostics.finding import Finding, badness, counted, green, judge
from genrep_dist.diagnostics.fixture import Patient
from genrep_dist.errors import NotCommittedError
from genrep_dist.evaluation.removals import REMOVAL_COLUMNS
from genrep_dist.store.compaction import DUPLICATE_TOLERANCE
from genrep_dist.training.threads import one_thread
from genrep_dist.units import Retraining
from genrep_dist.workflow.requests import read_requests, retrain_requests
from genrep_dist.workflow.retrain import retrain

ULPS_PER_STEP = 4
"""Roundings by which each step of two equal trainings may drift apart: parameters, gradient, momentum, output."""


def completeness(patient: Patient) -> list[Finding]:
    """Every removal that the stored scores ask for is recorded as asked, has a row, and that row removes what its key says."""
    asked = _asked(patient)
    expected = retrain_requests(patient.plan, patient.store, patient.run.train.ids.numpy(), patient.run.test.ids.numpy()).table
    strange = asked.height if asked.height != expected.height else _differing(asked, expected)
    wanted = wanted_keys(patient)
    rows = _rows(patient, wanted, "key", "seed", "policy", "replicate", "removed")
    missing = sorted(set(wanted["key"]) - set(rows["key"]))
    keys = patient.plan.keys
    forged = [
        row["key"]
        for row in rows.unique("key").iter_rows(named=True)
        if keys.retraining(row["seed"], row["removed"], row["policy"], row["replicate"]) != row["key"]
    ]
    example = f"; first {(missing or forged)[0]}" if missing or forged else ""
    finding = judge(
        "ledger",
        len(missing) + len(forged) + strange,
        0,
        f"faults in {len(wanted):,} trained models asked for: {len(missing)} without a row, {len(forged)} whose removed set does not give "
        f"their key, {strange} asked removals that the stored scores do not ask for{example}",
        "run the experiment again, which trains what is missing; move parts away that hold forged rows",
    )
    return [finding]


def originals(patient: Patient) -> list[Finding]:
    """The rows with nothing removed hold the original models' outputs, to the bit."""
    by_key = {patient.plan.keys.retraining(seed, (), "same"): seed for seed in patient.seeds}
    rows = _rows(patient, pl.DataFrame({"key": list(by_key)}), "key", "outputs")
    found: dict[int, list[float]] = {seed: [] for seed in patient.seeds}
    for key, outputs in rows.iter_rows():
        stored = patient.train_artifact(by_key[key]).read("outputs_test").astype(np.float64).ravel()
        found[by_key[key]].append(_largest(np.asarray(outputs, dtype=np.float64), stored))
    differences = {seed: max(numbers, key=badness, default=float("inf")) for seed, numbers in found.items()}
    seed = max(differences, key=lambda seed: badness(differences[seed]))
    finding = judge(
        "originals",
        differences[seed],
        0,
        "largest difference between the ledger's outputs with nothing removed and those of the original models, "
        f"{counted(rows.height, 'row')} of {counted(len(patient.seeds), 'seed')}; bound: one training wrote both",
        f"the ledger or this seed's original model was changed: delete the folder {patient.train_artifact(seed).path} and the ledger's "
        "part with this key, and run again",
        seed=seed,
    )
    return [finding]


def judgement(patient: Patient) -> list[Finding]:
    """The published deletion table, and every published point of every metric, are what the ledger and the stored scores give now."""
    published = patient.run.deletion().collect().sort(REMOVAL_COLUMNS)
    judged = patient.run.judge()
    now = judged["deletion"]
    points = patient.run.points().collect()
    places = [name for name in points.columns if name != "value"]
    if published.select(*REMOVAL_COLUMNS, "num_removed").equals(now.select(*REMOVAL_COLUMNS, "num_removed")) and points.select(
        places
    ).equals(judged.points.select(places)):
        pairs = [(published[name].to_numpy(), now[name].to_numpy()) for name in ("score_original", "score_retrained", "delta")]
        size = 1 + now["score_retrained"].abs().to_numpy()
        number = max((_largest(then / size, again / size) for then, again in pairs), key=badness)
        number = max(number, _largest(points["value"].to_numpy(), judged.points["value"].to_numpy()), key=badness)
    else:
        number = float("inf")
    finding = judge(
        "judgement",
        number,
        DUPLICATE_TOLERANCE,
        f"largest difference between what was published and what the ledger gives now, of {now.height:,} deletions (relative to "
        f"1 + |score|) and {points.height:,} points of {len(patient.plan.experiment.metric_names)} metrics; bound: what two trainings of "
        "one removed set on different machines may differ by",
        "the ledger or the tables were changed after the run: run the experiment again into a new store, or find the changed part",
    )
    return [finding]


def retraining(patient: Patient) -> list[Finding]:
    """One removed set, drawn by a derived seed, trained again here and now, against its row of the ledger."""
    keys = _asked(patient).filter(pl.col("num_removed") > 0).select("key").unique().sort("key")
    if not keys.height:
        return [green("retraining", "nothing was removed anywhere, so nothing can be trained again")]
    there = _rows(patient, keys, "key").unique().sort("key")
    if not there.height:
        raise NotCommittedError("no retrained model is in the ledger", where=patient.store.ledger(patient.plan.keys.training).folder)
    drawn = there[int(patient.generator("retraining").integers(there.height))]
    row = _rows(patient, drawn, "key", "seed", "policy", "replicate", "removed", "outputs").row(0, named=True)
    again = _retrain(patient, row)
    stored = np.asarray(row["outputs"], dtype=np.float64)
    scale = float(np.abs(stored).max()) or 1.0
    bench, manifest = patient.context, patient.train_artifact(row["seed"]).manifest()
    then, now = (f"torch {v} on {d}" for v, d in ((manifest["torch"], manifest["device"]), (torch.__version__, bench.device.type)))
    place = f"both with {now}" if then == now else f"then {then}, now {now}, which may round otherwise"
    finding = judge(
        "retraining",
        _largest(again, stored) / scale,
        ULPS_PER_STEP * float(np.finfo(np.float32).eps) * patient.num_steps,
        f"largest difference between the ledger's outputs without {len(row['removed'])} samples (key {row['key'][:12]}) and those of "
        f"a training done now, relative to the largest output; {place}; "
        f"bound: {ULPS_PER_STEP} float32 roundings for each of {patient.num_steps:,} steps",
        "a retraining must be a function of recipe, seed and removed set alone. On another machine, device or version of torch: "
        "examine where the run was made. Else the ledger was changed, or the model draws random numbers of its own",
        seed=row["seed"],
    )
    return [finding]


def wanted_keys(patient: Patient) -> pl.DataFrame:
    """Keys of all trained models behind the published results, originals included; one column, ``key``."""
    asked = _asked(patient)
    return pl.concat([asked.select("key"), asked.select(key="original_key")]).unique().sort("key")


def _asked(patient: Patient) -> pl.DataFrame:
    return read_requests(patient.plan, patient.store).collect()


def _rows(patient: Patient, keys: pl.DataFrame, *columns: str) -> pl.DataFrame:
    ledger = patient.store.ledger(patient.plan.keys.training).scan()
    return ledger.select(columns).join(keys.lazy(), on="key", how="semi").collect(engine="streaming")


def _differing(frame: pl.DataFrame, other: pl.DataFrame) -> int:
    """In how many rows two frames of one form differ."""
    differs = frame.select(pl.any_horizontal(pl.col(name).ne_missing(other[name]) for name in frame.columns)).to_series()
    return int(differs.sum())


def _retrain(patient: Patient, row: dict[str, Any]) -> npt.NDArray[np.float64]:
    """Outputs of the model of a ledger row, flattened; on one thread, as every unit of work runs."""
    wanted = Retraining(row["key"], row["seed"], row["policy"], tuple(row["removed"]), row["replicate"])
    with one_thread():
        return retrain(wanted, patient.context).outputs.ravel()


def _largest(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """Largest absolute difference; infinite for different shapes."""
    if found.shape != expected.shape:
        return float("inf")
    return float(np.abs(found - expected).max(initial=0.0))
