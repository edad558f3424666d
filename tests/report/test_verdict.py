from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from genrep_dist.errors import NotCommittedError
from genrep_dist.evaluation.metrics.base import POINTS_SCHEMA
from genrep_dist.evaluation.statistics import metrics_table
from genrep_dist.evaluation.tables import EvaluationTables, table_specs
from genrep_dist.report.verdict import Verdict, p_text, percent, verdict


def judged(
    values: dict[str, list[float]],
    sign: str = "negative",
    tables: dict[str, pl.DataFrame] | None = None,
    declared: str | None = None,
    simple: tuple[str, ...] = (),
) -> Verdict:
    """The verdict on methods whose AUC in each network (two points each) is given; ``tables`` are more tables of the evaluation."""
    rows = [
        (f"auc_del_{sign}", method, seed, point, value)
        for method, per_seed in values.items()
        for seed, value in enumerate(per_seed)
        for point in range(2)
    ]
    points = pl.DataFrame(rows, schema=POINTS_SCHEMA, orient="row")
    more = dict(tables or {})
    means = pl.concat([metrics_table(points, list(values)), *([more.pop("metrics")] if "metrics" in more else [])])
    return verdict(EvaluationTables(points=points, metrics=means, **more), declared=declared, simple=simple)


def compared(*rows: tuple[str, str, float, float, float, float], metric: str = "auc_del_negative") -> dict[str, pl.DataFrame]:
    """Comparisons (method, baseline, mean, low, high, p_holm)."""
    full = [(metric, method, other, mean, low, high, None, None, p / 10, p, 20, 2) for method, other, mean, low, high, p in rows]
    return {"comparisons": pl.DataFrame(full, schema=dict(table_specs()["comparisons"].columns), orient="row")}


NOISE = np.random.default_rng(5).normal(size=(3, 20))


def around(mean: float, spread: float = 0.1, row: int = 0) -> list[float]:
    """Twenty networks with exactly this mean."""
    return [mean + spread * float(noise - NOISE[row].mean()) for noise in NOISE[row]]


def test_a_clear_winner() -> None:
    found = judged({"good": around(2.0), "fair": around(1.0, row=1), "random": around(0.1, row=2)})
    assert found.headline.startswith(
        "good scores best of 2 methods: removing the training samples that it selects raises the prediction by 2.0"
    )
    assert "random removal changes it by 0.1" in found.headline
    assert "do not overlap" in found.sentences[0]
    assert found.sentences[1].startswith("The runner-up, fair, has 1.0")
    assert "excludes zero" in found.sentences[1]


def test_overlapping_intervals_with_a_paired_lead() -> None:
    shared = around(1.0, 1.0)
    found = judged({"good": shared, "random": [value - 0.3 for value in shared]})
    assert "The two methods' own intervals overlap, but the paired difference excludes zero" in found.sentences[0]
    assert "not established" not in found.headline


def test_a_lead_that_may_be_chance() -> None:
    found = judged({"good": around(0.15, 1.0), "random": around(0.1, 1.0, row=1)})
    assert "random removal changes it by 0.100, and a difference is not established" in found.headline
    assert "may be chance" in found.sentences[0]


def test_runner_up_that_cannot_be_told_apart() -> None:
    found = judged({"good": around(2.0, 0.5), "fair": around(2.0, 0.5, row=1), "random": around(0.0, row=2)})
    assert "these data do not separate the two" in found.sentences[1]


def test_several_leaders_are_not_told_apart() -> None:
    tied = {"good": around(2.0, 0.5), "fair": around(1.97, 0.5, row=1), "weak": around(1.0, row=2), "random": around(0.0)}
    found = judged(tied)
    assert found.headline == (
        "Two of 3 methods lead and cannot be told apart: removing the training samples that they select raises the prediction by 1.97 to "
        "2.00 on average over the declared shares; random removal changes it by 0.00."
    )
    assert found.leaders == ("good", "fair")
    assert "Not told apart from good, which has the best mean: fair (paired differences, Holm-corrected over 2 tests)." in found.sentences
    del tied["weak"]
    assert judged(tied).headline.startswith("The two methods cannot be told apart: ")


def test_a_lead_within_the_noise_of_few_networks_is_no_lead() -> None:
    """Five networks agree on the order, but their smallest possible p-value is 1/16."""
    base = around(1.0, 1.0)[:5]
    found = judged({"good": [value + 0.3 for value in base], "fair": base, "random": [value - 2.0 for value in base]})
    assert found.headline.startswith("The two methods cannot be told apart")
    assert "This interval excludes zero, but corrected for all comparisons the difference may be chance." in found.sentences[1]


