"""How many batches of one row retrainings meet, against trials."""

from __future__ import annotations

import numpy as np
import pytest

from genrep_dist.workflow.single_rows import batch_sizes, expected_single_rows


def test_sizes_of_batches() -> None:
    assert batch_sizes(24, 8) == {8: 3}
    assert batch_sizes(25, 8) == {8: 3, 1: 1}
    assert batch_sizes(5, 8) == {5: 1}
    assert batch_sizes(3, 1) == {1: 3}
    assert batch_sizes(16, 8) == {8: 2}


@pytest.mark.parametrize(("rows", "batch_size", "removed"), [(18, 8, 1), (18, 8, 2), (19, 8, 2), (20, 3, 8), (12, 4, 6), (10, 2, 1)])
def test_the_expected_number_is_that_of_trials(rows: int, batch_size: int, removed: int) -> None:
    generator, trials, found = np.random.default_rng(0), 4000, 0
    for _ in range(trials):
        kept = generator.permutation(rows) >= removed
        found += sum(int(kept[start : start + batch_size].sum()) == 1 for start in range(0, rows, batch_size))
    assert found / trials == pytest.approx(expected_single_rows(rows, batch_size, removed), rel=0.2, abs=0.01)


def test_smaller_removals_are_covered() -> None:
    """With nearly all rows removed, batches of one row are rarer than with fewer."""
    exact = [expected_single_rows(12, 4, removed) for removed in range(12)]
    assert exact == sorted(exact)
    assert exact[-1] == exact[9] == pytest.approx(3 * 3 * 84 / 495)


def test_usual_sizes_are_safe() -> None:
    """Ten percent of four thousand rows, in batches of 32; and numbers of this size cause no overflow."""
    assert expected_single_rows(4000, 32, 400) < 1e-25
    assert expected_single_rows(50_000, 512, 25_000) < 1e-90
