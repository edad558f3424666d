"""The report in a real browser: it works, and nothing is written to the console."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from genrep_dist.report.examples import removal_example
from genrep_dist.report.page import html_page
from tests.browser import browser_page, needs_browser
from tests.report import synthetic
from tests.report.test_examples import FakeRun, deletions

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.publishes, needs_browser]

MEASURE = """() => {
  const chart = document.querySelector("#figure-curves-negative .chart");
  const broad = [...chart.querySelectorAll(":scope > svg")].find((picture) => picture.getBoundingClientRect().width > 0);
  const legend = chart.querySelector(".legend").getBoundingClientRect();
  return {
    form: broad.getAttribute("class"),
    pageWidth: document.documentElement.scrollWidth,
    windowWidth: window.innerWidth,
    legend: [legend.left, legend.right, legend.height],
    textSize: Math.min(...[...broad.querySelectorAll("text")].map((text) => text.getBoundingClientRect().height)),
    cutHeadings: [...document.querySelectorAll("h1, h2, h3, p")].filter(
      (one) => one.getBoundingClientRect().right > window.innerWidth).map((one) => one.textContent),
    pictures: [...document.querySelectorAll(".removal img")].map((image) => image.complete && image.naturalWidth > 0),
    anchors: [...document.querySelectorAll("nav a")].map((link) => document.querySelector(link.getAttribute("href")) !== null),
  };
}"""
CHART = "#figure-curves-negative .chart"


def page(shape: tuple[int, ...] = (1, 4, 4)) -> str:
    removal = removal_example(FakeRun(shape), deletions(), ["good", "random"], random="random")
    return html_page(replace(synthetic.report(metrics=("auc_del_negative", "lds")), removal=removal, blocks={}))


def write(folder: Path, shape: tuple[int, ...] = (1, 4, 4)) -> str:
    file = folder / "page.html"
    file.write_text(page(shape), encoding="utf-8")
    return file.as_uri()


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Page, list[str]]]:
    with browser_page() as (window, console):
        window.goto(write(tmp_path_factory.mktemp("browser")))
        yield window, console


def column(window: Page, index: int) -> list[str]:
    """The cells of a column of the first table of methods, as they are shown."""
    rows = window.locator("#methods table.sortable").first.locator("tbody tr:has(> :nth-child(2))")
    return rows.locator(f"> :nth-child({index + 1})").all_text_contents()


def values(texts: list[str]) -> list[float]:
    return [float(text.rstrip("*†‡↓").replace("\N{MINUS SIGN}", "-")) for text in texts]


def test_the_table_has_the_numbers_best_first(shown: tuple[Page, list[str]]) -> None:
    metrics = synthetic.judged(metrics=("auc_del_negative",)).metrics.sort("mean", descending=True)
    assert column(shown[0], 0) == metrics["method"].to_list()
    assert values(column(shown[0], 1)) == pytest.approx(metrics["mean"].to_list(), abs=0.006)


def test_a_click_on_a_heading_sorts_by_its_column(shown: tuple[Page, list[str]]) -> None:
    window = shown[0]
    headings = window.locator("#methods table.sortable >> nth=0 >> thead th")
    before = column(window, 0)
    headings.nth(0).click()
    names = column(window, 0)
    assert sorted(names) == sorted(synthetic.NAMES)
    assert names != before
    assert names[0] == "influence-function"
    assert headings.nth(0).get_attribute("aria-sort") == "ascending"
    headings.nth(1).click()
    means = values(column(window, 1))
    assert means == sorted(means, reverse=True)
    headings.nth(1).click()
    assert values(column(window, 1)) == sorted(means)
    assert headings.nth(1).get_attribute("aria-sort") == "ascending"


def test_a_method_is_switched_off_and_on(shown: tuple[Page, list[str]]) -> None:
    window = shown[0]
    buttons = window.locator(f"{CHART} .legend button")
    assert sorted(buttons.all_text_contents()) == sorted(synthetic.NAMES)
    button = buttons.first
    series = f'{CHART} .series[data-series="{button.get_attribute("data-series")}"]'

    def displays() -> set[str]:
        return set(window.eval_on_selector_all(series, "groups => groups.map((group) => getComputedStyle(group).display)"))

    assert displays() == {"inline"}
    button.click()
    assert displays() == {"none"}
    assert button.get_attribute("aria-pressed") == "false"
    button.click()
    assert displays() == {"inline"}


def test_the_pointer_shows_the_values_of_all_methods(shown: tuple[Page, list[str]]) -> None:
    picture = shown[0].locator(f"{CHART} > svg:visible")
    box = picture.bounding_box()
    assert box is not None
    picture.hover(position={"x": box["width"] - 5, "y": 20})
    tip = shown[0].locator(f"{CHART} .tip").inner_text()
    assert tip.startswith("10 %")
    assert all(f"{name}: " in tip for name in synthetic.NAMES)


def test_pictures_load_and_contents_lead_somewhere(shown: tuple[Page, list[str]]) -> None:
    found = shown[0].evaluate(MEASURE)
    assert found["pictures"]
    assert all(found["pictures"])
    assert len(found["anchors"]) > 5
    assert all(found["anchors"])


def test_the_console_stays_empty(shown: tuple[Page, list[str]]) -> None:
    assert shown[1] == []


def test_on_a_phone_nothing_is_wider_than_the_window(tmp_path: Path, shown: tuple[Page, list[str]]) -> None:
    window, console = shown
    window.set_viewport_size({"width": 390, "height": 844})
    # An example of wide tables, which scroll by themselves.
    window.goto(write(tmp_path, (12,)))
    found = window.evaluate(MEASURE)
    assert console == []
    assert (found["form"], found["windowWidth"]) == ("slim", 390)
    assert found["pageWidth"] <= 390
    assert found["cutHeadings"] == []
    left, right, height = found["legend"]
    assert 0 <= left < right <= 390
    assert height > 0
    assert found["textSize"] > 9, "texts in figures are readable"
