"""The section of an experiment file about the numbers of per-sample features."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from genrep_dist.config.section import Section


class FeaturesSection(Section):
    """The numbers of per-sample features."""

    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="bfloat16 rounds the features of training samples to 8 significant bits wherever they are used, and stores them in "
        "half the bytes. Those of test points are not rounded. Sums and solves are in float32 and float64 as before. Scores "
        "that are not made of stored features (ekfac, datainf, gradcos) do not change.",
    )
