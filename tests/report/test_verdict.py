from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from genrep_dist.errors import NotCommittedError
from genrep_dist.evaluation.statistics import summarise
from genrep_dist.report.verdict import Verdict, verdict
from tests.evaluation.examples import Labels, synthetic_deletion


def judged(values: dict[str, list[float]], sign: str = "negative") -> Verdict:
    """The verdict on methods whose AUC in each network (two points each) is given."""
    rows = [
        (seed, method, point, sign, 0.1, 1, 0.0, value, value)
        for method, per_seed in values.items()
        for seed, value in enumerate(per_seed)
        for point in range(2)
    ]
    deletion = pl.DataFrame(rows, schema=synthetic_deletion(num_seeds=1, num_points=1).columns, orient="row")
    return verdict(summarise(deletion, [Labels(method) for method in values]), deletion)


NOISE = np.random.default_rng(5).normal(size=(3, 20))


def around(mean: float, spread: float = 0.1, row: int = 0) -> list[float]:
    """Twenty networks with exactly this mean."""
    return [mean + spread * float(noise - NOISE[row].mean()) for noise in NOISE[row]]


def test_a_clear_winner() -> None:
    found = judged({"good": around(2.0), "fair": around(1.0, row=1), "random": around(0.1, row=2)})
    assert found.headline.startswith(
        "good scores best of 2 methods: leaving out the training samples that it names raises the prediction by 2.0"
    )
    assert "random removal changes it by 0.1" in found.headline
    assert "do not overlap" in found.sentences[0]
    assert found.sentences[1].startswith("The runner-up, fair, has 1.0")
    assert "excludes zero" in found.sentences[1]


def test_overlapping_intervals_with_a_paired_lead() -> None:
    shared = around(1.0, 1.0)
    found = judged({"good": shared, "random": [value - 0.3 for value in shared]})
    assert "The two methods' own intervals overlap, but the paired difference stays on one side of zero" in found.sentences[0]
    assert "not established" not in found.headline


def test_a_lead_that_may_be_chance() -> None:
    found = judged({"good": around(0.15, 1.0), "random": around(0.1, 1.0, row=1)})
    assert "random removal changes it by 0.100, and a difference is not established" in found.headline
    assert "may be chance" in found.sentences[0]


def test_runner_up_that_cannot_be_told_apart() -> None:
    found = judged({"good": around(2.0, 0.5), "fair": around(2.0, 0.5, row=1), "random": around(0.0, row=2)})
    assert "the two cannot be told apart here" in found.sentences[1]


def test_random_is_better() -> None:
    found = judged({"bad": around(-1.0), "random": around(0.1, row=1)})
    assert found.headline.startswith("No method does better than random removal: it has AUC-DEL₋ 0.1")
    assert "; bad has \N{MINUS SIGN}1.00" in found.headline
    assert "Random removal does better" in found.sentences[0]
    assert "includes zero" not in found.sentences[0]


def test_one_seed_is_said_to_be_one() -> None:
    found = judged({"good": [2.0], "fair": [1.0], "random": [0.1]})
    text = " ".join((found.headline, *found.sentences))
    assert "interval " not in text.replace("no intervals", "")
    assert "One seed was run" in found.sentences[-1]
    assert "overlap" not in text


def test_few_seeds_are_said_to_be_few() -> None:
    found = judged({"good": [2.0, 2.5, 1.5], "random": [0.1, 0.0, 0.2]})
    assert "With 3 seeds the intervals are rough" in found.sentences[-1]
    assert not any("rough" in sentence for sentence in judged({"good": around(2.0), "random": around(0.0)}).sentences)


def test_without_random_nothing_is_claimed_about_it() -> None:
    found = judged({"good": around(2.0), "fair": around(1.0)})
    assert "random" not in found.headline
    assert "Random removal was not measured" in found.sentences[0]


def test_only_random() -> None:
    assert judged({"random": around(0.1)}).headline.startswith("Only random removal was measured: AUC-DEL₋ 0.1")


def test_picking_the_best_of_many_is_mentioned() -> None:
    found = judged({"a": around(2.0), "b": around(1.0), "c": around(1.5), "random": around(0.0)})
    assert "not corrected" in found.sentences[-1]


@pytest.mark.parametrize("sign", ["negative", "positive"])
def test_the_positive_sign_is_the_mirror(sign: str) -> None:
    mirror = 1.0 if sign == "negative" else -1.0
    found = judged({name: [mirror * v for v in values] for name, values in {"good": around(2.0), "random": around(0.1)}.items()}, sign)
    assert ("raises" if sign == "negative" else "lowers") + " the prediction by 2.0" in found.headline
    assert "do not overlap" in found.sentences[0]


def test_what_raises_nothing_is_not_said_to_raise() -> None:
    found = judged({"weak": around(-1.0), "random": around(-2.0, row=1)})
    assert "does not raise the prediction: AUC-DEL₋ \N{MINUS SIGN}" in found.headline


def test_order_of_rows_does_not_change_the_words() -> None:
    values = {"b": around(1.0), "a": around(1.0), "random": around(0.0)}
    assert judged(values) == judged(dict(reversed(values.items())))


def test_nothing_to_report() -> None:
    deletion = synthetic_deletion(num_seeds=2)
    empty: Any = summarise(deletion, [])
    with pytest.raises(NotCommittedError, match="nothing to report"):
        verdict(empty, deletion)
