"""Inner products of factored gradients against those of gradients computed one by one, and the method used for each layer."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from genrep_dist.core.gradients.factored import inner_products
from genrep_dist.core.gradients.inspection import ModelInspection, inspect_model, slow_layers
from genrep_dist.core.gradients.per_sample import factored_gradients
from genrep_dist.core.gradients.reference import one_by_one
from genrep_dist.diagnostics.context import ROUNDINGS, CheckContext, largest_sample
from genrep_dist.diagnostics.finding import Finding, compare, nan_as_inf

BEFORE_RETRAINING = True
_STRATEGIES = {
    "factored": "as factors",
    "dense": "as gradients",
    "torch.func": "by torch.func",
    "loop": "by one backward pass per sample",
}


def check(context: CheckContext) -> Iterator[Finding]:
    """One finding if the run uses gradient features. The number is in units of |g_i| |g_j|."""
    if not any(kernel.factored for kernel in context.feature_kernels().values()):
        return
    number, sample = max((_difference(context, output) for output in context.outputs), key=lambda found: nan_as_inf(found[0]))
    yield compare(
        "features",
        number,
        context.rounding,
        f"largest difference between products of factored features and of single gradients, over {len(context.rows)} samples, at sample "
        f"id {context.train_id(sample)}{context.outputs_text}; bound: {ROUNDINGS:,} roundings; "
        f"{layers_text(inspect_model(context.model, context.inputs))}",
        "on a GPU set torch.backends.cuda.matmul.allow_tf32 = False; else a layer's gradient is assembled wrongly: find it by removing "
        "layers",
        seed=context.seed,
    )


def _difference(context: CheckContext, output: int | None) -> tuple[float, int]:
    """The largest difference of two products in units of the norms, and its sample."""
    rows = factored_gradients(context.model, context.inputs, context.output_index(context.inputs, output))
    found = inner_products(rows, rows).double()
    slow = torch.cat([one_by_one(context.model, sample, output).double().reshape(rows.num_outputs, -1) for sample in context.inputs])
    sizes = slow.norm(dim=1)
    scale = (sizes[:, None] * sizes[None, :]).clamp(min=torch.finfo(torch.float64).tiny)
    return largest_sample(((found - slow @ slow.T).abs() / scale).view(len(context.rows), -1))


def layers_text(inspection: ModelInspection) -> str:
    """Layers by the method that computes their gradients: 'as factors: conv1, conv2 (Conv2d); by torch.func: scale (OwnLayer)'.

    The reasons for the slower methods follow.
    """
    parts = []
    for strategy, text in _STRATEGIES.items():
        layers = [f"{one.layer or 'the model itself'} ({one.layer_type})" for one in inspection.strategies if one.strategy == strategy]
        if layers:
            parts.append(f"{text}: {', '.join(layers)}")
    return "; ".join([*parts, *slow_layers(inspection)])
