"""The settings of the metric `relabel`."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from genrep_dist.config.sections import RetrainSection


class RelabelSection(RetrainSection):
    """Models trained with other labels of some samples, against the change that kernels and importances predict."""

    samples: Annotated[int, Field(ge=2)] | tuple[Annotated[int, Field(ge=0)], ...] = Field(
        32, description="Number of training samples per seed, drawn uniformly; or a list of sample ids for all seeds."
    )
    size: int = Field(1, ge=1, description="Samples that are relabelled together. Each is in one such set.")
    label: Annotated[float, Field(allow_inf_nan=False)] | None = Field(
        None, description="The new target of all of them. Default: the next class, which with two classes is the other one."
    )

    @property
    def num_samples(self) -> int:
        return self.samples if isinstance(self.samples, int) else len(self.samples)

    @property
    def num_sets(self) -> int:
        """Sets of ``size`` samples; those of an incomplete one are left out."""
        return self.num_samples // self.size

    @model_validator(mode="after")
    def _has_sets(self) -> Self:
        if not isinstance(self.samples, int) and len(set(self.samples)) != len(self.samples):
            raise ValueError("different ids of samples")
        if self.num_sets < 2:
            raise ValueError(f"samples for at least two sets of size {self.size}")
        return self
