from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from genrep_dist.config import load_experiment
from genrep_dist.paper.published import BLOCKS, CLAIMS, LAST_LAYER_INFLUENCE, LAST_LAYER_KERNEL, PAPER
from genrep_dist.paper.table1 import (
    CellComparison,
    DataColumn,
    claim_results,
    compared_cell,
    last_layer_experiment,
    long_table,
    rank_correlation,
    table1_page,
    tuned_experiments,
)
from genrep_dist.paper.table1_figure import table1_figure
from genrep_dist.paper.table1_files import table1_html, table1_markdown, write_table1

METHODS = tuple(dict.fromkeys(method for methods in BLOCKS.values() for method in methods))
VISION = tuple(method for method in METHODS if method not in (LAST_LAYER_KERNEL, LAST_LAYER_INFLUENCE))


def column(problem: str, means: Mapping[str, float], num_seeds: int = 6, noise: float = 0.05) -> DataColumn:
    """A data set whose methods have these areas, up to noise."""
    generator = np.random.default_rng(4)
    rows = [
        (method, seed, point, mean + noise * generator.normal())
        for method, mean in means.items()
        for seed, point in itertools.product(range(num_seeds), range(3))
    ]
    points = pl.DataFrame(rows, schema=["method", "seed", "test_id", "value"], orient="row")
    differs = [("training samples", "about 12,000", "40", "less to compute")]
    return DataColumn(problem, f"{problem}-cpu", points, differs, {"Model": "a <small> one | indeed"})


def as_in_the_paper(problem: str) -> DataColumn:
    cells = {method: mean for method, (mean, _) in PAPER[problem].cells.items()}
    filled = {"ntk-final/surrogate": 1.0, "influence-final/tracking": 2.0, "influence-function": 1.0} if PAPER[problem].text else {}
    return column(problem, cells | filled)


def test_the_papers_numbers_are_all_there() -> None:
    """42 cells of images and texts; the empty ones and the daggers are where the paper has them."""
    assert [len(PAPER[name].cells) for name in ("mnist", "cifar10", "toxicity", "agnews")] == [11, 11, 10, 10]
    for name in ("mnist", "cifar10"):
        assert set(PAPER[name].cells) == set(VISION)
    for name in ("toxicity", "agnews"):
        assert set(METHODS) - set(PAPER[name].cells) == {"ntk-final/surrogate", "influence-final/tracking", "influence-function"}
    # A checksum over what was read off the page: the sums of the columns.
    sums = {name: round(sum(mean for mean, _ in paper.cells.values()), 3) for name, paper in PAPER.items()}
    assert sums == {"mnist": 30.49, "cifar10": 25.726, "toxicity": 9.84, "agnews": 15.83}
    halves = {name: round(sum(half for _, half in paper.cells.values()), 3) for name, paper in PAPER.items()}
    assert halves == {"mnist": 4.23, "cifar10": 1.98, "toxicity": 2.12, "agnews": 2.66}


def test_a_cell_holds_both_and_their_difference() -> None:
    found = compared_cell(column("mnist", {"ntk-final/tracking": 3.0}, noise=0.2), "ntk-final/tracking")
    assert found.ours is not None
    assert found.paper == (3.52, 0.48)
    mean, low, high = found.ours
    assert low is not None
    assert high is not None
    assert low < mean < high
    assert found.difference == pytest.approx(
        (mean - 3.52, mean - 3.52 - math.hypot(mean - low, 0.48), mean - 3.52 + math.hypot(high - mean, 0.48))
    )
    assert compared_cell(column("mnist", {"random": 0.0}), "ntk-final/tracking") == CellComparison(None, (3.52, 0.48))
    assert CellComparison(None, (1.0, 0.1)).difference is None
    assert CellComparison((1.0, None, None), (1.0, 0.1)).difference is None, "one network has no interval"


def test_the_papers_own_numbers_would_confirm_its_claims() -> None:
    found = {problem: [results for _, results in claim_results(as_in_the_paper(problem))] for problem in PAPER}
    assert {problem: list(map(len, results)) for problem, results in found.items()} == {
        "mnist": [2, 5, 4, 6],
        "cifar10": [2, 5, 4, 6],
        "toxicity": [2, 5, 3, 4],
        "agnews": [2, 5, 3, 4],
    }
    others = {
        (problem, one.claim.better, one.claim.worse): one.status
        for problem, results in found.items()
        for one in itertools.chain(*results)
        if one.status != "confirmed"
    }
    assert others == {
        ("mnist", "influence-final/tracking", "ntk-middle/tracking"): "undecided",
        ("cifar10", "tracincp", "influence-function"): "refuted",
        ("agnews", "ntk-final/tracking", "ntk-middle/tracking"): "undecided",
    }, "what the paper's own table does not say, or by a hundredth"
    turned = column("mnist", {"ntk-final/tracking": 1.0, "ntk-final/target": 2.0, "ntk-final/surrogate": 1.0})
    (_, first), *rest = claim_results(turned)
    assert [result.status for result in first] == ["refuted", "confirmed"]
    assert [results for _, results in rest] == [[], [], []], "what was not measured is not judged"


