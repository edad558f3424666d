"""Stage attributions: phi of every method for the seed's test points, and the order in which it would remove samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from genrep_dist.core.attribution import Sign, attribute, ranking, tracincp
from genrep_dist.core.methods import SOLVED, Method
from genrep_dist.store.artifacts import Artifact
from genrep_dist.units import AttributionUnit
from genrep_dist.workflow.context import Workbench, to_numpy
from genrep_dist.workflow.importances import importance

KernelOf = Callable[[str, int], Tensor]

SIGNS: tuple[Sign, ...] = ("negative", "positive")


def run(unit: AttributionUnit, bench: Workbench) -> dict[str, float]:
    """Write phi (N, M) float64 and the full removal orders (M, N) of sample ids, most negative and most positive first."""
    method = bench.experiment.method(unit.method)
    phi = attribution(method, unit.seed, bench)
    manifest: dict[str, Any] = {"test_ids": bench.test.ids[bench.test_positions(unit.seed)].tolist()}
    if method.importance in SOLVED:
        manifest["efficiency_gap_test"] = _efficiency_gap(phi, unit.seed, bench)
    artifact = bench.store.artifact("attribution", bench.keys.attribution(unit.seed, method))
    write_attribution(artifact, method, unit.seed, phi, bench.train.ids, {**manifest, "seconds": bench.elapsed()})
    return {"scores": float(phi.numel())}


def write_attribution(artifact: Artifact, method: Method, seed: int, phi: Tensor, ids: Tensor, manifest: dict[str, Any]) -> None:
    """Write phi (N, M) and the full removal orders (M, N) of the training ``ids`` (N,), and commit."""
    artifact.write("phi", to_numpy(phi), ("train", "test"))
    for sign in SIGNS:
        artifact.write(f"order_{sign}", to_numpy(ranking(phi, ids, len(ids), sign)), ("test", "rank"))
    # By its parts: two names of one method (`representer-point`, `last-layer-final/surrogate`) share this artifact.
    parts = {"kernel": method.kernel, "checkpoint": method.checkpoint, "importance": method.importance}
    artifact.commit({**parts, "seed": seed, **manifest})


def _efficiency_gap(phi: Tensor, seed: int, bench: Workbench) -> float:
    """Max |f(x) - sum_i phi(x_i -> x)| over the seed's test points (Definition 1), f the explained output."""
    outputs = torch.from_numpy(bench.train_artifact(seed).read("outputs_test")[bench.test_positions(seed)]).double()
    explained = outputs.gather(1, bench.target_outputs(seed).cpu()[:, None]).squeeze(1)
    return float((explained - phi.sum(dim=0)).abs().max())


def attribution(method: Method, seed: int, bench: Workbench, kernel: KernelOf | None = None) -> Tensor:
    """Phi (N, M) float64 of a method for the test points of ``seed``; ``kernel(name, epoch)`` (N, C, M), by default as stored."""
    if method.importance == "random":
        return bench.random_scores(seed).double()
    epochs = bench.keys.method_epochs(method)
    kernels = [(kernel(method.kernel, epoch) if kernel else _kernel(bench, seed, method.kernel, epoch)).double() for epoch in epochs]
    if method.checkpoint == "all":
        alphas = [importance(bench, "target", seed, method.kernel, epoch) for epoch in epochs]
        return tracincp((bench.rate(seed, e), a, k) for e, a, k in zip(epochs, alphas, kernels, strict=True))
    # The target derivative is taken at the model that is explained, whatever the kernel's checkpoint.
    alpha = importance(bench, method.importance, seed, method.kernel, _alpha_epoch(method, bench, epochs[0]))
    return attribute(alpha, kernels[0])


def _alpha_epoch(method: Method, bench: Workbench, kernel_epoch: int) -> int:
    return bench.keys.epochs if method.importance == "target" else kernel_epoch


def _kernel(bench: Workbench, seed: int, kernel: str, epoch: int) -> Tensor:
    return torch.from_numpy(bench.store.artifact("kernel", bench.keys.kernel(seed, kernel, epoch)).read("kernel"))
