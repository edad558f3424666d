from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import polars as pl
import pytest

from genrep_dist.errors import NotCommittedError
from genrep_dist.evaluation.metrics.deletion import auc_points
from genrep_dist.evaluation.statistics import metrics_table
from genrep_dist.evaluation.tables import EvaluationTables
from genrep_dist.report.page import ReportData, html_page
from genrep_dist.report.sections import TimeUnit
from genrep_dist.report.verdict import verdict
from tests.evaluation.examples import METHODS, synthetic_deletion
from tests.report import synthetic
from tests.report.test_figures import HOSTILE

pytestmark = pytest.mark.publishes

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

    @property
    def charts(self) -> int:
        """The figures; each is drawn for broad and for slim windows."""
        return sum(name == "class" and value == "chart" for name, value in self.attributes)


def without_contents(page: str) -> str:
    """The text of a page without its list of contents, which names every section."""
    return Reader(re.sub(r"<nav.*?</nav>", "", page, flags=re.DOTALL)).text


def data(
    num_seeds: int = 4, signs: tuple[str, ...] = ("negative",), names: list[str] | None = None, warnings: tuple[str, ...] = ()
) -> ReportData:
    methods = names or [method.name for method in METHODS]
    strengths = [(name, float(place)) for place, name in enumerate(methods)]
    deletion = synthetic_deletion(num_seeds=num_seeds, num_points=2, strengths=strengths, signs=signs)
    facts = {"problem": "digits", "retrainings": "80 asked, 70 unique, 70 done", "plan digest": "abc123"}
    points = auc_points(deletion)
    tables = EvaluationTables(points=points, metrics=metrics_table(points, methods), deletion=deletion)
    return ReportData("demo on digits", methods, tables, facts, warnings, config_yaml="seeds: 4\n")


def test_opens_with_the_verdict_and_ends_with_how_it_was_measured() -> None:
    report = data(warnings=("Momentum breaks the tracking identity.",))
    text = without_contents(html_page(report))
    found = verdict(report.tables)
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
    for row in report.tables.metrics.iter_rows(named=True):
        assert row["method"] in reader.texts
        assert f"{row['mean']:.2f}".replace("-", "\N{MINUS SIGN}") in reader.text
    assert reader.charts == 4


def test_one_seed_is_reported_without_intervals() -> None:
    text = Reader(html_page(data(num_seeds=1))).text
    assert "One seed was run" in text
    assert "Bands:" not in text


def test_needs_nothing_from_outside() -> None:
    page = html_page(data(signs=("negative", "positive")))
    reader = Reader(page)
    assert not {"link", "img", "iframe", "object", "base"} & set(reader.tags)
    assert reader.tags.count("script") == 1
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
    assert used
    assert set(used) <= set(ids)