def test_the_page_shows_paper_ours_difference_and_verdicts() -> None:
    columns = [as_in_the_paper("mnist"), as_in_the_paper("toxicity"), as_in_the_paper("agnews")]
    made = table1_page(columns, profile="cpu", date="2026-01-01", hardware="two cores")
    titles = [title for title, _ in made.sections]
    assert len(titles) == 6
    blocks = made.sections[0][1]
    assert [len(grid.rows) for grid in blocks] == [9, 9, 9, 3]
    first = blocks[0]
    assert first.headings == ("data", "", "surrogate derivative", "target derivative", "tracking", "random selection")
    assert first.rows[0] == ("MNIST", "paper", "1.88 ± 0.25", "2.41 ± 0.30", "3.52 ± 0.48", "-0.50 ± 0.16")
    assert first.rows[1][1] == "ours"
    assert first.rows[3][2] == "-", "the paper's empty cell"
    assert first.rows[4][2].startswith("+1.0")
    assert first.rows[5][2] == "-"
    overview, *claims = made.sections[1][1]
    assert [table.title for table in claims] == [row[0] for row in overview.rows] == [claim.statement for claim in CLAIMS]
    assert overview.rows[0][1:] == ("confirmed",) * 4
    assert overview.rows[2][1:] == ("-", "confirmed", "confirmed", "confirmed"), "said of texts alone"
    assert claims[2].rows[0][0] == "Toxicity"
    images = table1_page(columns[:1], profile="cpu", date="", hardware="")
    assert "†" not in "".join(images.sections[0][1][1].headings), "no column that nobody has"


def test_methods_that_the_paper_does_not_have_are_a_table_of_their_own() -> None:
    columns = [column("mnist", {"random": 0.0, "trak": 1.0, "ekfac": 2.0}), column("cifar10", {"random": 0.0})]
    made = table1_page(columns, profile="cpu", date="", hardware="")
    others = made.sections[0][1][-1]
    assert others.headings == ("method", "MNIST", "CIFAR-10")
    assert [(row[0], row[2]) for row in others.rows] == [("trak", "-"), ("ekfac", "-")]
    assert float(others.rows[0][1].split()[0]) == pytest.approx(1.0, abs=0.05)
    assert set(long_table(columns)["method"]) >= {"trak", "ekfac"}
    undecided = column("mnist", {"ntk-final/tracking": 0.02, "ntk-final/target": 0.0, "ntk-final/surrogate": 0.0}, noise=0.5)
    shown = table1_page([undecided], profile="cpu", date="", hardware="").sections[1][1][1]
    assert shown.headings[-1] == "networks to decide"
    assert shown.rows[0][3] == "undecided"
    assert shown.rows[0][4] != ""


def test_every_method_is_compared_with_the_best_one_and_the_simple_baselines() -> None:
    means = {"random": 0.0, "neighbours": 1.0, "ntk-final/tracking": 1.5, "influence-function": 2.0}
    made = dict(table1_page([replace(column("mnist", means), simple=("neighbours",))], profile="cpu", date="", hardware="").sections)
    (table,) = made["Every method against the best one and the simple baselines"]
    assert table.headings == ("method", "area", "minus influence-function", "minus neighbours")
    assert [row[0] for row in table.rows] == ["influence-function", "ntk-final/tracking", "neighbours", "random"]
    assert [row[2] == "" for row in table.rows] == [True, False, False, False]
    for method, _, best, simple in table.rows:
        for text, other in ((best, 2.0), (simple, 1.0)):
            assert text == "" or float(text.split()[0]) == pytest.approx(means[method] - other, abs=0.05)


def test_the_orders_of_methods_here_and_in_the_paper_are_compared() -> None:
    cells = {method: mean for method, (mean, _) in PAPER["mnist"].cells.items()}
    same, reverse = column("mnist", cells, noise=0.001), column("mnist", {m: -mean for m, mean in cells.items()}, noise=0.001)
    found = rank_correlation(column("mnist", {"tracincp": 1.0, "influence-function": 2.0, "random": 0.0, "trak": 3.0}))
    assert found is None, "two methods of the paper are too few"
    one_swap = column("mnist", {"tracincp": 3.0, "influence-function": 1.0, "representer-point": 2.0, "trak": 9.0}, noise=0.001)
    for measured, num_methods, tau in ((same, 10, 1.0), (reverse, 10, -1.0), (one_swap, 3, 1 / 3)):
        found = rank_correlation(measured)
        assert found is not None
        assert found[0] == num_methods, "random removal is no method"
        assert found[1] == pytest.approx(tau)
    orders = table1_page([same], profile="cpu", date="", hardware="").sections[0][1][3]
    assert orders.rows == (("MNIST", "10", "+1.00"),)