def test_one_network_names_no_best_method() -> None:
    assert judged({"good": [2.0], "fair": [1.0], "random": [0.1]}).headline.startswith(
        "good has the best value of 2 methods in one network: "
    )


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
    assert found.sentences[-1] == "With 3 seeds the intervals are rough."
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
    with pytest.raises(NotCommittedError, match="nothing to report"):
        verdict(EvaluationTables())


FIELD = {"good": around(2.0), "fair": around(1.9, row=1), "random": around(0.1, row=2)}


def test_the_verdict_names_the_best_method() -> None:
    assert judged(FIELD).best == "good"
    assert judged({"random": around(0.1)}).best == "random"
    assert judged({"bad": around(-1.0), "random": around(0.1, row=1)}).best == "bad"


def test_the_corrected_p_value_decides() -> None:
    found = judged(FIELD, tables=compared(("good", "random", 1.9, 1.8, 2.0, 0.0004)))
    assert "1.90 (95% interval 1.80 to 2.00; Holm-corrected p < 0.001)" in found.sentences[0]
    assert "not established" not in found.headline
    found = judged(FIELD, tables=compared(("good", "random", 1.9, 1.8, 2.0, 0.0625)))
    assert "Holm-corrected p = 0.062" in found.sentences[0]
    assert "excludes zero, but corrected for all comparisons the difference may be chance" in found.sentences[0]
    assert "and a difference is not established" in found.headline
    found = judged(FIELD, tables=compared(("good", "random", 1.9, -0.1, 2.0, 0.01)))
    assert "The test establishes the difference, although its interval includes zero" in found.sentences[0]
    found = judged(FIELD, tables=compared(("good", "random", 1.9, -0.1, 2.0, 0.5)))
    assert "This interval includes zero, so the difference may be chance" in found.sentences[0]


@pytest.mark.parametrize(("low", "says"), [(0.2, "not limited to these points"), (-0.2, "on other test points there may be no lead")])
def test_what_points_that_all_seeds_share_say_of_others(low: float, says: str) -> None:
    tables = compared(("good", "random", 1.9, 1.5, 2.3, 0.001))
    crossed = tables["comparisons"].with_columns(ci95_two_way_low=pl.lit(low), ci95_two_way_high=pl.lit(3.6))
    values = {"good": around(2.0), "random": around(0.1, row=2)}
    told = judged(values, tables={"comparisons": crossed}).sentences[0]
    assert told.endswith(f"resampled too, the interval is {str(low).replace('-', '−')}0 to 3.60: {'the lead is ' * (low > 0)}{says}.")
    assert "resampled" not in judged(values, tables=tables).sentences[0]


def test_comparisons_of_another_metric_say_nothing() -> None:
    assert judged(FIELD, tables=compared(("good", "random", 9.0, 8.0, 9.5, 0.9), metric="lds")).sentences == judged(FIELD).sentences


def test_random_is_better_by_its_p_value() -> None:
    values = {"bad": around(-1.0), "random": around(0.1, row=1)}
    found = judged(values, tables=compared(("bad", "random", -1.1, -1.2, -1.0, 0.001)))
    assert "Random removal does better, and not by chance alone" in found.sentences[0]


def test_the_declared_baseline() -> None:
    tables = compared(("good", "random", 1.9, 1.8, 2.0, 0.001), ("good", "fair", 0.1, 0.05, 0.15, 0.003))
    found = judged(FIELD, tables=tables, declared="fair")
    assert found.sentences[1].startswith("Against the declared baseline, fair: paired difference 0.10")
    assert found.sentences[1].endswith("Holm-corrected p = 0.003), which is established.")
    assert "is the baseline that the experiment declares" in judged(FIELD, declared="good").sentences[1]
    assert not any("declare" in sentence for sentence in judged(FIELD, declared="random").sentences)


