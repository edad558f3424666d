"""Tracked importances (Eq. 10): the sum of the steps that training took along each sample's output derivative."""

from __future__ import annotations

from genrep_dist.core.importances.base import TrackedImportance


class TrackedDerivative(TrackedImportance):
    """Alpha_i = -sum_t eta_t/|B_t| dL/df(f_t(x_i), y_i) over the steps whose batch holds sample i."""

    name = "tracking"
    formula = "-sum_t eta_t/|B_t| dL/df(f_t(x_i), y_i)"
    source = "tracking representers, Tsai et al. 2023, Eq. 10"
    needs = ("tracking",)
    array = "tracking"
    follows_training = True