def test_tuned_methods_are_compared_with_their_declared_parameter() -> None:
    means = {"random": 0.0, "ntk-final/tracking": 4.0, "ntk-final/target": 2.0, "ntk-final/surrogate": 1.0}
    means |= {"ntk-final/surrogate, tuned": 3.0, "influence-function": 1.0, "influence-function, tuned": 1.5}
    tuned = frozenset({"influence-function", "ntk-final/surrogate"})
    columns = [replace(column("mnist", means), tuned=tuned), column("cifar10", {"random": 0.0})]
    table, statements, orders, comparisons = dict(table1_page(columns, profile="cpu", date="", hardware="").sections)["Tuned parameters"]
    (data, method, *numbers), (_, second, *_) = table.rows
    assert (data, method, second) == ("MNIST", "influence-function", "ntk-final/surrogate")
    assert [float(text.split()[0]) for text in numbers] == pytest.approx([1.0, 1.5, 0.5], abs=0.06)
    assert "networks that are not in the table" in table.notes[0]
    assert statements.rows[0][1] == "refuted", "with the declared parameter it is confirmed"
    assert dict(claim_results(columns[0]))[statements.rows[0][0]][1].status == "confirmed"
    assert orders.rows == (("MNIST", "4", "+0.00"),), "in the paper: tracking, influence function, target, surrogate"
    assert [(row[1], row[3]) for row in comparisons.rows] == [("ntk-final/target - ntk-final/surrogate", "refuted")]
    assert dict(table1_page(columns[1:], profile="cpu", date="", hardware="").sections)["Tuned parameters"] == ()


def test_a_page_of_few_networks_says_what_its_intervals_are() -> None:
    few, enough = (column("mnist", {"random": 0.0}, num_seeds=number) for number in (2, 6))
    warned = ["too narrow" in " ".join(table1_page([one], profile="", date="", hardware="").intro) for one in (few, enough)]
    assert warned == [True, False]


def test_a_stand_in_is_named_for_what_it_is() -> None:
    stand_in = column("newsgroups", {"random": 0.1})
    assert stand_in.title == "newsgroups (for AGnews)"
    assert compared_cell(stand_in, "random").paper == (0.19, 0.26)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link")
        assert tag != "img" or str(dict(attrs)["src"]).startswith("data:image/png;base64,")
        self.tables += tag == "table"
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_files_escape_and_need_nothing_else(tmp_path: Path) -> None:
    columns = [as_in_the_paper("mnist"), as_in_the_paper("toxicity")]
    made = table1_page(columns, profile="cpu", date="2026-01-01", hardware="two cores")
    html, markdown = table1_html(made, b""), table1_markdown(made, "table1.png")
    parser = Tags()
    parser.feed(html)
    assert parser.open == []
    assert parser.tables == sum(len(grids) for _, grids in made.sections)
    assert "a &lt;small&gt; one" in html
    assert "a &lt;small&gt; one \\| indeed" in markdown
    paths = write_table1(columns, tmp_path / "out", "cpu")
    assert [path.name for path in paths] == ["table1.md", "table1.html", "table1.png", "table1.parquet"]
    assert paths[2].read_bytes() == table1_figure(columns)
    table = pl.read_parquet(paths[3])
    assert table.equals(long_table(columns))
    row = table.row(by_predicate=(pl.col("problem") == "mnist") & (pl.col("method") == "tracincp"), named=True)
    assert (row["paper"], row["paper_ci95"]) == (4.20, 0.52)
    assert row["difference"] == pytest.approx(row["auc_del_negative"] - 4.20)


def test_the_companion_asks_for_the_last_layers_influence_on_the_same_networks() -> None:
    experiment = load_experiment("paper/toxicity", profile="cpu")
    other = last_layer_experiment(experiment)
    assert other is not None
    assert other.name == "toxicity-cpu-last-layer"
    assert other.methods == ("influence-final/tracking", "influence-function")
    assert (other.influence.curvature, experiment.influence.curvature) == ("last-layer", "ggn")
    assert (other.seeds, other.test_points, other.deletion) == (experiment.seeds, experiment.test_points, experiment.deletion)
    assert last_layer_experiment(load_experiment("paper/mnist", profile="cpu")) is None


def test_tuned_experiments_share_networks_and_choose_on_others() -> None:
    experiment = load_experiment("paper/mnist", profile="desk")
    damping, lam = tuned_experiments(experiment)
    assert (damping.name, lam.name) == ("mnist-desk-tuned-damping", "mnist-desk-tuned-lambda")
    assert damping.methods == ("influence-final/tracking", "influence-function")
    assert lam.methods == ("ntk-final/surrogate",)
    for one in (damping, lam):
        assert (one.seeds, one.test_points, one.deletion) == (experiment.seeds, experiment.test_points, experiment.deletion)
        assert one.tune is not None
        assert not set(one.tune.seeds) & set(one.seeds)
        assert one.tune.settings == {"fractions": [0.0, 0.1]}
    assert tuned_experiments(experiment.with_fixed_seeds(methods=["random"], blocks={}, baseline=None)) == []
