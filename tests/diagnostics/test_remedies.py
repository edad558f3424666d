"""The remedies of the doctor mend what they are for."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import genrep_dist as gr
from tests.diagnostics.runs import Array, change, doctor, run


def one_ulp(gram: Array) -> None:
    gram[0, 1] = np.nextafter(gram[0, 1], np.float32(np.inf))


def larger(values: Array) -> None:
    values *= 1.5


FAULTS: dict[str, Callable[[gr.Run], None]] = {
    "gram symmetry": lambda done: change(done, "gram", done.plan.keys.gram(0, "ntk", 6), "gram", one_ulp),
    "surrogate residual": lambda done: change(done, "surrogate", done.plan.keys.solved("surrogate", 0, "ntk", 6), "alpha", larger),
    "kernel": lambda done: change(done, "kernel", done.plan.keys.kernel(0, "ntk", 6), "kernel", larger),
    "scores": lambda done: change(
        done, "attribution", done.plan.keys.attribution(0, done.plan.experiment.method("tracincp")), "phi", larger
    ),
}


@pytest.mark.parametrize("check", list(FAULTS))
def test_deleting_what_the_remedy_names_and_running_again_mends_it(run_copy: gr.Run, check: str) -> None:
    FAULTS[check](run_copy)
    store = Path(run_copy.store.uri)
    remedy = doctor(run_copy).worst_of(check).remedy
    (folder,) = re.findall(r"the folder (artifacts/\S+)", remedy)
    (manifest,) = re.findall(r"results/\S+/manifest\.json", remedy)
    shutil.rmtree(store / folder)
    (store / manifest).unlink()
    again = run(store)
    assert doctor(again).worst_of(check).colour == "green"


def test_an_unconverged_surrogate_is_not_answered_with_deletion(tmp_path: Path) -> None:
    settings = {"max_iterations": 1, "tolerance": 1e-12, "allow_unconverged": True}
    found = doctor(run(tmp_path, methods=["ntk-final/surrogate", "random"], surrogate=settings)).worst_of("surrogate residual")
    assert found.colour == "red"
    assert "raise surrogate.max_iterations" in found.remedy
    assert "delete" not in found.remedy