def test_simple_baselines() -> None:
    values = {
        "good": around(2.0),
        "fair": around(1.0, 1.0, row=1),
        "poor": around(0.2),
        "near": around(0.9, row=2),
        "own": around(0.5, row=1),
        "random": around(0.0),
    }
    (said,) = [text for text in judged(values, simple=("near", "own")).sentences if "simple baseline" in text]
    assert said.startswith("The best simple baseline is near, 0.90")
    assert "good beats every simple baseline (sign-flip tests, Holm-corrected, p < 0.05); not shown for fair and poor." in said
    (none,) = [text for text in judged({**values, "near": around(3.0)}, simple=("near", "own")).sentences if "simple baseline" in text]
    assert "No method is shown to beat it" in none
    assert not any("simple baseline" in text for text in judged(values).sentences)
    assert not any("simple baseline" in text for text in judged({"near": around(1.0), "random": around(0.0)}, simple=("near",)).sentences)


def test_the_bootstraps_order() -> None:
    ranks = pl.DataFrame([("auc_del_negative", "good", "fair", 0.93)], schema=dict(table_specs()["ranks"].columns), orient="row")
    best = pl.DataFrame([("auc_del_negative", "good", 1.2, 0.999)], schema=dict(table_specs()["best"].columns), orient="row")
    sentence = next(s for s in judged(FIELD, tables={"ranks": ranks}).sentences if "runner-up" in s)
    assert sentence.endswith("good beats fair in 93\N{NO-BREAK SPACE}% of bootstrap draws over seeds.")
    sentence = next(s for s in judged(FIELD, tables={"ranks": ranks, "best": best}).sentences if "runner-up" in s)
    assert sentence.endswith("draws over seeds, and all methods in more than 99\N{NO-BREAK SPACE}%.")


def test_what_the_other_metrics_say() -> None:
    means = [("lds", "good", 0.1), ("lds", "fair", 0.3), ("brittleness_removed", "good", 0.02), ("brittleness_removed", "fair", 0.05)]
    metrics = pl.DataFrame(
        [(metric, method, mean, None, None, None, None, None, 20, 2) for metric, method, mean in means],
        schema=dict(table_specs()["metrics"].columns),
        orient="row",
    )
    sentences = judged(FIELD, tables={"metrics": metrics}).sentences
    assert "It also has the best mean of removed to flip." in sentences
    assert "By other metrics another method is best: fair (LDS)." in sentences
    tied = metrics.with_columns(mean=pl.when(pl.col("method") == "good").then(0.3).otherwise(0.1 + 0.2))
    assert not any("other metrics" in s or "best mean" in s for s in judged(FIELD, tables={"metrics": tied}).sentences)


def test_seeds_too_few_for_any_p_value_are_said_to_be() -> None:
    few = {"good": [2.0, 2.1, 2.2, 2.3, 2.4], "random": [0.1, 0.2, 0.0, 0.1, 0.1]}
    tables = compared(("good", "random", 2.0, 1.9, 2.1, 0.0625))
    assert "With 5 seeds and one comparison no corrected p-value can be below 0.062." in judged(few, tables=tables).sentences
    three = {name: values[:3] for name, values in few.items()}
    assert "With 3 seeds and one comparison every corrected p-value is 1." not in judged(three, tables=tables).sentences
    two = {name: values[:2] for name, values in few.items()}
    both = compared(("good", "random", 2.0, 1.9, 2.1, 1.0), ("random", "good", -2.0, -2.1, -1.9, 1.0))
    assert "With 2 seeds and 2 comparisons every corrected p-value is 1." in judged(two, tables=both).sentences
    six = {name: [*values, values[0]] for name, values in few.items()}
    assert not any("corrected p-value" in sentence for sentence in judged(six, tables=tables).sentences)
    assert not any("corrected p-value" in sentence for sentence in judged(few).sentences)


def test_that_p_values_are_corrected_is_said_where_there_are_some() -> None:
    values = {"a": around(2.0), "b": around(1.0), "c": around(1.5), "random": around(0.0)}
    assert "Holm" not in judged(values).sentences[-1]
    assert "(Holm)" in judged(values, tables=compared(("a", "random", 2.0, 1.9, 2.1, 0.001))).sentences[-1]


@pytest.mark.parametrize(("p", "text"), [(0.0009, "p < 0.001"), (0.001, "p = 0.001"), (0.0456, "p = 0.046"), (1.0, "p = 1")])
def test_p_values_as_papers_write_them(p: float, text: str) -> None:
    assert p_text(p) == text


@pytest.mark.parametrize(
    ("share", "text"), [(1.0, "100 %"), (0.9999, "more than 99 %"), (0.0, "0 %"), (0.0001, "less than 1 %"), (0.5, "50 %")]
)
def test_shares(share: float, text: str) -> None:
    assert percent(share).replace("\N{NO-BREAK SPACE}", " ") == text
