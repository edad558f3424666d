"""Scores from elsewhere walk the whole way: a copy of a method's scores is judged as that method is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from polars.testing import assert_frame_equal

from genrep_dist.external import open_exported
from genrep_dist.runner.export import export_problem
from genrep_dist.runner.run import run, train_originals
from tests.experiments import experiment

OURS = "ntk-final/target"


def test_a_copy_of_a_method_is_judged_as_the_method(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    declared = {
        "copy": {"path": str(tmp_path / "scores"), "positive_raises": True},
        "turned": {"path": str(tmp_path / "negative" / "{seed}.npy"), "positive_raises": False, "unverified": True},
    }
    asked = experiment(methods=[OURS, "random", "copy", "turned"], external=declared)
    exported = tmp_path / "models"
    list(export_problem(train_originals(asked, store, serial=True), exported))
    first = run(experiment(methods=[OURS, "random"], name="ours"), store, serial=True)
    (tmp_path / "negative").mkdir()
    for seed in (0, 1):
        phi = first.attributions(OURS, seed)
        open_exported(exported, seed).save(tmp_path / "scores" / f"seed-{seed}.npz", phi)
        np.save(tmp_path / "negative" / f"{seed}.npy", -phi)
    judged = run(asked, store, serial=True)
    rows = judged.deletion().collect()
    wanted = rows.filter(pl.col("method") == OURS).drop("method")
    assert wanted.height
    for name in declared:
        np.testing.assert_array_equal(judged.attributions(name, 1), first.attributions(OURS, 1))
        assert_frame_equal(rows.filter(pl.col("method") == name).drop("method"), wanted)
