from __future__ import annotations

import struct
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib as mpl
import pytest

from genrep_dist.evaluation.metrics.deletion import Deletion, auc_points
from genrep_dist.evaluation.metrics.mislabel import Mislabel
from genrep_dist.evaluation.statistics import metrics_table, seed_means
from genrep_dist.report.canvas import Format
from genrep_dist.report.figures import curve_figure, metric_figure
from genrep_dist.report.styles import styles
from tests.evaluation.examples import METHODS, synthetic_deletion
from tests.report import synthetic

pytestmark = pytest.mark.publishes

NAMES = [method.name for method in METHODS]
HOSTILE = [
    "<script>alert(1)</script>",
    "--><svg onload=alert(2)>",
    r"$\frac{a$",
    "_hidden",
    "日本語 \x07 name",
    "x" * 300,
    "a\nb",
    "50% & more",
]


def both(image: Format, num_seeds: int = 4, names: list[str] | None = None, sign: str = "negative") -> tuple[bytes, bytes]:
    names = names or NAMES
    strengths = [(name, float(place)) for place, name in enumerate(names)]
    deletion = synthetic_deletion(num_seeds=num_seeds, num_points=2, strengths=strengths, signs=(sign,))
    (curve,) = Deletion().curves({"deletion": deletion})
    points = auc_points(deletion)
    return (
        curve_figure(curve, methods=names, image=image),
        metric_figure(metrics_table(points, names), seed_means(points, names), metric=f"auc_del_{sign}", methods=names, image=image),
    )


@pytest.mark.parametrize("sign", ["negative", "positive"])
def test_png(sign: str) -> None:
    for picture in both("png", sign=sign):
        assert picture.startswith(b"\x89PNG\r\n")
        width, height = struct.unpack(">II", picture[16:24])
        assert 800 < width < 2000
        assert 300 < height < 2000


def test_svg_holds_a_line_and_a_band_for_each_method() -> None:
    picture = ET.fromstring(both("svg")[0])
    groups = [element.get("id", "") for element in picture.iter()]
    assert sum("FillBetween" in name or "PolyCollection" in name for name in groups) == len(NAMES)


def test_one_seed_has_lines_without_bands() -> None:
    picture = ET.fromstring(both("svg", num_seeds=1)[0])
    assert not any("FillBetween" in element.get("id", "") for element in picture.iter())


@pytest.mark.parametrize("image", ["png", "svg"])
def test_equal_data_give_equal_bytes(image: Format) -> None:
    assert both(image) == both(image)


def test_a_users_matplotlib_settings_change_nothing() -> None:
    before = both("svg")
    with mpl.rc_context({"font.size": 22, "axes.facecolor": "pink", "savefig.dpi": 30}):
        assert both("svg") == before


def test_drawing_leaves_matplotlib_as_it_was() -> None:
    before = dict(mpl.rcParams)
    both("png")
    assert dict(mpl.rcParams) == before


def test_hostile_names_are_drawn_and_not_obeyed() -> None:
    for pictures in (both("png", names=HOSTILE), both("svg", names=HOSTILE)):
        for picture in pictures:
            assert b"<script" not in picture
            assert b"onload=alert(2)>" not in picture
    legend = ET.fromstring(both("svg", names=HOSTILE)[0])
    assert [element.tag for element in legend.iter() if "script" in str(element.tag)] == []


def test_empty_axes_are_still_a_picture(tmp_path: Path) -> None:
    deletion = synthetic_deletion(num_seeds=2, num_points=1)
    (curve,) = Deletion().curves({"deletion": deletion})
    assert curve_figure(curve, methods=[], image="png").startswith(b"\x89PNG")


def test_methods_can_be_told_apart_without_colour() -> None:
    names = [f"m{number}" for number in range(28)]
    found = styles([*names, "random"])
    assert len({(str(style.line), style.marker) for style in found.values()}) == 29
    names = [f"m{number}" for number in range(32)]
    assert len({(style.colour, str(style.line)) for style in styles(names).values()}) == 33


def test_random_removal_does_not_shift_the_others() -> None:
    assert styles(["a", "random", "b"])["b"] == styles(["a", "b"])["b"]


def drawn(metric: str = "lds", **changes: object) -> bytes:
    judged = synthetic.judged(metrics=(metric,))
    seeds = judged.points.group_by("metric", "method", "seed").agg(value=judged.points["value"].first())
    arguments: dict[str, object] = {"metric": metric, "methods": synthetic.NAMES, "image": "svg", **changes}
    return metric_figure(judged.metrics, seeds, **arguments)  # type: ignore[arg-type]


def test_the_ceiling_and_the_two_way_interval_are_drawn() -> None:
    assert drawn(ceiling=0.75) != drawn()
    with_two_way = synthetic.judged(metrics=("lds",)).metrics
    without = synthetic.judged(metrics=("lds",), two_way=False).metrics
    seeds = synthetic.judged(metrics=("lds",)).points.head(0).select("metric", "method", "seed", "value")
    lines = [
        len(
            [
                e
                for e in ET.fromstring(metric_figure(m, seeds, metric="lds", methods=synthetic.NAMES, image="svg")).iter()
                if "line2d" in e.get("id", "")
            ]
        )
        for m in (with_two_way, without)
    ]
    assert lines[0] - lines[1] == len(synthetic.NAMES)


def test_methods_without_the_metric_have_no_row() -> None:
    few = ET.fromstring(drawn("mislabel_auroc"))
    all_of_them = ET.fromstring(drawn("lds"))
    ticks = [sum("ytick" in e.get("id", "") for e in picture.iter()) for picture in (few, all_of_them)]
    assert ticks == [len(synthetic.NAMES) - 1, len(synthetic.NAMES)]


def test_inspection_curves() -> None:
    inspection = synthetic.judged(metrics=("mislabel_auroc",))["inspection"]
    pictures = []
    for table in (inspection, inspection.reverse()):
        (curve,) = Mislabel().curves({"inspection": table})
        pictures.append(curve_figure(curve, methods=synthetic.NAMES, image="png"))
    assert pictures[0].startswith(b"\x89PNG")
    assert pictures[0] == pictures[1]
