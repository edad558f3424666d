"""The six axioms of sample-based explanations (Definitions 1-6), checked on numbers: passed, or a counter-example.

An explanation is any matrix phi (N, N), phi[i, j] = phi(x_i -> x_j) between training samples. All checks except efficiency and
continuity use that matrix alone. Theorem 7: alpha_i K(x_i, x_j) with a Mercer kernel passes them.

Scale. Multiplying rows or columns by positive numbers preserves zeros, the comparison of a cycle with its reverse, and signs of
determinants. So phi is first balanced to a diagonal of +1, 0 or -1; for alpha K it becomes nearly the signed matrix of K's cosines, whose
products over a cycle and minors are at most 1 in size. ``tolerance`` is in that unit. Its default, 1e-4, is above the error of float32
kernels; for a kernel in float64 choose a smaller one.

A check by sampling can miss a violation. A counter-example proves one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from genrep_dist.errors import NonFiniteError, ProblemError

Explain = Callable[[Tensor], Tensor]

TOLERANCE = 1e-4
# A balanced entry below this share of its row's largest entry is a rounding error of float64, and counts as zero.
_ZERO = 16 * torch.finfo(torch.float64).eps
_ALL_PAIRS = 512
_ALL_DIRECTIONS = 2048


@dataclass(frozen=True)
class CounterExample:
    """A violation: the training ``ids`` in the order of ``statement``, and the compared numbers."""

    ids: tuple[int, ...]
    values: tuple[float, ...]
    statement: str


@dataclass(frozen=True)
class AxiomResult:
    """The result of one check: number of ``cases``, and ``worst``, the largest violation found, in the unit of ``bound``."""

    axiom: str
    passed: bool
    cases: int
    worst: float
    bound: float
    counter_example: CounterExample | None


def check_axioms(
    phi: Tensor,
    ids: Tensor,
    *,
    phi_test: Tensor | None = None,
    outputs: Tensor | None = None,
    explain: Explain | None = None,
    points: Tensor | None = None,
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> tuple[AxiomResult, ...]:
    """Every check that the arguments allow, in the order of Definitions 1-6; irreducibility literally and sign-normalised.

    ``phi`` (N, N) and ``ids`` (N,) are always used. Efficiency needs ``phi_test`` (N, M) and the model's ``outputs`` (M,). Continuity needs
    ``explain``, from inputs (B, ...) to explanations (N, B), and two or more ``points`` (M, ...), between whose neighbours it searches.
    """
    results = []
    if phi_test is not None and outputs is not None:
        results.append(efficiency(phi_test, outputs, tolerance=tolerance))
    results.append(self_explanation(phi, ids, phi_test, tolerance=tolerance))
    results.append(symmetric_zero(phi, ids, tolerance=tolerance))
    results.append(symmetric_cycle(phi, ids, tolerance=tolerance, seed=seed))
    if explain is not None and points is not None:
        results.append(continuity(explain, points[:-1], points[1:], ids, tolerance=tolerance))
    results.append(irreducibility(phi, ids, literal=True, tolerance=tolerance, seed=seed))
    results.append(irreducibility(phi, ids, literal=False, tolerance=tolerance, seed=seed))
    return tuple(results)


def efficiency(phi_test: Tensor, outputs: Tensor, *, tolerance: float = TOLERANCE) -> AxiomResult:
    """Definition 1: sum_i phi(x_i -> x) = f(x), for ``phi_test`` (N, M) and ``outputs`` (M,), relative to the largest |f|.

    For tracking, whose sum is f_T - f_0, pass that difference as ``outputs``. ``counter_example.ids`` is empty: all samples are involved.
    """
    if phi_test.dim() != 2 or outputs.shape != phi_test.shape[1:] or outputs.numel() == 0:
        raise _misfit("phi_test (N, M) and outputs (M,), M of 1 or more", phi_test, outputs)
    totals, outputs = phi_test.to(torch.float64).sum(dim=0), outputs.to(torch.float64)
    _require_finite(totals, "efficiency")
    gaps = (totals - outputs).abs()
    scale = float(outputs.abs().max()) or 1.0
    m = int(gaps.argmax())
    statement = f"test point {m}: the explanations sum to {totals[m]:.6g}, the model's output is {outputs[m]:.6g}"
    example = CounterExample((), (float(totals[m]), float(outputs[m])), statement)
    return _result("efficiency", gaps.numel(), float(gaps[m]) / scale, tolerance, example)


def self_explanation(phi: Tensor, ids: Tensor, phi_test: Tensor | None = None, *, tolerance: float = TOLERANCE) -> AxiomResult:
    """Definition 2: phi(x_i -> x_i) = 0 implies phi(x_i -> x) = 0 for all x; checked over ``phi`` and ``phi_test`` (N, M).

    Zero on the diagonal means at most tolerance^2 of the row's largest entry, after rows and then columns were divided by their largest.
    """
    phi = _square(phi, ids)
    everywhere = phi if phi_test is None else torch.cat([phi, phi_test.to(torch.float64)], dim=1)
    reach = everywhere.abs().amax(dim=1)
    _require_finite(reach, "self-explanation", ids)
    # For alpha K the two divisions remove the scale of alpha and of the features, so that small entries are not taken for zeros.
    scaled = everywhere.abs() / _or_one(reach).unsqueeze(1)
    scaled = scaled / _or_one(scaled.amax(dim=0))
    # Rows at the rounding error of the others are skipped.
    candidates = (scaled.diagonal() <= tolerance**2 * scaled.amax(dim=1)) & (reach > _ZERO * reach.max())
    i = int((reach * candidates).argmax())
    j = int(everywhere[i].abs().argmax())
    to = f"x_{int(ids[j])}" if j < len(ids) else f"test point {j - len(ids)}"
    values = (float(phi[i, i]), float(everywhere[i, j]))
    name = f"x_{int(ids[i])}"
    statement = f"phi({name} -> {name}) = {values[0]:.6g}, yet phi({name} -> {to}) = {values[1]:.6g}"
    worst = float((reach * candidates).max() / _or_one(reach.max()))
    return _result("self-explanation", len(ids), worst, 0.0, CounterExample((int(ids[i]),), values, statement))


def symmetric_zero(phi: Tensor, ids: Tensor, *, tolerance: float = TOLERANCE) -> AxiomResult:
    """Definition 3: where both diagonal entries are not zero, phi(x_i -> x_j) = 0 implies phi(x_j -> x_i) = 0; all pairs.

    Zero means zero up to float64 rounding of the balanced entries; the other one must then be within ``tolerance``.
    """
    phi = _square(phi, ids)
    balanced = _balance(phi).abs()
    lively = balanced.diagonal() > 0
    zero = (balanced <= _ZERO) & lively.unsqueeze(0) & lively.unsqueeze(1)
    violation = torch.where(zero, balanced.T, 0.0)
    i, j = divmod(int(violation.argmax()), len(ids))
    values = (float(phi[i, j]), float(phi[j, i]))
    a, b = int(ids[i]), int(ids[j])
    statement = f"phi(x_{a} -> x_{b}) = {values[0]:.6g}, yet phi(x_{b} -> x_{a}) = {values[1]:.6g}"
    cases = len(ids) * (len(ids) - 1) // 2
    return _result("symmetric zero", cases, float(violation[i, j]), tolerance, CounterExample((a, b), values, statement))


def symmetric_cycle(
    phi: Tensor, ids: Tensor, *, tolerance: float = TOLERANCE, seed: int = 0, samples: int = 4096, longest: int = 5
) -> AxiomResult:
    """Definition 4: the product around a cycle equals the product around its reverse.

    Checked on ``samples`` cycles of each length 3 to ``longest``, drawn with duplicates; shorter cycles satisfy it for every matrix. The
    difference is in units of prod |phi(x_t -> x_t)|, which bounds both products for alpha K, or of the larger product if that is more.
    """
    phi = _square(phi, ids)
    balanced = _balance(phi)
    generator = torch.Generator().manual_seed(seed)
    worst, cases, example = 0.0, 0, None
    for length in range(3, longest + 1):
        cycles = torch.randint(len(ids), (samples, length), generator=generator)
        following = cycles.roll(-1, dims=1)
        forward, backward = balanced[cycles, following].prod(dim=1), balanced[following, cycles].prod(dim=1)
        unit = torch.maximum(forward.abs(), backward.abs()).clamp(min=1.0)
        violation = (forward - backward).abs() / unit
        cases += samples
        k = int(violation.argmax())
        if float(violation[k]) > worst:
            worst, example = float(violation[k]), _cycle_example(phi, ids, cycles[k])
    return _result("symmetric cycle", cases, worst, tolerance, example)


def irreducibility(
    phi: Tensor,
    ids: Tensor,
    *,
    literal: bool,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    samples: int = 1024,
    largest: int = 8,
) -> AxiomResult:
    """Definition 6: no negative principal minor, in units of prod |phi(x_i -> x_i)|.

    ``literal`` takes the determinant as it is: alpha K fails already at one sample where alpha_i < 0, although Theorem 7 allows it.
    Otherwise it is multiplied by the signs of its diagonal, which makes it the minor of |alpha| K.

    Checked are all minors of one sample, those of two (all, up to 512 samples), ``samples`` random ones of each size up to ``largest``,
    and, up to 2,048 samples, those of the samples with the largest weights in the most negative directions of the symmetrised matrix.
    """
    phi = _square(phi, ids)
    balanced = _balance(phi)
    worst, cases, example = -math.inf, 0, None
    for minors in _minors(balanced, samples, min(largest, len(ids)), seed):
        margin = _minor_margin(balanced, minors, literal, tolerance)
        cases += len(minors)
        k = int(margin.argmin())
        if -float(margin[k]) > worst:
            worst, example = -float(margin[k]), _minor_example(phi, ids, minors[k], literal)
    axiom = "irreducibility (literal)" if literal else "irreducibility (sign-normalised)"
    return _result(axiom, cases, max(worst, 0.0), tolerance, example)


def continuity(
    explain: Explain, start: Tensor, end: Tensor, ids: Tensor, *, tolerance: float = TOLERANCE, halvings: int = 30
) -> AxiomResult:
    """Definition 5: phi(x_i -> x) is continuous in x. ``explain`` maps inputs (B, ...) to (N, B); ``start``, ``end`` are points (B, ...).

    Each segment is halved ``halvings`` times, keeping the half over which some phi changes most. The change over what is left, 1e-9 of the
    segment, is compared with the largest |phi| met: for a continuous explanation it tends to zero, at a jump it does not.
    """
    if start.shape != end.shape or not start.is_floating_point() or start.shape[0] == 0:
        raise _misfit("two equal batches of floating-point points", start, end)
    left, right = start, end
    phi_left, phi_right = _explained(explain, left, ids), _explained(explain, right, ids)
    scale = float(torch.maximum(phi_left.abs().max(), phi_right.abs().max()))
    for _ in range(halvings):
        middle = left + (right - left) / 2
        phi_middle = _explained(explain, middle, ids)
        scale = max(scale, float(phi_middle.abs().max()))
        go_left = (phi_middle - phi_left).abs().amax(dim=0) >= (phi_right - phi_middle).abs().amax(dim=0)
        keep = go_left.reshape(-1, *[1] * (start.dim() - 1))
        left, right = torch.where(keep, left, middle), torch.where(keep, middle, right)
        phi_left, phi_right = torch.where(go_left, phi_left, phi_middle), torch.where(go_left, phi_middle, phi_right)
    jumps = (phi_right - phi_left).abs()
    i, b = divmod(int(jumps.argmax()), start.shape[0])
    values = (float(phi_left[i, b]), float(phi_right[i, b]))
    distance = float((right[b] - left[b]).norm())
    statement = f"on segment {b} phi(x_{int(ids[i])} -> x) goes from {values[0]:.6g} to {values[1]:.6g} over a distance of {distance:.3g}"
    worst = float(jumps[i, b]) / scale if scale > 0 else 0.0
    return _result("continuity", start.shape[0], worst, tolerance, CounterExample((int(ids[i]),), values, statement))


def _result(axiom: str, cases: int, worst: float, bound: float, example: CounterExample | None) -> AxiomResult:
    passed = worst <= bound
    return AxiomResult(axiom, passed, cases, worst, bound, None if passed else example)


def _balance(phi: Tensor) -> Tensor:
    """Phi with rows and columns multiplied by positive numbers, diagonal +1, 0 or -1 (module docstring)."""
    rows, columns = phi.abs().amax(dim=1), phi.abs().amax(dim=0)
    ratio = torch.where((rows > 0) & (columns > 0), columns / _or_one(rows), 1.0)
    diagonal = phi.diagonal().abs()
    # A row and column with a zero diagonal keep their scale.
    size = torch.where(diagonal > 0, diagonal, _or_one(rows))
    column_scale = (size * ratio).sqrt()
    balanced = phi / (size / column_scale).unsqueeze(1) / column_scale.unsqueeze(0)
    # Exactly +-1, so that products over cycles compare exactly.
    return balanced.diagonal_scatter(torch.sign(phi.diagonal()))


def _or_one(values: Tensor) -> Tensor:
    """``values``, 0 or more, with 1 in place of 0: divisors that leave zeros as they are."""
    return torch.where(values > 0, values, 1.0)


def _minors(balanced: Tensor, samples: int, largest: int, seed: int) -> list[Tensor]:
    """Index sets (S, k) of the principal minors to check, one tensor for each size and source."""
    n = len(balanced)
    generator = torch.Generator().manual_seed(seed)
    sets = [torch.arange(n).unsqueeze(1)]
    if n <= _ALL_PAIRS:
        sets.append(torch.combinations(torch.arange(n), 2))
    smallest = 3 if n <= _ALL_PAIRS else 2
    sets += [torch.rand(samples, n, generator=generator).topk(k, dim=1).indices for k in range(smallest, largest + 1)]
    if n <= _ALL_DIRECTIONS:
        # For alpha K the symmetrised matrix is positive semi-definite. Negative directions show where it is not.
        positive = torch.where(balanced.diagonal() < 0, -1.0, 1.0).unsqueeze(1) * balanced
        symmetric = torch.sign(positive) * (positive * positive.T).clamp(min=0).sqrt()
        vectors = torch.linalg.eigh((symmetric + symmetric.T) / 2).eigenvectors[:, :32]
        sets += [vectors.abs().topk(k, dim=0).indices.T for k in range(2, largest + 1)]
    return [minors for minors in sets if len(minors)]


def _minor_margin(balanced: Tensor, minors: Tensor, literal: bool, tolerance: float) -> Tensor:
    """Determinants (S,) in units of prod |diagonal|, or of Hadamard's bound if that is zero, but at least their rounding error."""
    blocks = balanced[minors.unsqueeze(2), minors.unsqueeze(1)]
    diagonal = blocks.diagonal(dim1=1, dim2=2)
    determinant: Tensor = torch.linalg.det(blocks)
    if not literal:
        determinant = determinant * torch.where(diagonal < 0, -1.0, 1.0).prod(dim=1)
    hadamard = blocks.norm(dim=2).prod(dim=1)
    size = diagonal.abs().prod(dim=1)
    rounding = 8 * minors.shape[1] * torch.finfo(torch.float64).eps * hadamard
    unit = torch.where(size > 0, size, hadamard) + rounding / tolerance
    return determinant / _or_one(unit)


