"""The report in a real browser: it works, and nothing is written to the console."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from genrep_dist.report.examples import removal_example
from genrep_dist.report.page import html_page
from tests.browser import needs_browser, run_in_browser
from tests.report import synthetic
from tests.report.test_examples import FakeRun, deletions

pytestmark = [pytest.mark.publishes, needs_browser]

CHECK = """
  const table = document.querySelector("#methods table.sortable");
  const column = (index) => [...table.tBodies].map((body) =>
    [...body.rows].filter((row) => row.cells.length > 1).map((row) => row.cells[index].textContent));
  const heading = (index) => table.tHead.rows[0].cells[index];
  const chart = document.querySelector("#figure-curves-negative .chart");
  const button = chart.querySelector(".legend button");
  const series = () => [...chart.querySelectorAll(`.series[data-series="${button.dataset.series}"]`)].map(
    (group) => getComputedStyle(group).display);
  const found = { methods: column(0), means: column(1) };
  found.names = [...chart.querySelectorAll(".legend button")].map((one) => one.textContent);
  heading(0).click();
  found.byName = column(0);
  found.sortedColumn = heading(0).getAttribute("aria-sort");
  heading(1).click();
  found.byMean = column(1);
  heading(1).click();
  found.byMeanAscending = column(1);
  found.ascending = heading(1).getAttribute("aria-sort");
  found.shownBefore = series();
  button.click();
  found.shownAfter = series();
  found.pressed = button.getAttribute("aria-pressed");
  button.click();
  found.shownAgain = series();
  const broad = [...chart.querySelectorAll(":scope > svg")].find((picture) => picture.getBoundingClientRect().width > 0);
  const box = broad.getBoundingClientRect();
  broad.dispatchEvent(new PointerEvent("pointermove", { clientX: box.right - 5, clientY: box.top + 20, bubbles: true }));
  found.tip = chart.querySelector(".tip").hidden ? "" : chart.querySelector(".tip").textContent;
  found.form = broad.getAttribute("class");
  found.pageWidth = document.documentElement.scrollWidth;
  found.windowWidth = window.innerWidth;
  const legend = chart.querySelector(".legend").getBoundingClientRect();
  found.legend = [legend.left, legend.right, legend.height];
  found.textSize = Math.min(...[...broad.querySelectorAll("text")].map((text) => text.getBoundingClientRect().height));
  found.cutHeadings = [...document.querySelectorAll("h1, h2, h3, p")].filter(
    (one) => one.getBoundingClientRect().right > window.innerWidth).map((one) => one.textContent);
  found.pictures = [...document.querySelectorAll(".removal img")].map((image) => image.complete && image.naturalWidth > 0);
  found.anchors = [...document.querySelectorAll("nav a")].map((link) => document.querySelector(link.getAttribute("href")) !== null);
  return found;
"""


def page(shape: tuple[int, ...] = (1, 4, 4)) -> str:
    removal = removal_example(FakeRun(shape), deletions(), ["good", "random"], random="random")
    return html_page(replace(synthetic.report(metrics=("auc_del_negative", "lds")), removal=removal, blocks={}))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[str]]:
    return run_in_browser(page(), tmp_path_factory.mktemp("browser"), CHECK)


def values(texts: list[str]) -> list[float]:
    return [float(text.rstrip("*†‡↓").replace("\N{MINUS SIGN}", "-")) for text in texts]


def test_the_console_stays_empty(found: tuple[dict[str, Any], list[str]]) -> None:
    assert found[1] == []


def test_the_table_has_the_numbers_best_first(found: tuple[dict[str, Any], list[str]]) -> None:
    metrics = synthetic.judged(metrics=("auc_del_negative",)).metrics.sort("mean", descending=True)
    (methods,), (means,) = found[0]["methods"], found[0]["means"]
    assert methods == metrics["method"].to_list()
    assert values(means) == pytest.approx(metrics["mean"].to_list(), abs=0.006)


def test_a_click_on_a_heading_sorts_by_its_column(found: tuple[dict[str, Any], list[str]]) -> None:
    names = found[0]["byName"][0]
    assert sorted(names) == sorted(synthetic.NAMES)
    assert names != found[0]["methods"][0]
    assert names[0] == "influence-function"
    means = values(found[0]["byMean"][0])
    assert means == sorted(means, reverse=True)
    assert values(found[0]["byMeanAscending"][0]) == sorted(means)
    assert (found[0]["sortedColumn"], found[0]["ascending"]) == ("ascending", "ascending")


def test_a_method_is_switched_off_and_on(found: tuple[dict[str, Any], list[str]]) -> None:
    assert sorted(found[0]["names"]) == sorted(synthetic.NAMES)
    assert set(found[0]["shownBefore"]) == set(found[0]["shownAgain"]) == {"inline"}
    assert set(found[0]["shownAfter"]) == {"none"}
    assert found[0]["pressed"] == "false"


def test_the_pointer_shows_the_values_of_all_methods(found: tuple[dict[str, Any], list[str]]) -> None:
    assert found[0]["tip"].startswith("10 %")
    assert all(f"{name}: " in found[0]["tip"] for name in synthetic.NAMES)


def test_pictures_load_and_contents_lead_somewhere(found: tuple[dict[str, Any], list[str]]) -> None:
    assert found[0]["pictures"]
    assert all(found[0]["pictures"])
    assert len(found[0]["anchors"]) > 5
    assert all(found[0]["anchors"])


def test_on_a_phone_nothing_is_wider_than_the_window(tmp_path: Path) -> None:
    # An example of wide tables, which scroll by themselves.
    found, console = run_in_browser(page((12,)), tmp_path, CHECK, width=390)
    assert console == []
    assert (found["form"], found["windowWidth"]) == ("slim", 390)
    assert found["pageWidth"] <= 390
    assert found["cutHeadings"] == []
    left, right, height = found["legend"]
    assert 0 <= left < right <= 390
    assert height > 0
    assert found["textSize"] > 9, "texts in figures are readable"
