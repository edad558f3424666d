"""The section of an experiment file that says which scores are kept."""

from __future__ import annotations

from pydantic import Field

from genrep_dist.config.section import Section


class AttributionsSection(Section):
    """Which scores of the training samples are kept."""

    top: int | None = Field(
        None,
        ge=1,
        description="Keep only so many of the strongest negative and of the strongest positive training samples of each test point and "
        "method, instead of the scores of all. Removals are the same. Default: all scores.",
    )