def test_only_the_script_of_this_package_is_run() -> None:
    page = html_page(data())
    (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    own = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert f"script-src &#39;sha256-{own}&#39;" in policy or f"script-src 'sha256-{own}'" in policy
    assert policy.startswith("default-src 'none'")


def test_everything_from_data_is_escaped() -> None:
    hostile = '"><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}'
    report = data(names=[hostile, *HOSTILE])
    report = ReportData(hostile, report.methods, report.tables, {hostile: hostile}, [hostile], hostile)
    reader = Reader(html_page(report))
    assert reader.tags.count("script") == 1
    assert "img" not in reader.tags
    assert not any(name.startswith("on") for name, _ in reader.attributes)
    assert reader.text.count("<script>alert(1)</script>") >= 6
    assert "{{ 7 * 7 }}" in reader.text


def test_figures_take_the_colour_of_the_page() -> None:
    page = html_page(data())
    assert "fill: var(--soft)" in page
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_equal_data_give_an_equal_page() -> None:
    assert html_page(data()) == html_page(data())


@pytest.fixture(scope="module")
def full() -> str:
    return html_page(synthetic.report())


def test_everything_measured_is_on_the_page_in_order(full: str) -> None:
    text = without_contents(full)
    order = [
        "Holm-corrected p",
        "of bootstrap draws over seeds",
        "All methods",
        "Neural tangent kernel",
        "noise ceiling",
        "Deletion curves, AUC-DEL₋",
        "Networks, AUC-DEL₋",
        "Deletion curves, AUC-DEL₊",
        "LOO correlation",
        "Inspection curves",
        "Pairwise comparison",
        "What each method costs",
        "More examples",
        "Glossary",
        "How this was measured",
        "After 12 of at most 200 seeds",
    ]
    place = 0
    for part in order:
        place = text.index(part, place)
    # Curves and networks of two signs, seven other metrics, inspection.
    assert Reader(full).charts == 4 + 7 + 1


def test_what_was_not_measured_has_no_section() -> None:
    text = Reader(html_page(data())).text
    for heading in ("Pairwise comparison", "What each method costs", "More examples", "An example", "Inspection curves", "LDS", "Marks"):
        assert heading not in text


def test_one_seed_with_every_metric_has_neither_ranks_nor_marks() -> None:
    text = Reader(html_page(synthetic.report(num_seeds=1))).text
    assert "LOO correlation" in text
    for heading in ("Pairwise comparison", "Marks", "Holm", "bootstrap draws", "None"):
        assert heading not in text


def test_shared_notes_stand_once(full: str) -> None:
    text = Reader(full).text
    for note in ("Intervals: 95%", "Two-way: 95%", "Marks: better than random"):
        assert text.count(note) == 1


def test_rank_shares_are_shown_and_shaded() -> None:
    report = synthetic.report(metrics=("auc_del_negative",))
    reader = Reader(html_page(report))
    shades = [value for name, value in reader.attributes if name == "style" and "background" in str(value)]
    assert len(shades) == len(synthetic.NAMES) * (len(synthetic.NAMES) - 1)
    assert all(re.fullmatch(r"background:rgb\((15 125 194|213 94 0) / 0\.\d{3}\)", str(shade)) for shade in shades)
    (share,) = report.tables.ranks.filter((pl.col("method") == "tracincp") & (pl.col("other") == "ntk-middle/tracking"))["share"]
    assert f" {round(100 * share)} " in reader.text


def test_pictures_are_inside_the_page_and_flipped_labels_marked(full: str) -> None:
    sources = [value for name, value in Reader(full).attributes if name == "src"]
    assert sources
    assert all(str(source).startswith("data:image/png;base64,iVBOR") for source in sources)
    assert "image-rendering: pixelated" in full
    text = Reader(full).text
    assert "flipped id 3" in text
    assert "flipped id 2" not in text


def test_hostile_sentences_are_shown_and_not_obeyed() -> None:
    hostile = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</q></li></ul><style>*{display:none}</style>", "{{ 7 * 7 }}"]
    reader = Reader(html_page(synthetic.report(metrics=("auc_del_negative",), sentences=hostile)))
    assert "img" not in reader.tags
    assert (reader.tags.count("script"), reader.tags.count("style")) == (1, 1)
    assert not any(name.startswith("on") for name, _ in reader.attributes)
    for sentence in hostile:
        assert sentence in reader.text


def test_rows_of_the_judged_tables_in_any_order_give_the_same_page(full: str) -> None:
    report = synthetic.report()
    shuffled = EvaluationTables(**{name: table.sample(fraction=1, shuffle=True, seed=2) for name, table in report.tables.items()})
    assert html_page(replace(report, tables=shuffled)) == full


def test_a_full_page_needs_nothing_from_outside(full: str) -> None:
    reader = Reader(full)
    for name, value in reader.attributes:
        assert name not in ("srcset", "action")
        if name in ("href", "xlink:href"):
            assert str(value).startswith("#")
        if name == "src":
            assert str(value).startswith("data:")
    ids = [value for name, value in reader.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_nothing_to_report_is_an_error() -> None:
    with pytest.raises(NotCommittedError):
        html_page(ReportData("empty", [], EvaluationTables(), {}))


@pytest.mark.parametrize(
    ("devices", "num_gpus", "unit", "note"),
    [
        (["cpu"], 0.0, "CPU-seconds", "on one core"),
        (["cuda"], 1.0, "GPU-seconds", "one worker, on a GPU"),
        (["cuda"], 0.25, "GPU-seconds", "with 0.25 of a GPU"),
        (["cpu", "cuda"], 1.0, "seconds", "some on a GPU"),
        ([], 0.0, "seconds", "Seconds of one worker"),
    ],
)
def test_costs_say_whose_seconds_they_are(devices: list[str], num_gpus: float, unit: str, note: str) -> None:
    page = html_page(replace(synthetic.report(), time_unit=TimeUnit.for_devices(devices, num_gpus)))
    assert f'<th scope="col">retraining, {unit}</th>' in page
    assert note in page


def test_a_metric_about_no_point_has_a_design_of_seeds_alone() -> None:
    page = html_page(synthetic.report(metrics=("auc_del_negative", "mislabel_auroc")))
    mislabelled = page[page.index("Mislabelled data") :].partition("</table>")[0]
    assert '<th scope="col">seeds</th>' in mislabelled
    assert "<td>12</td>" in mislabelled
    assert "<td>12 × 5</td>" in page.partition("Mislabelled data")[0]
