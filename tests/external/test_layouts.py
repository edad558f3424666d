"""Layouts of score files that another package adds, from Python or by an entry point."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from genrep_dist.errors import ConfigError
from genrep_dist.external import SCORE_LAYOUTS, ScoreLayout
from tests.external import files
from tests.external.files import MODELS, TEST_IDS, TRAIN_IDS, expected, load, scores, section

THEIRS = ScoreLayout("out/*.npz", "influence", True, "positive raises the logit", "their documentation")


@pytest.fixture(autouse=True)
def registered_layouts() -> Iterator[None]:
    """The registry as it was, so that no test changes another's."""
    yield
    for name in ("theirs", "one"):
        SCORE_LAYOUTS.unregister(name)


def check_that_it_reads(tmp_path: Path, layout: str) -> None:
    (tmp_path / "0" / "out").mkdir(parents=True)
    held = {"influence": scores().T, "other": scores(1), "model": MODELS[0]}
    files.write_npz(tmp_path / "0" / "out" / "all.npz", held)
    found = load(tmp_path / "{seed}", layout=layout)[0]
    np.testing.assert_array_equal(found.phi, expected(scores(), TRAIN_IDS.tolist(), TEST_IDS.tolist()))
    assert found.verified


def test_a_layout_is_registered_from_python(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected|plain"):
        section("a.npz", layout="theirs")
    SCORE_LAYOUTS.register("theirs", THEIRS)
    SCORE_LAYOUTS.register("theirs", THEIRS)  # again is no fault
    assert "theirs" in SCORE_LAYOUTS
    check_that_it_reads(tmp_path, "theirs")


def distribution(folder: Path, value: str, text: str) -> None:
    """A package as pip installs it: a module, and metadata with an entry point."""
    (folder / "their_package-1.0.dist-info").mkdir(parents=True)
    (folder / "their_package-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: their_package\nVersion: 1.0\n")
    (folder / "their_package-1.0.dist-info" / "entry_points.txt").write_text(f"[genrep_dist.score_layouts]\ntheirs = {value}\n")
    (folder / "their_package.py").write_text(text)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    sys.modules.pop("their_package", None)


def test_a_layout_comes_from_another_package_by_entry_point(tmp_path: Path, site: Path) -> None:
    code = "from genrep_dist.external import ScoreLayout\nLAYOUT = ScoreLayout('out/*.npz', 'influence', True, 'positive raises', 'docs')\n"
    distribution(site, "their_package:LAYOUT", code)
    check_that_it_reads(tmp_path, "theirs")
    assert "theirs" in SCORE_LAYOUTS


@pytest.mark.parametrize(
    ("value", "code", "got"), [("their_package:X", "X = 3", "got: TypeError: int is not"), ("their_package:Y", "X = 3", "AttributeError")]
)
def test_a_broken_entry_point_is_named(site: Path, value: str, code: str, got: str) -> None:
    distribution(site, value, code)
    with pytest.raises(ConfigError, match=rf"cannot be loaded[\s\S]*theirs = {value}[\s\S]*{got}"):
        SCORE_LAYOUTS.get("theirs")
    assert SCORE_LAYOUTS.get("captum").transposed, "shipped layouts do not depend on it"


def test_names_that_cannot_be_registered() -> None:
    with pytest.raises(ConfigError, match="two score layouts have the same name"):
        SCORE_LAYOUTS.register("trak", THEIRS)
    with pytest.raises(ConfigError, match="not usable"):
        SCORE_LAYOUTS.register("Their Layout", THEIRS)
    with pytest.raises(ConfigError, match=r"no score layout 'tark'[\s\S]*did you mean trak"):
        SCORE_LAYOUTS.get("tark")


def test_the_digest_covers_what_the_layout_means(tmp_path: Path) -> None:
    files.write_npz(tmp_path / "a.npz", {"influence": scores(), "scores": scores(), "model": MODELS[0]})
    SCORE_LAYOUTS.register("one", ScoreLayout("", "influence", False, "", ""))
    first = load(tmp_path / "a.npz", layout="one")[0].digest
    SCORE_LAYOUTS.unregister("one")
    SCORE_LAYOUTS.register("one", ScoreLayout("", "scores", False, "", "a later version of the package"))
    assert load(tmp_path / "a.npz", layout="one")[0].digest != first
