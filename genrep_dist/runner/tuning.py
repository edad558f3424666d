"""What an experiment leaves to be found out while it runs: how many seeds are enough, and which value of a parameter is best."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from genrep_dist.config import Experiment
from genrep_dist.config.keys import Keys
from genrep_dist.config.sections import StopSection, TuneSection
from genrep_dist.errors import ConfigError, NotCommittedError
from genrep_dist.evaluation.metrics import METRICS

# -- how many seeds ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Round:
    """After ``seeds`` seeds the ``method`` with the widest interval has this ``half_width``; ``projected`` seeds may be enough."""

    seeds: int
    method: str
    half_width: float
    projected: int


def judge_round(metrics: pl.DataFrame, stop: StopSection, seeds: int) -> Round:
    """The widest interval of the declared metric. A half-width falls with the square root of the number of seeds."""
    rows = metrics.filter(pl.col("metric") == stop.metric).with_columns(
        half_width=(pl.col("ci95_clustered_high") - pl.col("ci95_clustered_low")) / 2
    )
    if not rows.height or rows["half_width"].null_count():
        raise NotCommittedError(f"no interval of {stop.metric} is known", where="stop.metric", expected="an interval of every method")
    method, width = rows.sort(["half_width", "method"], descending=[True, False]).select("method", "half_width").row(0)
    projected = seeds if width <= stop.half_width else math.ceil(seeds * (width / stop.half_width) ** 2)
    return Round(seeds, method, width, max(seeds, projected))


def next_round(found: Round, stop: StopSection) -> int | None:
    """Seeds of the next round, or None when it is known, or when there are no more seeds.

    Between a quarter more and twice as many: an early projection is rough, and a round costs little beside its retrainings.
    Depends on the numbers alone, so that a run that was killed takes the same rounds again.
    """
    if found.half_width <= stop.half_width or found.seeds >= stop.max_seeds:
        return None
    return min(max(found.projected, found.seeds + math.ceil(found.seeds / 4)), 2 * found.seeds, stop.max_seeds)


# -- which value ---------------------------------------------------------------------------------------------------------------


def parameter_path(experiment: Experiment, parameter: str) -> tuple[str, ...]:
    """The path of a parameter that is named by its path or by its last name. ConfigError when there is none, or several."""
    leaves = [path for path in _leaves(experiment.resolved()) if path[0] in ("surrogate", "influence", "descent", "tracincp")]
    found = [path for path in leaves if ".".join(path) == parameter or path[-1] == parameter]
    if len(found) != 1:
        names = [".".join(path) for path in (found or leaves)]
        raise ConfigError(
            "this names no parameter of a method" if not found else "this names several parameters",
            where="tune.parameter",
            expected="one of " + ", ".join(names),
            got=parameter,
        )
    return found[0]


def candidates(experiment: Experiment, keys: Keys) -> list[tuple[Any, Experiment]]:
    """(value, the experiment that tries it) of every value: on the tuning seeds, with the methods that the parameter changes.

    ``keys`` are the content addresses of the experiment's problem. ConfigError when the values change no method.
    """
    tune = experiment.tune
    assert tune is not None
    path = parameter_path(experiment, tune.parameter)
    with_value = [(value, chosen(experiment, path, value)) for value in tune.values]
    own = [name for name in experiment.methods if name not in experiment.external_methods]
    addresses = {name: {_keys_of(keys, one).attribution(tune.seeds[0], one.method(name)) for _, one in with_value} for name in own}
    changed = [name for name in own if len(addresses[name]) > 1]
    if not changed:
        raise ConfigError(
            "these values change no method of the experiment",
            where=f"tune.parameter: {'.'.join(path)}",
            expected="a method that uses this parameter",
            got=", ".join(experiment.methods),
        )
    return [(value, one.with_fixed_seeds(seeds=list(tune.seeds), methods=changed, **_only(tune, one))) for value, one in with_value]


def chosen(experiment: Experiment, path: Sequence[str], value: Any) -> Experiment:
    """The experiment with one parameter set."""
    section = experiment.resolved()[path[0]]
    return experiment.with_fixed_seeds(**{path[0]: {**section, path[1]: value}})


def best_value(tune: TuneSection, means: Sequence[float]) -> int:
    """Which of the values is best by its mean of the metric; of equal ones the first."""
    better = max if METRICS[tune.metric].better == "larger" else min
    return means.index(better(means))


def _only(tune: TuneSection, experiment: Experiment) -> dict[str, Any]:
    """Changes that leave the experiment just the metric that is tuned for, and nothing about the methods left out."""
    changes: dict[str, Any] = {"baseline": None, "blocks": {}, "external": {}}
    if not tune.metric.startswith("auc_del"):
        changes["deletion"] = {"counts": [0], "signs": list(experiment.deletion.signs)}
    if tune.metric != "lds":
        changes["lds"] = None
    if tune.metric != "loo_correlation":
        changes["loo"] = None
    if not tune.metric.startswith("brittleness"):
        changes["brittleness"] = None
    return changes


def _keys_of(keys: Keys, experiment: Experiment) -> Keys:
    return replace(keys, experiment=experiment)


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, str(key)))
    else:
        yield path
