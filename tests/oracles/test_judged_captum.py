"""captum's TracInCP, imported as scores from elsewhere for the same checkpoints, is judged exactly as our `tracincp`, and costs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from polars.testing import assert_frame_equal

import genrep_dist as gr
from genrep_dist.runner.export import export_problem
from genrep_dist.runner.run import train_originals
from tests.experiments import ROOT, experiment
from tests.oracles.test_external_tools import recipe
from tests.toys import trainings

METHODS = ["tracincp", "ntk-final/target", "random"]


@pytest.mark.filterwarnings("ignore")
def test_captums_tracincp_is_judged_as_ours_without_a_retraining(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("captum", reason="captum is not installed")
    monkeypatch.chdir(tmp_path)
    store, path = str(tmp_path / "store"), [str(ROOT)]
    fields: dict[str, Any] = {"brittleness": {"fractions": [0.0, 0.1, 0.3]}, "lds": {"subsets": 4}, "loo": {"samples": 4}, "test_points": 3}
    options = {"folder": str(tmp_path), "num_classes": 3}
    ours = experiment("tests.toys:Counting", options, methods=METHODS, name="ours", **fields)
    first = gr.run(ours, store=store, serial=True, search_path=path)
    paid = trainings(tmp_path)

    program, section = recipe("captum")
    declared = {"captum": yaml.safe_load(yaml.safe_dump(section.model_dump(exclude_none=True)))}
    both = experiment("tests.toys:Counting", options, methods=[*METHODS, "captum"], external=declared, **fields)
    list(export_problem(train_originals(both, store, serial=True, search_path=path), tmp_path / "models"))
    exec(compile(program, "docs/external-scores.md: captum", "exec"), {"__name__": "recipe"})
    judged = gr.run(both, store=store, serial=True, search_path=path)

    assert trainings(tmp_path) == paid, "scores that name the same sets cost a training"
    assert paid == 2 + first.costs()["unique"]
    for table in (judged.deletion().collect(), judged.judged()["brittleness"]):
        rows = {name: table.filter(pl.col("method") == name).drop("method") for name in ("captum", "tracincp")}
        assert rows["captum"].height
        assert_frame_equal(rows["captum"], rows["tracincp"])
    values = judged.points().collect()
    for metric in judged.plan.experiment.metric_names:
        rows = {name: values.filter(method=name, metric=metric).drop("method") for name in ("captum", "tracincp")}
        assert_frame_equal(rows["captum"], rows["tracincp"])
    assert judged.summary().filter(method="captum")["kernel"][0] == "external"
