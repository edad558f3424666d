"""A finished run shows itself: its report, as text, in a notebook and with matplotlib; and its tables leave the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import polars as pl
import pytest
import yaml
from matplotlib import pyplot
from matplotlib.axes import Axes
from torch import Tensor

import genrep_dist as gr
from genrep_dist.config import Experiment
from genrep_dist.errors import MethodError
from genrep_dist.report.markdown import escaped
from genrep_dist.results import Run
from genrep_dist.results.reporting import report_files
from genrep_dist.runner.export import export_run
from tests.experiments import ROOT, experiment
from tests.report.test_page import without_contents
from tests.toys import Blobs

METHODS = ["random", "ntk-final/surrogate", "ntk-final/tracking"]


class Patients(Blobs):
    class_names = ("healthy", "ill")

    def describe(self, ids: Tensor) -> Sequence[Mapping[str, object]]:
        return [{"age": int(sample) % 90, "ward": "north <b>"} for sample in ids]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Run:
    asked = experiment("tests.report.test_presentation:Patients", methods=METHODS, deletion={"fractions": [0.0, 0.1, 0.125]})
    return gr.run(asked, store=str(tmp_path_factory.mktemp("store")), serial=True, search_path=[str(ROOT)])


@pytest.fixture(scope="module", autouse=True)
def no_window() -> Iterator[None]:
    with mpl.rc_context({"backend": "agg"}):
        yield
    pyplot.close("all")


def results(run: Run, name: str) -> str:
    return (Path(run.store.uri) / "results/toy" / name).read_text()


def test_the_report_shows_what_was_really_retrained(done: Run) -> None:
    text = without_contents(results(done, "report.html"))
    found = done.removal_example()
    assert found is not None
    best, random = found.removals
    assert best.num_removed == 5
    assert (best.is_random, random.is_random) == (False, True)
    rows = done.deletion().collect().filter(seed=found.seed, test_id=found.point.id, sign="negative", num_removed=5)
    for removal in found.removals:
        (row,) = rows.filter(method=removal.method).iter_rows(named=True)
        assert (removal.before, removal.after) == (row["score_original"], row["score_retrained"])
        shown = " → ".join(f"{value:#.3g}".replace("-", "\N{MINUS SIGN}") for value in (removal.before, removal.after))
        assert shown in text.replace("  ", " ")
    requested = done.store.ledger(done.plan.keys.training).changes(
        done._requests()
        .filter(seed=found.seed, test_id=found.point.id, method=best.method, sign="negative", num_removed=5)["key"]
        .to_list()
    )
    (change,) = requested.values()
    assert {sample.id for sample in best.samples} == set(change.removed), "the samples that the ledger's model was trained without"


def test_the_report_has_class_names_values_and_where_it_comes_from(done: Run) -> None:
    text = without_contents(results(done, "report.html"))
    assert "predicted ill" in text or "predicted healthy" in text
    assert "north <b>" in text
    assert "Above 0 the network predicts “ill”, below 0 “healthy”." in text
    manifest = done.manifest()
    assert manifest is not None
    for part in ("UTC", "genrep run config.yaml", manifest["command"]):
        assert part in text


def test_one_order_in_the_report_the_markdown_and_python(done: Run) -> None:
    means = dict(done.metrics().filter(metric="auc_del_negative").select("method", "mean").iter_rows())
    order = sorted(METHODS, key=lambda method: -means[method])
    assert order != METHODS
    assert done.summary()["method"].to_list() == order
    lines = results(done, "table.md").split("\n| ")[1:]
    assert [line.partition(" |")[0].strip("*") for line in lines][-3:] == [escaped(method) for method in order]
    page = results(done, "report.html")
    rows = [page.index(f'<th scope="row">{method}</th>') for method in order]
    assert rows == sorted(rows)


def test_a_printed_summary_shows_the_area(done: Run) -> None:
    first = done.summary().row(0, named=True)
    assert f"{first['auc_del_negative']:.6f}"[:7] in str(done.summary())
    assert set(done.summary().columns) == set(pl.read_parquet(Path(done.store.uri) / "results/toy/summary.parquet").columns)


def test_certificates_are_a_frame(done: Run) -> None:
    found = done.certificates()
    assert found.height == 2
    assert found["seed"].to_list() == [0, 1]
    assert found["converged"].all()
    assert found["residual"].to_list() == [record["residual"] for record in done.certificate_records()]


def test_as_text_and_in_a_notebook(done: Run) -> None:
    best = done.summary().row(0, named=True)
    assert repr(done).startswith("<Run toy: 3 methods, 2 networks × 2 test points; best mean: ")
    html = done._repr_html_()
    assert html.index(f"<td>{best['method']}</td>") < html.index("<img src=")


def test_an_unfinished_run_says_so(done: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = gr.open_run(done.store.uri, "toy")
    monkeypatch.setattr(opened, "manifest", lambda: None)
    assert "not finished" in repr(opened)
    assert "not finished" in opened._repr_html_()


def test_curves_are_drawn_into_given_axes_or_new_ones(done: Run) -> None:
    axes = done.plot_curves()
    assert isinstance(axes, Axes)
    legend = axes.get_legend()
    assert legend is not None
    assert sorted(text.get_text() for text in legend.get_texts()) == sorted(METHODS)
    _, own = pyplot.subplots()
    assert done.plot_curves("curves_negative", axes=own, methods=["random"]) is own
    last = done.deletion().collect().filter(method="random", sign="negative", num_removed=5)["delta"].mean()
    assert own.lines[-1].get_ydata()[-1] == pytest.approx(last)  # type: ignore[index]


@pytest.mark.parametrize(("arguments", "expected"), [({"curve": "roc"}, "curves_negative"), ({"methods": ["best"]}, "ntk-final/tracking")])
def test_what_was_not_measured_is_not_drawn(done: Run, arguments: dict[str, object], expected: str) -> None:
    with pytest.raises(MethodError, match=expected):
        done.plot_curves(**arguments)  # type: ignore[arg-type]


def test_examples_are_drawn_a_row_a_removal(done: Run) -> None:
    axes = done.plot_examples()
    assert axes.shape == (2, 6)
    found = done.removal_example()
    assert found is not None
    assert f"test sample {found.point.id}" in axes[0, 0].get_title()
    assert [place.get_title().split("\n")[0] for place in axes[0, 1:]] == [f"id {sample.id}" for sample in found.removals[0].samples]
    with pytest.raises(MethodError, match="no removal"):
        done.plot_examples(["tracincp"])


def test_of_several_targets_those_are_shown_that_fit_over_a_picture(done: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = done.removal_example()
    assert found is not None
    crowded = replace(found, point=replace(found.point, label=", ".join(["0.123"] * 8)))
    monkeypatch.setattr(type(done), "removal_example", lambda self, methods=None: crowded)
    assert done.plot_examples()[0, 0].get_title().split("\n")[1] == "0.123, 0.123, …"


def test_the_export_has_every_table(done: Run, tmp_path: Path) -> None:
    written = {path.name for path in export_run(done, tmp_path)}
    published = {path.stem for path in (Path(done.store.uri) / "results/toy").glob("*.parquet")}
    assert {f"{name}.csv" for name in published} <= written
    assert pl.read_csv(tmp_path / "metrics.csv").height == done.metrics().height


def test_the_configuration_states_what_was_in_force_and_runs_again(done: Run) -> None:
    text = results(done, "config.yaml")
    comments = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ")]
    assert yaml.safe_load("\n".join(comments[1:]))["recipe"] == {
        "optimizer": "sgd",
        "epochs": 4,
        "batch_size": 8,
        "learning_rate": 0.1,
        "schedule": "constant",
    }
    again = Experiment.model_validate(yaml.safe_load(text))
    assert again == done.plan.experiment


def test_the_removal_order_is_that_of_the_scores(done: Run) -> None:
    phi = done.attributions("ntk-final/tracking", 0)
    for sign, direction in (("negative", 1), ("positive", -1)):
        order = done.removal_order("ntk-final/tracking", 0, sign)
        assert order.shape == phi.T.shape
        place = {sample: row for row, sample in enumerate(done.train_ids(0).tolist())}
        ordered = direction * phi[[place[sample] for sample in order[1].tolist()], 1]
        assert (ordered[1:] >= ordered[:-1]).all()
    with pytest.raises(MethodError, match="negative or positive"):
        done.removal_order("ntk-final/tracking", 0, "both")


def test_a_store_from_elsewhere_shows_itself_without_code(done: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GENREP_STATE", str(tmp_path / "nothing-is-remembered"))
    opened = gr.open_run(done.store.uri, "toy")
    assert not opened.has_code
    assert (opened.texts(), opened.describe(), opened.class_names()) == (None, None, ())
    assert repr(opened) == repr(done)
    assert opened.plot_curves() is not None
    found = opened.removal_example()
    assert found is not None
    assert found.point.features[0][0].startswith("input")
    said = "code could not be imported when this report was written"
    assert said in report_files(opened, opened.judged())["report.html"].decode()
    assert said not in report_files(done, done.judged())["report.html"].decode()
