"""Whether a difference is rounding that a model amplifies, or another number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from genrep_dist.diagnostics.context import CheckContext
from genrep_dist.diagnostics.finding import Finding


def amber_if_rounding(
    found: Finding, context: CheckContext, measure: Callable[[nn.Module, Tensor], float], epoch: int | None = None
) -> Finding:
    """``found``, or the same in amber if it is red and ``measure`` of the model and inputs (S, ...) in float64 is within its bound.

    Where a unit of a ReLU network is within one rounding of zero, or a layer chooses by comparing numbers, two right ways of computing
    differ by far more than a rounding. In float64 they agree. ``epoch``: of the model, by default the last. A model that does not run
    in float64 stays red.
    """
    if found.colour != "red" or found.bound is None:
        return found
    try:
        inputs = context.inputs.double() if context.inputs.is_floating_point() else context.inputs
        model = context.model_at(context.plan.keys.epochs if epoch is None else epoch).double()
        number = measure(model, inputs)
    except Exception:  # the user's model may raise anything
        return found
    if not number <= found.bound:
        return found
    text = f"{found.text}; in float64 the difference is {number:.2g}, so that it is rounding, which this model amplifies"
    return replace(
        found, colour="amber", text=text, remedy="no action is needed if such differences do not matter to you; else use float64"
    )
