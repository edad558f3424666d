"""Stage influence: the influence kernel K_inf(train, test) (Eq. 15), with the declared curvature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genrep_dist.core.self_influence import influence_diagonal, own_outputs
from genrep_dist.core.solvers.conjugate_gradients import conjugate_gradients
from genrep_dist.core.solvers.gauss_newton import influence_kernel
from genrep_dist.core.solvers.hessian import hessian_product, influence_block
from genrep_dist.core.solvers.hessian_system import declare_damping
from genrep_dist.core.solvers.lissa import lissa
from genrep_dist.seeds import derive_seed
from genrep_dist.units import InfluenceUnit
from genrep_dist.workflow.context import Workbench, label_loss, to_numpy
from genrep_dist.workflow.gram import Gram
from genrep_dist.workflow.importances import train_outputs


def run(unit: InfluenceUnit, bench: Workbench) -> dict[str, float]:
    """Compute K_inf (N, C, M) with all test points of the seed and write it with its certificate. ConvergenceError otherwise."""
    num_test = len(bench.test_positions(unit.seed))
    own = _own_outputs(bench)
    if own is None:
        block, certificate = influence_columns(unit, bench, lambda base: stored_cross(unit, bench, base))
    else:
        block, certificate = _dual(unit, bench, lambda base: stored_cross(unit, bench, base), own)
        # Before the kernel is committed: a kernel that is there then has its diagonal.
        samples = torch.arange(len(own))
        write_diagonal(bench, unit.seed, "influence", unit.epoch, block[samples, :, num_test + samples])
        block = block[:, :, :num_test].contiguous()
    artifact = bench.store.artifact("kernel", bench.keys.kernel(unit.seed, "influence", unit.epoch))
    artifact.write("kernel", to_numpy(block.float()), ("train", "output", "test"))
    about = {"seed": unit.seed, "kernel": "influence", "epoch": unit.epoch, "curvature": bench.experiment.influence.curvature}
    artifact.commit({**about, "certificate": certificate, "seconds": bench.elapsed()})
    return {"residual": float(certificate["residual"])}


def _own_outputs(bench: Workbench) -> Tensor | None:
    """The output (N,) of each sample's own label where self-influence is asked for and can be had; else None."""
    if bench.experiment.problem.flip_labels is None or bench.experiment.influence.base_kernel is None:
        return None
    return own_outputs(bench.train.targets.cpu(), label_loss(bench.loss))[0]


def write_diagonal(bench: Workbench, seed: int, kernel: str, epoch: int, diagonal: Tensor) -> None:
    """Write K_c(x_i, x_i) (N, C) of a kernel as float64."""
    artifact = bench.store.artifact("diagonal", bench.keys.diagonal(seed, kernel, epoch))
    artifact.write("diagonal", to_numpy(diagonal.double()), ("train", "output"))
    artifact.commit({"seed": seed, "kernel": kernel, "epoch": epoch, "seconds": bench.elapsed()})


def influence_columns(unit: InfluenceUnit, bench: Workbench, cross: Callable[[str], Tensor]) -> tuple[Tensor, dict[str, Any]]:
    """K_inf (N, C, M) of the bench's test points, with its certificate; ``cross(kernel)`` is the plain K (N, C, M) of them."""
    return _dual(unit, bench, cross) if bench.experiment.influence.base_kernel else _true_hessian(unit, bench)


def stored_cross(unit: InfluenceUnit, bench: Workbench, base: str) -> Tensor:
    return torch.from_numpy(bench.store.artifact("kernel", bench.keys.kernel(unit.seed, base, unit.epoch)).read("kernel"))


def _dual(
    unit: InfluenceUnit, bench: Workbench, cross: Callable[[str], Tensor], own: Tensor | None = None
) -> tuple[Tensor, dict[str, Any]]:
    """The generalized Gauss-Newton of all parameters, or of the last layer's alone, through the n x n system.

    With ``own`` (N,) the training samples follow as N more test points, each with that output: one factorisation serves both.
    """
    system = _system(unit.seed, unit.epoch, bench)
    columns = cross(system.base)
    if own is not None:
        n, num_outputs = columns.shape[:2]
        mirrored = system.gram[:, torch.arange(n) * num_outputs + own].reshape(n, num_outputs, n)
        columns = torch.cat([columns.double(), mirrored], dim=2)
    block, certificate = influence_kernel(system.gram, columns, system.curvature, **system.settings)
    return block, asdict(certificate)


def influence_self_kernel(seed: int, epoch: int, own: Tensor, bench: Workbench) -> Tensor:
    """K_inf(x_i, x_i) (N, C) float64 of every training sample with the logit of its own label, output ``own`` (N,)."""
    system = _system(seed, epoch, bench)
    return influence_diagonal(system.gram, system.curvature, own, **system.settings)


class _System(NamedTuple):
    """The dual system: ``gram`` (NC, NC) float64, ``curvature`` (N, C, C) float64, and the declared damping."""

    base: str
    gram: Tensor
    curvature: Tensor
    settings: dict[str, Any]


def _system(seed: int, epoch: int, bench: Workbench) -> _System:
    asked = bench.experiment.influence
    base = asked.base_kernel
    assert base is not None
    # The whole matrix at once: a factorisation needs it. The plan has counted its bytes.
    gram = torch.from_numpy(Gram(bench.store.artifact("gram", bench.keys.gram(seed, base, epoch)), 1).dense()).double()
    outputs = train_outputs(bench, seed, epoch).double()
    if base == "last-layer" and outputs.shape[1] > 1:
        gram = torch.kron(gram, torch.eye(outputs.shape[1], dtype=gram.dtype))
    relative = asked.damping_unit == "mean-eigenvalue"
    settings = {"damping": asked.damping, "relative": relative, "num_parameters": bench.num_parameters(base)}
    return _System(base, gram, bench.loss.second_derivative(outputs, bench.train.targets.cpu()), settings)


def _true_hessian(unit: InfluenceUnit, bench: Workbench) -> tuple[Tensor, dict[str, Any]]:
    """The Hessian of the mean training loss by its products with vectors: one linear system for each test point."""
    asked = bench.experiment.influence
    model = bench.model(unit.seed, unit.epoch)
    # A product works on pairs of a row and a column; so many fit where a block of gradients does.
    product = hessian_product(model, bench.loss, bench.train.inputs, bench.train.targets, batch_size=unit.block)
    right = bench.test_features(unit.seed, "ntk", unit.epoch).T.double()
    damping = declare_damping(
        product,
        len(right),
        damping=asked.damping,
        relative=asked.damping_unit == "mean-eigenvalue",
        seed=derive_seed(unit.seed, "trace"),
    )
    if asked.solver == "cg":
        solution, certificate = conjugate_gradients(
            product,
            right,
            damping=damping.delta,
            tolerance=asked.tolerance,
            max_iterations=asked.max_iterations,
            allow_unconverged=asked.allow_unconverged,
        )
    else:
        solution, certificate = lissa(
            product,
            right,
            damping=damping.delta,
            scale=asked.scale,
            depth=asked.max_iterations,
            tolerance=asked.tolerance,
            seed=derive_seed(unit.seed, "power iteration"),
            allow_unconverged=asked.allow_unconverged,
        )
    rows = range(0, len(bench.train.ids), unit.block)
    blocks = [influence_block(bench.features(unit.seed, "ntk", unit.epoch, start, start + unit.block), solution) for start in rows]
    return torch.cat(blocks), {**asdict(damping), **asdict(certificate)}
