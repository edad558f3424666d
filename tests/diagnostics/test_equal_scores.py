"""Methods whose scores do not tell the training samples apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.diagnostics.runs import Learnable, doctor, run

NUM_TRAIN = len(Learnable().train_data().ids)


@pytest.mark.parametrize("top", [None, 8])
@pytest.mark.parametrize(
    ("scored", "colour"),
    [
        pytest.param(0, "amber", id="none"),
        pytest.param(1, "amber", id="fewer-than-half-of-the-largest-removal"),
        pytest.param(NUM_TRAIN, "green", id="all"),
    ],
)
def test_samples_of_equal_scores_are_removed_in_an_arbitrary_order(tmp_path: Path, scored: int, colour: str, top: int | None) -> None:
    scores = np.zeros((NUM_TRAIN, 3))
    scores[:scored] = -1.0 - np.arange(scored)[:, None]
    for seed in (0, 1):
        np.save(tmp_path / f"{seed}.npy", scores)
    fields: dict[str, Any] = {"attributions": {"top": top}} if top else {}
    finished = run(
        tmp_path / "store",
        methods=["ntk-final/tracking", "mine", "random"],
        external={"mine": {"path": str(tmp_path / "{seed}.npy"), "positive_raises": True, "unverified": True}},
        test_points=3,
        **fields,
    )
    found = doctor(finished).worst_of("equal scores")
    assert found.colour == colour
    assert "mine" in found.text or colour == "green"
