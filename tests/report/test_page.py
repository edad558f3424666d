from __future__ import annotations

import re
from html.parser import HTMLParser

import polars as pl
import pytest

from genrep_dist.errors import NotCommittedError
from genrep_dist.evaluation.statistics import summarise
from genrep_dist.report.page import ReportData, html_page, report_verdict
from tests.evaluation.examples import METHODS, Labels, synthetic_deletion
from tests.report.test_figures import HOSTILE

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Reader(HTMLParser):
    """Collects tags, attributes and text, and checks that elements close in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def data(
    num_seeds: int = 4, signs: tuple[str, ...] = ("negative",), names: list[str] | None = None, warnings: tuple[str, ...] = ()
) -> ReportData:
    methods = [Labels(name) for name in names] if names else list(METHODS)
    strengths = [(method.name, float(place)) for place, method in enumerate(methods)]
    deletion = synthetic_deletion(num_seeds=num_seeds, num_points=2, strengths=strengths, signs=signs)
    facts = {"problem": "digits", "retrainings": "80 asked, 70 unique, 70 done", "plan digest": "abc123"}
    return ReportData("demo on digits", summarise(deletion, methods), deletion, facts, warnings, config_yaml="seeds: 4\n")


def test_opens_with_the_verdict_and_ends_with_how_it_was_measured() -> None:
    report = data(warnings=("Momentum breaks the tracking identity.",))
    text = Reader(html_page(report)).text
    found = report_verdict(report)
    order = [
        "demo on digits",
        found.headline,
        *found.sentences,
        "Momentum breaks the tracking identity.",
        "All methods",
        "Deletion curves, AUC-DEL₋",
        "Networks, AUC-DEL₋",
        "How this was measured",
        "80 asked, 70 unique, 70 done",
        "seeds: 4",
    ]
    places = [text.index(" ".join(part.split())) for part in order]
    assert places == sorted(places)


def test_without_warnings_there_is_no_box() -> None:
    assert "Read this with care" not in html_page(data())


def test_every_method_and_number_is_in_the_table() -> None:
    report = data(signs=("negative", "positive"))
    reader = Reader(html_page(report))
    for row in report.summary.iter_rows(named=True):
        assert row["method"] in reader.texts
        for sign in ("negative", "positive"):
            assert f"{row[f'auc_del_{sign}']:.2f}".replace("-", "\N{MINUS SIGN}") in reader.text
    assert reader.tags.count("svg") == 4


def test_one_seed_is_reported_without_intervals() -> None:
    text = Reader(html_page(data(num_seeds=1))).text
    assert "One seed was run" in text
    assert "Bands:" not in text


def test_needs_nothing_from_outside() -> None:
    page = html_page(data(signs=("negative", "positive")))
    reader = Reader(page)
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(reader.tags)
    for name, value in reader.attributes:
        assert name not in ("src", "srcset", "action")
        if name in ("href", "xlink:href"):
            assert value is not None
            assert value.startswith("#")
    assert "@import" not in page
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))


def test_ids_are_unique_and_references_lead_to_them() -> None:
    reader = Reader(html_page(data(signs=("negative", "positive"))))
    ids = [value for name, value in reader.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    used = [str(value)[1:] for name, value in reader.attributes if name in ("href", "xlink:href")]
    used += [found for _, value in reader.attributes if value for found in re.findall(r"url\(#([^)]*)\)", value)]
    assert used
    assert set(used) <= set(ids)


def test_everything_from_data_is_escaped() -> None:
    hostile = '"><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}'
    report = data(names=[hostile, *HOSTILE])
    report = ReportData(hostile, report.summary, report.deletion, {hostile: hostile}, [hostile], hostile)
    reader = Reader(html_page(report))
    assert "script" not in reader.tags
    assert "img" not in reader.tags
    assert not any(name.startswith("on") for name, _ in reader.attributes)
    assert reader.text.count("<script>alert(1)</script>") >= 6
    assert "{{ 7 * 7 }}" in reader.text


def test_figures_take_the_colour_of_the_page() -> None:
    page = html_page(data())
    assert "currentColor" in page
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_equal_data_give_an_equal_page() -> None:
    assert html_page(data()) == html_page(data())


def test_shuffled_rows_give_the_same_page() -> None:
    report = data()
    shuffled = ReportData(
        report.title, report.summary, report.deletion.sample(fraction=1, shuffle=True, seed=1), report.facts, config_yaml=report.config_yaml
    )
    assert html_page(shuffled) == html_page(report)


def test_nothing_to_report_is_an_error() -> None:
    report = data()
    with pytest.raises(NotCommittedError):
        html_page(ReportData("empty", report.summary.filter(pl.lit(value=False)), report.deletion, {}))
