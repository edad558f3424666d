"""The metrics: one class in one file each, and one line in the registry (:data:`genrep_dist.config.metrics.METRICS`)."""

from __future__ import annotations

from genrep_dist.evaluation.metrics.base import Metric, MetricInfo, metric_info, metric_infos, register, registered_metrics

__all__ = ["Metric", "MetricInfo", "metric_info", "metric_infos", "register", "registered_metrics"]
