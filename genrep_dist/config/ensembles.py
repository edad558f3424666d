"""The settings of ensembles: scores that are means over several models."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from genrep_dist.config.section import Section
from genrep_dist.core.kernels import KERNELS
from genrep_dist.core.methods import Method


class EnsembleSection(Section):
    """A method's scores, averaged over models that were trained on the same data."""

    method: str = Field(
        description="The method whose scores are averaged: not random, external, or with the importances surrogate or descent."
    )
    over: Literal["seeds", "checkpoints", "dropout"] = Field(
        "seeds",
        description="seeds: the explained network and others of further seeds, which are not reported. Each seed has its own others. "
        "checkpoints: the explained network after different numbers of epochs, evenly spread, the final parameters included. "
        "The method is a kernel at `final`, and the kernel is defined at other checkpoints too. "
        "dropout: random subnetworks of the explained network, each by one mask of its dropout layers for all samples.",
    )
    size: int = Field(
        10, ge=2, le=1000, description="Models, the explained one included but for dropout; checkpoints at most as many as epochs."
    )


def defined_at_checkpoints(method: Method) -> bool:
    """Whether a method is that of a kernel at the final parameters, and the kernel is defined at other checkpoints too."""
    if not method.has_kernel or method.checkpoint != "final":
        return False
    # A kernel of the user's own says when it is built where it is defined.
    return method.kernel not in KERNELS or KERNELS.get(method.kernel).supports("middle", needs_gram=False)