def _cycle_example(phi: Tensor, ids: Tensor, cycle: Tensor) -> CounterExample:
    following = cycle.roll(-1)
    values = (float(phi[cycle, following].prod()), float(phi[following, cycle].prod()))
    names = tuple(int(i) for i in ids[cycle])
    path = " -> ".join(f"x_{name}" for name in (*names, names[0]))
    return CounterExample(names, values, f"the product along {path} is {values[0]:.6g}, in the reverse direction {values[1]:.6g}")


def _minor_example(phi: Tensor, ids: Tensor, minor: Tensor, literal: bool) -> CounterExample:
    block = phi[minor.unsqueeze(1), minor.unsqueeze(0)]
    determinant = float(torch.linalg.det(block))
    if not literal:
        determinant *= float(torch.where(block.diagonal() < 0, -1.0, 1.0).prod())
    names = tuple(int(i) for i in ids[minor])
    kind = "the determinant" if literal else "the determinant times the signs of its diagonal"
    return CounterExample(names, (determinant,), f"{kind} of phi among {', '.join(f'x_{name}' for name in names)} is {determinant:.6g}")


def _square(phi: Tensor, ids: Tensor) -> Tensor:
    if phi.dim() != 2 or phi.shape[0] != phi.shape[1] or ids.shape != phi.shape[:1] or phi.numel() == 0:
        raise _misfit("phi (N, N) between training samples and ids (N,), N of 1 or more", phi, ids)
    square: Tensor = phi.to(torch.float64)
    _require_finite(square.abs().amax(dim=1), "axioms", ids)
    return square


def _explained(explain: Explain, points: Tensor, ids: Tensor) -> Tensor:
    phi: Tensor = explain(points).to(torch.float64)
    if phi.shape != (len(ids), len(points)):
        raise _misfit(f"explanations of shape {(len(ids), len(points))}", phi, points)
    _require_finite(phi.abs().amax(dim=1), "continuity", ids)
    return phi


def _require_finite(values: Tensor, where: str, ids: Tensor | None = None) -> None:
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        bad = ids[~finite].tolist() if ids is not None else []
        got = f"training samples, ids {bad[:10]}" if ids is not None else f"{int((~finite).sum())} test points"
        raise NonFiniteError("explanations hold NaN or Inf", where=where, expected="finite numbers", got=got)


def _misfit(expected: str, first: Tensor, second: Tensor) -> ProblemError:
    got = f"{tuple(first.shape)} and {tuple(second.shape)}"
    return ProblemError("the material of an axiom's check does not fit", where="axioms", expected=expected, got=got)
