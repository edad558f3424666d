"""Stage diagonals: K(x_i, x_i) of every training sample, which self-influence is made of."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from genrep_dist.core.attribution import random_scores
from genrep_dist.core.methods import Method
from genrep_dist.core.self_influence import own_outputs, scalar_diagonal, self_influence
from genrep_dist.seeds import derive_seed
from genrep_dist.units import DiagonalUnit
from genrep_dist.workflow.context import Workbench, label_loss
from genrep_dist.workflow.importances import importance
from genrep_dist.workflow.influence import influence_self_kernel, write_diagonal

OWN_KERNEL_ROWS = 64
"""A kernel of the user's own is asked for a whole block, of which the diagonal is used."""


def run(unit: DiagonalUnit, bench: Workbench) -> dict[str, float]:
    """Write K_c(x_i, x_i) (N, C) float64: how much of output c's derivative reaches the logit of sample i's own label.

    (The influence kernel's is written with that kernel, of one factorisation; here only if it was lost.)
    """
    own, _ = own_outputs(bench.train.targets.cpu(), label_loss(bench.loss))
    if unit.kernel == "influence":
        diagonal = influence_self_kernel(unit.seed, unit.epoch, own, bench)
    else:
        diagonal = torch.cat(list(_blocks(unit, bench, own)))
    write_diagonal(bench, unit.seed, unit.kernel, unit.epoch, diagonal)
    return {"rows": float(len(diagonal))}


def _blocks(unit: DiagonalUnit, bench: Workbench, own: Tensor) -> Iterator[Tensor]:
    num_train, num_outputs = len(own), bench.train_artifact(unit.seed).read("outputs_test").shape[1]
    rows = OWN_KERNEL_ROWS if unit.kernel in bench.own_kernels else unit.block
    for start in range(0, num_train, rows):
        at = slice(start, min(start + rows, num_train))
        if unit.kernel in bench.own_kernels:
            inputs = bench.train.inputs[at]
            yield scalar_diagonal(bench.own_kernel_block(unit, inputs, inputs).diagonal().cpu(), own[at], num_outputs)
            continue
        if unit.kernel == "last-layer":
            features = bench.features(unit.seed, unit.kernel, unit.epoch, at.start, at.stop).cpu()
            yield scalar_diagonal(features.double().square().sum(dim=1), own[at], num_outputs)
        else:
            yield bench.feature_rows(unit.seed, unit.epoch, at.start, at.stop).self_product(own[at].to(bench.device)).cpu()


def self_influence_of(method: Method, seed: int, bench: Workbench) -> Tensor:
    """Phi(x_i -> x_i) (N,) float64 of a method: how much each training sample raises the logit of its own given label."""
    own, direction = own_outputs(bench.train.targets.cpu(), label_loss(bench.loss))
    if method.importance == "random":
        return random_scores([derive_seed(seed, "random", "self")], len(own))[:, 0]
    epochs = bench.keys.method_epochs(method)
    total = torch.zeros(len(own), dtype=torch.float64)
    for epoch in epochs:
        diagonal = torch.from_numpy(bench.store.artifact("diagonal", bench.keys.diagonal(seed, method.kernel, epoch)).read("diagonal"))
        # As in the attributions: the target derivative is the explained model's, but in TracInCP each checkpoint's own.
        final = method.importance == "target" and method.checkpoint != "all"
        alpha = importance(bench, method.importance, seed, method.kernel, bench.keys.epochs if final else epoch)
        rate = bench.rate(seed, epoch) if method.checkpoint == "all" else 1.0
        total += rate * self_influence(alpha, diagonal, direction)
    return total
