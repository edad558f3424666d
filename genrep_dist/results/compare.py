"""Two runs side by side: their methods with the differences, and what differs in their configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from genrep_dist.errors import StoreError
from genrep_dist.evaluation.intervals import Array, bootstrap_interval, expanded_levels, resampled_means
from genrep_dist.evaluation.statistics import seed_means
from genrep_dist.problems.digests import Identity
from genrep_dist.results.run import Run

_NOT_COMPARED = ("name", "profile", "tracking", "resources", "blocks")
"""Fields of an experiment that change no number."""
_SCHEMA: Mapping[str, Any] = {
    "metric": pl.String,
    "method": pl.String,
    "first": pl.Float64,
    "second": pl.Float64,
    "difference": pl.Float64,
    "ci95_low": pl.Float64,
    "ci95_high": pl.Float64,
    "paired": pl.Boolean,
}


@dataclass(frozen=True)
class Change:
    """A field that differs between two runs. None where a run does not have it."""

    field: str
    first: Any
    second: Any

    @property
    def changes_the_meaning(self) -> bool:
        """Whether the numbers of the two runs measure different things because of it."""
        return self.field in ("data", "loss") or self.field.startswith("target.")


@dataclass(frozen=True)
class Comparison:
    """Two runs, ``first`` and ``second`` by name.

    ``methods``: one row a (metric, method) that at least one run has: the mean of each run; ``difference``, second minus first, with its
    95% interval over seeds; ``paired``, whether it is of the same seeds. ``changes``: fields of the configuration and parts of the code.
    """

    first: str
    second: str
    methods: pl.DataFrame
    changes: list[Change]

    @property
    def warnings(self) -> list[str]:
        """What forbids to compare the numbers of the two runs."""
        fields = [change.field for change in self.changes if change.changes_the_meaning]
        if not fields:
            return []
        return [f"the runs differ in {', '.join(fields)}: their numbers measure different things and cannot be compared"]


def compare_runs(first: Run, second: Run) -> Comparison:
    """Compare two finished runs, of one store or of two. NotCommittedError if one is not finished.

    If both runs have the same seeds, the difference is paired by seed: both have trained with the same random numbers. Otherwise the runs
    are independent samples, and the interval is that of the difference of two bootstrap means. It is null with one seed.
    """
    if first.store.uri == second.store.uri and first.name == second.name:
        raise StoreError("this is one run, not two", where=first.store.uri, expected="two different runs", got=f"{first.name} twice")
    return Comparison(first.name, second.name, _methods(first, second), list(_changes(first.record, second.record)))


def _methods(first: Run, second: Run) -> pl.DataFrame:
    one, two = _per_seed(first), _per_seed(second)
    rows = []
    for metric, method in dict.fromkeys((*one, *two)):
        mine, other = one.get((metric, method)), two.get((metric, method))
        means = [None if found is None else float(found[1].mean()) for found in (mine, other)]
        if mine is None or other is None:
            rows.append((metric, method, *means, None, None, None, None))
            continue
        paired = mine[0] == other[0]
        ends = bootstrap_interval(other[1] - mine[1]) if paired else _independent_interval(mine[1], other[1])
        rows.append((metric, method, *means, float(other[1].mean() - mine[1].mean()), *ends, paired))
    return pl.DataFrame(rows, schema=dict(_SCHEMA), orient="row")


def _per_seed(run: Run) -> dict[tuple[str, str], tuple[list[int], Array]]:
    """The seeds (S,) and their means (S,) of each (metric, method), in the order of the run."""
    means = seed_means(run.points().collect(), run.record["experiment"]["methods"]).sort("seed", maintain_order=True)
    found = means.group_by(["metric", "method"], maintain_order=True).agg("seed", "value")
    by_key = {(row["metric"], row["method"]): (row["seed"], np.asarray(row["value"])) for row in found.iter_rows(named=True)}
    order = {(row["metric"], row["method"]): None for row in run.metrics().iter_rows(named=True)}
    return {key: by_key[key] for key in order if key in by_key}


def _independent_interval(first: Array, second: Array) -> tuple[float, float] | tuple[None, None]:
    """Bootstrap 95% interval of ``second.mean() - first.mean()``, (S,) each, resampled independently of each other."""
    fewest = min(len(first), len(second))
    if fewest < 2:
        return None, None
    draws = [next(resampled_means(values[None], seed=seed))[0] for seed, values in enumerate((first, second))]
    low, high = np.quantile(draws[1] - draws[0], expanded_levels(fewest))
    return float(low), float(high)


def _changes(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[Change]:
    """The differences of two records: the experiments' fields, the recipes in force, the code, the data."""
    # The recipe in force instead of the declared changes to the problem's own.
    kept = [{name: value for name, value in one["experiment"].items() if name not in _NOT_COMPARED} for one in (first, second)]
    fields = [_flat({**experiment, "recipe": one["recipe"]}) for experiment, one in zip(kept, (first, second), strict=True)]
    for name in dict.fromkeys((*fields[0], *fields[1])):
        values = [found.get(name) for found in fields]
        if values[0] != values[1]:
            yield Change(name, *values)
    if first["loss"] != second["loss"]:
        yield Change("loss", first["loss"], second["loss"])
    if first["data"] != second["data"]:
        yield Change("data", *(_version(str(one["data"])) for one in (first, second)))
    identities = [one.get("identities", {}) for one in (first, second)]
    for label in dict.fromkeys((*identities[0], *identities[1])):
        found = [one.get(label) for one in identities]
        if found[0] is None or found[1] is None:
            continue
        old, new = (Identity.from_record(one) for one in found)
        yield from _code_changes(label, old, new)
    if first.get("package") != second.get("package"):
        yield Change("version of genrep_dist", first.get("package"), second.get("package"))


def _code_changes(label: str, old: Identity, new: Identity) -> Iterator[Change]:
    """What differs between two versions of one class: its source files, its form with the values, the numbers of its tensors."""
    for module in dict.fromkeys((*old.files, *new.files)):
        values = [one.files.get(module) for one in (old, new)]
        if values[0] != values[1]:
            yield Change(f"source of {module}", *(None if value is None else _version(value) for value in values))
    forms = [one.form | one.computed for one in (old, new)]
    for place in dict.fromkeys((*forms[0], *forms[1])):
        values = [form.get(place) for form in forms]
        if values[0] != values[1]:
            yield Change(f"{label}: {place}", *(None if value is None else _plain(value) for value in values))
    for place in dict.fromkeys((*old.values, *new.values)):
        numbers = [one.values.get(place) for one in (old, new)]
        if numbers[0] != numbers[1]:
            yield Change(f"{label}: numbers of {place}", *(None if one is None else _version(one.digest) for one in numbers))


def _plain(text: str) -> str:
    """A canonical text for people: without the types of numbers and texts."""
    return _version(text) if re.fullmatch("[0-9a-f]{64}", text) else re.sub(r"\b(?:int|float|bool|str) (?=\S)", "", text)


def _version(digest: str) -> str:
    """What is known by its digest alone."""
    return f"version {digest[:8]}"


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Leaves of nested mappings by their path, joined by dots. Lists are leaves."""
    if not isinstance(value, dict) or not value:
        return {path: value}
    return {name: leaf for key, inner in value.items() for name, leaf in _flat(inner, f"{path}.{key}" if path else str(key)).items()}
