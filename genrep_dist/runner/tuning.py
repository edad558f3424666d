"""Decisions that depend on results: how many seeds are enough, and which value of a parameter is best."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from genrep_dist.config import Experiment
from genrep_dist.config.keys import Keys
from genrep_dist.config.metrics import only_metric, with_metric_settings
from genrep_dist.config.sections import StopSection
from genrep_dist.config.tuning import TuneSection
from genrep_dist.core.importances import IMPORTANCES
from genrep_dist.core.importances.base import Importance
from genrep_dist.core.kernels import KERNELS
from genrep_dist.core.kernels.base import Kernel
from genrep_dist.errors import ConfigError, NotCommittedError
from genrep_dist.evaluation.metrics.base import metric_info

# -- how many seeds ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Precision:
    """After ``seeds`` seeds, ``method`` has the widest interval, with this ``half_width``; ``projected`` seeds should be enough."""

    seeds: int
    method: str
    half_width: float
    projected: int


def measure_precision(metrics: pl.DataFrame, stop: StopSection, seeds: int) -> Precision:
    """The widest interval of the declared metric. A half-width is proportional to 1 / sqrt(seeds)."""
    rows = metrics.filter(pl.col("metric") == stop.metric).with_columns(
        half_width=(pl.col("ci95_clustered_high") - pl.col("ci95_clustered_low")) / 2
    )
    if not rows.height or rows["half_width"].null_count():
        raise NotCommittedError(f"no interval of {stop.metric} is known", where="stop.metric", expected="an interval of every method")
    method, width = rows.sort(["half_width", "method"], descending=[True, False]).select("method", "half_width").row(0)
    projected = seeds if width <= stop.half_width else math.ceil(seeds * (width / stop.half_width) ** 2)
    return Precision(seeds, method, width, max(seeds, projected))


def next_num_seeds(found: Precision, stop: StopSection) -> int | None:
    """Seeds of the next round; None if the interval is narrow enough, or no more seeds are allowed.

    A round adds between a quarter of the seeds and as many again, because an early projection is rough. It depends on the numbers alone,
    so that a resumed run takes the same rounds.
    """
    if found.half_width <= stop.half_width or found.seeds >= stop.max_seeds:
        return None
    return min(max(found.projected, found.seeds + math.ceil(found.seeds / 4)), 2 * found.seeds, stop.max_seeds)


# -- which value ---------------------------------------------------------------------------------------------------------------


def parameter_path(experiment: Experiment, parameter: str) -> tuple[str, ...]:
    """The path of a parameter, given by its path or by its last name. ConfigError if there is none, or if several have the name."""
    kinds: tuple[type[Kernel | Importance], ...] = (*KERNELS.usable(), *IMPORTANCES.usable())
    sections = {"tracincp", *(field for kind in kinds for field in kind.settings)}
    leaves = [path for path in _leaves(experiment.resolved()) if len(path) > 1 and path[0] in sections]
    found = [path for path in leaves if ".".join(path) == parameter or path[-1] == parameter]
    if len(found) != 1:
        names = [".".join(path) for path in (found or leaves)]
        raise ConfigError(
            "this names no parameter of a method" if not found else "this names several parameters",
            where="tune.parameter",
            expected="one of " + ", ".join(names),
            got=parameter,
            remedy="write the path of one of them",
        )
    return found[0]


Setting = dict[str, Any]
"""Path of a parameter, joined by dots -> its value."""


def check_tuning(experiment: Experiment, keys: Keys) -> None:
    """Raise ConfigError, as :func:`candidates` does, for what ``tune`` names and the experiment cannot vary."""
    if experiment.tune is not None:
        _tuned_parameters(experiment, keys)


def candidates(experiment: Experiment, keys: Keys) -> list[tuple[Setting, Experiment]]:
    """(setting, the experiment with it) for all combinations of values, on the tuning seeds, with the tuned metric and the methods that
    the parameters change.

    ``keys`` are the content addresses of the experiment's problem. ConfigError for a parameter that does not exist or that is named twice,
    for values that it does not accept or that are equal, and if they change no method.
    """
    tune = experiment.tune
    assert tune is not None
    values, changed = _tuned_parameters(experiment, keys)
    fields: dict[str, Any] = {
        "seeds": list(tune.seeds),
        "methods": [name for name in experiment.methods if name in changed],
        "baseline": None,
        "blocks": {},
        "external": {},
    }
    if tune.settings:
        experiment = with_metric_settings(experiment, tune.metric, tune.settings)
    settings = [dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values())]
    tried = [(setting, with_setting(experiment, setting)) for setting in settings]
    return [(setting, only_metric(one.with_fixed_seeds(**fields), tune.metric)) for setting, one in tried]


def _tuned_parameters(experiment: Experiment, keys: Keys) -> tuple[Mapping[str, Sequence[Any]], set[str]]:
    """The values of each tuned parameter, by its path, and the names of the methods whose scores they change."""
    tune = experiment.tune
    assert tune is not None
    values = {".".join(parameter_path(experiment, name)): values for name, values in tune.values_by_parameter.items()}
    if len(values) < len(tune.values_by_parameter):
        expected, got = "different parameters", ", ".join(tune.values_by_parameter)
        raise ConfigError("two names of one parameter", where="tune.grid", expected=expected, got=got, remedy="remove one of the two")
    return values, {name for path in values for name in _changed_methods(experiment, keys, path, values[path], tune.seeds[0])}


def _changed_methods(experiment: Experiment, keys: Keys, path: str, values: Sequence[Any], seed: int) -> list[str]:
    """Names of the methods whose scores one parameter changes; ConfigError if there are none."""
    own = [name for name in experiment.methods if name not in experiment.external_methods]
    tried = [_with_tuned_value(experiment, path, value) for value in values]
    if any(one == other for one, other in itertools.combinations(tried, 2)):
        raise ConfigError(
            "two values of a tuned parameter are equal",
            where=f"tune: {path}",
            expected="different values",
            got=", ".join(map(str, values)),
            remedy="remove one of the two",
        )
    addresses = {name: {replace(keys, experiment=one).attribution(seed, one.method(name)) for one in tried} for name in own}
    changed = [name for name in own if len(addresses[name]) > 1]
    if not changed:
        raise ConfigError(
            "these values change no method of the experiment",
            where=f"tune: {path}",
            expected="a method that uses this parameter",
            got=", ".join(experiment.methods),
            remedy="add a method that uses it to methods, or tune another parameter",
        )
    return changed


def _with_tuned_value(experiment: Experiment, path: str, value: Any) -> Experiment:
    """The experiment with one value of a tuned parameter; ConfigError that names ``tune`` for one that it does not accept."""
    try:
        return with_setting(experiment, {path: value})
    except ConfigError as error:
        reason = error.what.splitlines()[-1].strip()
        raise ConfigError(f"a value to try is refused: {reason}", where=f"tune: {path}", remedy="correct or remove this value") from error


def with_setting(experiment: Experiment, setting: Mapping[str, Any]) -> Experiment:
    """The experiment with some parameters set."""
    sections = experiment.resolved()
    for path, value in setting.items():
        section, _, name = path.partition(".")
        sections[section] = {**sections[section], name: value}
    return experiment.with_fixed_seeds(**{path.partition(".")[0]: sections[path.partition(".")[0]] for path in setting})


def recorded(setting: Mapping[str, Any]) -> Any:
    """A setting as the record of a run has it: the value alone of one parameter, and all parameters with their values of several."""
    return dict(setting) if len(setting) > 1 else next(iter(setting.values()))


def setting_text(setting: Mapping[str, Any]) -> str:
    """A setting in one line."""
    return ", ".join(f"{path} = {value}" for path, value in setting.items())


def best_value(tune: TuneSection, means: Sequence[float]) -> int:
    """Index of the best setting by its mean of the metric; of equal ones the first."""
    direction = metric_info(tune.metric).direction
    return max(range(len(means)), key=lambda index: direction * means[index])


def equal_to_best(about: Mapping[str, Any]) -> list[Any]:
    """The tried values whose mean is that of the chosen one, which is the first of them; ``about`` is a run's record of its tuning."""
    best = next(one["mean"] for one in about["tried"] if one["value"] == about["chosen"])
    return [one["value"] for one in about["tried"] if one["mean"] == best]


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, str(key)))
    else:
        yield path
