"""MLflow's pages in a real browser: what they show of a published experiment, without a click in their settings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from mlflow import MlflowClient

from genrep_dist.tracking.mlflow_tracker import TrackingLink, publish
from tests.browser import browser_page, needs_browser
from tests.tracking.examples import METHODS, publication

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.publishes, needs_browser]

OF_MLFLOW = (
    # It asks for the user's name; a server without accounts has none.
    r"error: Failed to load resource: the server responded with a status of 404",
    r"error: (null )?ResizeObserver loop completed with undelivered notifications",
    r"warning: AG Grid: since v[\d.]+",
    r"warning: \[\.WebGL",
)
"""What MLflow's pages write to the console whatever is shown."""
NO_HEIGHT = r"error: Error: <(g|path|rect)> attribute \w+: .*(NaN|A negative value)"
"""What MLflow's parallel coordinates write, now and then, when they are drawn before their frame has its height."""


@pytest.fixture
def link(server: str) -> TrackingLink:
    made = publication(signs=("negative", "positive"), description="**ntk-final/tracking** leads.")
    return publish(made, tracking_uri=server)


@pytest.fixture
def shown(link: TrackingLink) -> Iterator[tuple[Page, list[str]]]:
    # A window in which the names of charts are not cut.
    with browser_page(width=1900, height=1600) as (page, console):
        # Otherwise an assistant opens in the first page, and covers a third of it.
        page.add_init_script('if (location.hostname) localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true")')
        yield page, console


def links_of_description(link: TrackingLink) -> dict[str, str]:
    note = MlflowClient(tracking_uri=link.tracking_uri).get_run(link.run_id).data.tags["mlflow.note.content"]
    return dict(re.findall(r"\[([^\]]+)\]\((#[^)]+)\)", note))


def test_pages_show_the_experiment_and_its_methods(link: TrackingLink, shown: tuple[Page, list[str]], tmp_path: Path) -> None:
    page, console = shown
    links = links_of_description(link)

    def visit(address: str) -> None:
        # Only another part after # loads no page.
        page.goto("about:blank")
        page.goto(f"{link.tracking_uri}/{address}")

    def see(*texts: Any) -> None:
        for text in texts:
            page.get_by_text(text, exact=isinstance(text, str)).first.wait_for()

    # The experiment: its run, with the methods folded under it.
    visit(f"#/experiments/{link.experiment_id}/runs?workflowType=machine_learning")
    see("demo", re.compile("^digits train"))

    # Charts of its methods: the main metric with its interval, the curves over each other, and the costs.
    visit(links["charts of all methods"])
    see("Comparison", "Cost", *(method.name for method in METHODS))
    see(*(f"auc_del_negative{end}" for end in ("", "_ci95_low", "_ci95_high")), "del_negative", "del_positive", "retrainings")
    page.locator(".js-plotly-plot .scatterlayer .trace").first.wait_for()
    page.locator(".js-plotly-plot .barlayer .trace").first.wait_for()

    # The table: the methods best first, with the main metric first.
    visit(links["table"])
    see("auc_del_negative", "kernel", *(method.name for method in METHODS))
    rows = page.locator(".ag-pinned-left-cols-container, .ag-center-cols-container").all_inner_texts()
    assert [rows[0].index(method.name) for method in METHODS] == sorted(rows[0].index(method.name) for method in METHODS)

    # Parallel coordinates: what distinguishes the methods, and the main metric.
    before = len(console)
    visit(links["parallel coordinates"])
    page.locator(".parcoords").first.wait_for()
    axes = page.locator(".parcoords .axis-title").all_text_contents()
    assert {"kernel", "checkpoint", "importance", "auc_del_negative"} <= set(axes)
    page.goto("about:blank")
    console[before:] = [line for line in console[before:] if not re.match(NO_HEIGHT, line)]

    # One method: parameters, metrics, charts.
    method = METHODS[0]
    child = f"#/experiments/{link.experiment_id}/runs/{link.runs[method.name]}"
    visit(child)
    see("Finished", "auc_del_negative", "kernel", "importance", "recipe.epochs", "20", re.compile("^digits train"))
    visit(f"{child}/model-metrics")
    see("del_negative", "auc_del_negative_by_seed")
    page.locator(".js-plotly-plot .scatterlayer .trace").first.wait_for()

    assert [line for line in console if not any(re.match(known, line) for known in OF_MLFLOW)] == []
