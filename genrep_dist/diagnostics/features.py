"""Features as they are multiplied: products of factors against products of gradients taken one by one, and the way of every layer."""

from __future__ import annotations

import torch

from genrep_dist.core.gradients.factored import inner_products
from genrep_dist.core.gradients.inspection import ModelInspection, inspect_model
from genrep_dist.core.gradients.per_sample import factored_gradients
from genrep_dist.diagnostics.finding import Finding, judge
from genrep_dist.diagnostics.fixture import ROUNDINGS, Patient, one_by_one

_SAID = {
    "factored": "as factors",
    "dense": "as gradients",
    "torch.func": "by torch.func",
    "loop": "by a backward pass for each sample",
}


def products(patient: Patient) -> list[Finding]:
    """Inner products of the sampled rows, from factors, in units of |g_i| |g_j|; it says which layers were kept in which form."""
    if not any(kernel == "ntk" for kernel, _ in patient.plan.kernels_needed()):
        return []
    model = patient.model
    rows = factored_gradients(model, patient.inputs)
    found = inner_products(rows, rows).double()
    slow = torch.cat([one_by_one(model, sample) for sample in patient.inputs]).double()
    sizes = slow.norm(dim=1)
    scale = (sizes[:, None] * sizes[None, :]).clamp(min=torch.finfo(torch.float64).tiny)
    ratios = ((found - slow @ slow.T).abs() / scale).amax(dim=1).view(len(patient.rows), -1).amax(dim=1)
    sample = int(torch.where(ratios.isnan(), torch.inf, ratios).argmax())
    finding = judge(
        "features",
        float(ratios[sample]),
        patient.rounding,
        f"largest difference between products of factored features and of gradients taken one by one, over {len(patient.rows)} samples, at "
        f"sample id {patient.train_id(sample)}; bound: {ROUNDINGS:,} roundings; {told(inspect_model(model, patient.inputs))}",
        "on a GPU set torch.backends.cuda.matmul.allow_tf32 = False; else a layer's gradient is put together wrongly: find it by removing "
        "others",
        seed=patient.seed,
    )
    return [finding]


def told(layout: ModelInspection) -> str:
    """Which layers were treated in which way: 'as factors: conv1, conv2 (Conv2d); by torch.func: scale (OwnLayer)'."""
    parts = []
    for way, said in _SAID.items():
        layers = [f"{one.layer or 'the model itself'} ({one.layer_type})" for one in layout.strategies if one.strategy == way]
        if layers:
            parts.append(f"{said}: {', '.join(layers)}")
    return "; ".join(parts)
