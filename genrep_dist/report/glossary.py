"""The names of methods and the terms of a report, explained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from genrep_dist.core.kernels import KERNELS
from genrep_dist.core.kernels.user import UserKernel
from genrep_dist.core.methods import Method, describe
from genrep_dist.evaluation.metrics.base import metric_infos
from genrep_dist.evaluation.tables import EvaluationTables

_CHECKPOINTS = {
    "initial": "before training",
    "middle": "half-way through training",
    "final": "after training",
    "all": "at several checkpoints, summed",
}
_TERMS = (
    ("training sample, score φ", "φ(xᵢ → x): how much the training sample xᵢ raises (φ > 0) or lowers (φ < 0) the explained number at x."),
    (
        "network, seed",
        "One original model. Another seed gives other initial parameters, another order of the samples and other test points.",
    ),
    ("random removal", "Training samples removed at random: what any removal of this size does. A method is useful if it does better."),
    ("retraining", "A network is trained again without some samples. Every number of deletion metrics comes from real retrainings."),
)
_STATISTICS = (
    ("95% interval", "From a bootstrap over networks: points of one network are not independent."),
    ("Holm-corrected p", "The p-value of a sign-flip test over networks, corrected for the number of comparisons."),
)


@dataclass(frozen=True)
class Term:
    """A name and what it means; ``formula`` and ``source`` where it has them."""

    name: str
    meaning: str
    formula: str = ""
    source: str = ""


def method_terms(methods: Sequence[Method]) -> list[Term]:
    """An entry for each method, in the order given."""
    return [_method_term(method) for method in methods]


def terms(tables: EvaluationTables) -> list[Term]:
    """The measured numbers, and the terms that every report uses; those of statistics where there are several networks."""
    has_intervals = tables.metrics["ci95_clustered_low"].null_count() < tables.metrics.height
    return [*_numbers(tables), *(Term(*one) for one in (*_TERMS, *(_STATISTICS if has_intervals else ())))]


def _method_term(method: Method) -> Term:
    if method.has_kernel and method.kernel not in KERNELS:
        # A kernel of the user's own, by the name that the experiment gives it.
        importance = method.importance_class
        formula = f"{importance.formula} {UserKernel.formula} at theta_{method.checkpoint}"
        return Term(method.name, f"{_kernel_text(method)}, the user's own; importance {method.importance}", formula, importance.source)
    found = describe(method)
    if method.is_random or method.is_external:
        return Term(method.name, "samples removed at random" if method.is_random else "scores of another tool", "", found.source)
    if method.scorer_class is not None:
        return Term(method.name, method.scorer_class.meaning, found.formula, found.source)
    return Term(method.name, f"{_kernel_text(method)}; importance {method.importance}", found.formula, found.source)


def _kernel_text(method: Method) -> str:
    when = _CHECKPOINTS.get(method.checkpoint, f"after training for {method.checkpoint[5:]} epochs")
    if method.averages_checkpoints:
        when = f"at {method.networks} checkpoints, averaged"
    return f"kernel {method.kernel}, taken {when}"


def _numbers(tables: EvaluationTables) -> Iterator[Term]:
    infos = metric_infos()
    for name in tables.measured:
        title, explanation = infos[name].title, infos[name].explanation
        yield Term(title, explanation.removeprefix(f"{title}: "))
