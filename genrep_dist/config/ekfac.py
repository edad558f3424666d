"""The settings of EK-FAC."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from genrep_dist.config.section import Section


class EkfacSection(Section):
    """EK-FAC (George et al. 2018; Grosse et al. 2023). Its damping is that of the section influence."""

    fisher: Literal["ggn", "empirical"] = Field(
        "ggn",
        description="Whose factors: ggn, the Gauss-Newton matrix, which is the Fisher matrix for logistic, softmax and squared losses, "
        "exactly and without drawn labels; empirical: the loss's own gradients at the data's labels.",
    )
    relative_to: Literal["layer", "model"] = Field(
        "layer",
        description="With influence.damping_unit: mean-eigenvalue, the eigenvalues whose mean is the unit of the damping: of each layer, "
        "as in the literature, or of the whole curvature.",
    )
