"""The settings of ensembles: scores that are means over several networks."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from genrep_dist.config.section import Section


class EnsembleSection(Section):
    """A method's scores, averaged over networks that were trained on the same data."""

    method: str = Field(
        description="The method whose scores are averaged: not random, external, or with the importances surrogate or descent."
    )
    over: Literal["seeds"] = Field(
        "seeds",
        description="seeds: the explained network and others of further seeds, which are not reported. Each seed has its own others.",
    )
    size: int = Field(10, ge=2, le=1000, description="Networks, the explained one included.")
