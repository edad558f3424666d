"""The view of an experiment's methods in MLflow's pages: which charts, columns and order they begin with, as data.

MLflow keeps a view that somebody shares ("Share" on its page of runs) as a tag of its experiment; a link names the tag. Without a view
its page begins with a chart for each metric, in alphabetical order.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

from genrep_dist.tracking.publication import MethodRun

SHARED_VIEW = "mlflow.sharedViewState."
"""What the names of the tags begin with; the rest is the key in links."""
MAX_TAG = 5000
"""Characters of an experiment's tag that MLflow accepts."""
COSTS = ("explanation_seconds", "retrainings", "retraining_seconds")
AXES = ("kernel", "checkpoint", "importance")
_INTERVAL = ("", "_ci95_low", "_ci95_high")
_SHOWN_RUNS = 20
_MAX_COLUMNS = 10


def shared_view(children: Sequence[MethodRun], run_filter: str) -> str:
    """The value of the tag: the methods that ``run_filter`` selects, best first.

    First the main metric with the ends of its interval, its curves over each other, and parallel coordinates; then the costs; then the
    other metrics with the ends of their intervals. Charts that do not fit into the tag are left out, from the last one: MLflow's page can
    add them.
    """
    found = dict.fromkeys(measurement.name for child in children for measurement in child.measurements)
    main = next(iter(found))
    curves = [name for name in found if name.startswith("del_")]
    metrics = [name.removesuffix("_ci95_low") for name in found if name.endswith("_ci95_low") and name != f"{main}_ci95_low"]
    parts: dict[str, list[dict[str, Any]]] = {
        "Comparison": [*_bars(f"{main}{end}" for end in _INTERVAL), *map(_line, curves), _parallel(main)],
        "Cost": _bars(COSTS),
        "Other metrics": [chart for metric in metrics for chart in _bars(f"{metric}{end}" for end in _INTERVAL)],
    }
    charts = [
        {**chart, "uuid": f"genrep-{section}-{number}", "metricSectionId": f"genrep-{section}", "deleted": False, "isGenerated": False}
        for section, part in enumerate(parts.values())
        for number, chart in enumerate(chart for chart in part if chart["metricKey"] in found)
    ]
    view = {
        "searchFilter": run_filter,
        "orderByKey": f"metrics.`{main}`",
        "orderByAsc": False,
        "selectedColumns": [
            *(
                f"metrics.`{name}`"
                for name in (main, *(f"{main}{end}" for end in _INTERVAL[1:]), *metrics[:_MAX_COLUMNS], *COSTS)
                if name in found
            ),
            *(f"params.`{name}`" for name in AXES),
        ],
        "compareRunSections": [
            {"uuid": f"genrep-{section}", "name": name, "display": True, "isReordered": True} for section, name in enumerate(parts)
        ],
        "isAccordionReordered": True,
    }
    while True:
        value = _compressed({**view, "compareRunCharts": charts})
        if len(value) <= MAX_TAG or not charts:
            return value
        charts.pop()


def _compressed(view: dict[str, Any]) -> str:
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(view, separators=(",", ":")).encode(), 9)).decode()


def _bars(names: Iterable[str]) -> list[dict[str, Any]]:
    return [{"type": "BAR", "metricKey": name, "displayName": name, "runsCountToCompare": _SHOWN_RUNS} for name in names]


def _line(name: str) -> dict[str, Any]:
    """All values of one metric over its steps, a line for each method."""
    return {
        "type": "LINE",
        "metricKey": name,
        "selectedMetricKeys": [name],
        "displayName": name,
        "runsCountToCompare": _SHOWN_RUNS,
        "lineSmoothness": 0,
        "xAxisKey": "step",
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": False,
        "useGlobalLineSmoothing": False,
    }


def _parallel(main: str) -> dict[str, Any]:
    return {
        "type": "PARALLEL",
        "metricKey": main,
        "selectedParams": list(AXES),
        "selectedMetrics": [main],
        "displayName": "kernel, checkpoint, importance",
        "runsCountToCompare": _SHOWN_RUNS,
        "showAllRuns": False,
    }
