"""Momentum and weight decay against methods whose derivation assumes plain SGD."""

from __future__ import annotations

from collections.abc import Iterator

from genrep_dist.diagnostics.context import CheckContext
from genrep_dist.diagnostics.finding import Finding, compare, green

_EFFECTS = {
    "momentum": "each step repeats a part of the previous steps, so eta_t times its own derivative (Eq. 10, 14) is not the change of "
    "the parameters",
    "weight_decay": "each step also shrinks the parameters, a change of f that belongs to no training sample",
}


def check(context: CheckContext) -> Iterator[Finding]:
    recipe, experiment = context.plan.keys.recipe, context.plan.experiment
    assume_sgd = [method.name for method in experiment.parsed_methods if method.importance == "tracking" or method.checkpoint == "all"]
    values = {name: float(recipe[name]) for name in _EFFECTS if recipe[name] != 0}
    if not values:
        yield green("optimiser", "plain SGD, which the tracking and TracIn identities assume", number=0.0, bound=0.0)
    for name, value in values.items():
        if not assume_sgd:
            yield green("optimiser", f"{name}; no method of this run assumes plain SGD", number=value)
            continue
        text = (
            f"{name}: {_EFFECTS[name]}; f_T - f_0 = sum_i alpha_i K(x_i, .) does not hold, not even for linear models, for "
            f"{', '.join(assume_sgd)}; bound: 0, plain SGD"
        )
        remedy = f"set recipe.{name}: 0 if the identity matters; deletion scores are valid in any case"
        yield compare("optimiser", value, 0.0, text, remedy, otherwise="amber")
