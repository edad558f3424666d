"""The section `tune` of an experiment: parameters whose values are chosen on seeds that are not reported."""

from __future__ import annotations

import math
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from genrep_dist.config.section import Section
from genrep_dist.config.sections import Seeds, expand_seeds

FIRST_TUNING_SEED = 1_000_000_000
"""First seed of ``tune: {seeds: n}``, far from any seed that is reported."""
MAX_COMBINATIONS = 64

TunedValue = float | int | str


def _different(values: tuple[TunedValue, ...]) -> tuple[TunedValue, ...]:
    if len(set(values)) < len(values) or not all(math.isfinite(value) for value in values if isinstance(value, float)):
        raise ValueError("finite values, all of them different")
    return values


TunedValues = Annotated[tuple[TunedValue, ...], Field(min_length=2), AfterValidator(_different)]


class TuneSection(Section):
    """Choose one parameter, or several in all combinations of a grid, on seeds that are not reported."""

    parameter: str | None = Field(
        None, description="Path of a number of the experiment (influence.damping), or its name if that is unique."
    )
    values: TunedValues | None = Field(None, description="Values to try.")
    grid: dict[str, TunedValues] = Field(
        default_factory=dict,
        description=f"In place of parameter and values: parameter -> values. All combinations are tried, at most {MAX_COMBINATIONS}.",
    )
    seeds: Seeds = Field(min_length=1, description="A number n, or a list of seeds. None of them may be a seed of the experiment.")
    metric: str = Field(
        "auc_del_negative", description="The value that is best in this metric is chosen, on average over affected methods."
    )
    settings: dict[str, Any] = Field(
        default_factory=dict,
        description="Settings of that metric while values are tried, for example fewer removals: {fractions: [0.0, 0.1]}. Default: "
        "those of the experiment.",
    )

    @model_validator(mode="before")
    @classmethod
    def _expand_seeds(cls, data: object) -> object:
        return expand_seeds(data, first=FIRST_TUNING_SEED)

    @model_validator(mode="after")
    def _one_parameter_or_a_grid(self) -> Self:
        if bool(self.grid) == (self.parameter is not None) or (self.parameter is None) != (self.values is None):
            raise ValueError("parameter and values, or grid: {parameter: values, ...}")
        if self.combinations > MAX_COMBINATIONS:
            raise ValueError(f"at most {MAX_COMBINATIONS} combinations of values (the grid has {self.combinations})")
        return self

    @property
    def values_by_parameter(self) -> dict[str, tuple[TunedValue, ...]]:
        """The values of each parameter, by the name that the experiment gives it."""
        return self.grid if self.parameter is None or self.values is None else {self.parameter: self.values}

    @property
    def combinations(self) -> int:
        """How many combinations of values are tried."""
        return math.prod(len(values) for values in self.values_by_parameter.values())
