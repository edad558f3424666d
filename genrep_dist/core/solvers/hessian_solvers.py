"""(H + delta I) x = b with an H that is known by its products alone and need not be positive: two solvers that certify their answer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genrep_dist.errors import ConvergenceError, MethodError, NonFiniteError, ProblemError

Product = Callable[[Tensor], Tensor]
"""V -> H V for a float64 V (P, K) of any K >= 1; H symmetric, of any signature; the result float64 (P, K) on V's device."""

_POWER_STEPS = 100
_MARGIN = 1.1
_PROBES_AT_ONCE = 8


@dataclass(frozen=True)
class Damping:
    """The damping in force. ``delta`` is what is added to H; with a relative damping it is ``mean_eigenvalue`` = trace(H)/P times that.

    ``mean_eigenvalue`` was estimated from ``probes`` random vectors with ``standard_error``, or computed exactly (``probes`` and
    ``standard_error`` 0); it is None for an absolute damping, which needs none.
    """

    delta: float
    mean_eigenvalue: float | None
    standard_error: float | None
    probes: int


def declare_damping(product: Product, num_parameters: int, *, damping: float, relative: bool, seed: int, probes: int = 64) -> Damping:
    """The absolute damping that ``damping`` means: itself, or, if ``relative``, in units of trace(H)/P, the mean eigenvalue of H.

    The trace is exact when P <= ``probes``, by the P products with unit vectors; else Hutchinson's estimate, the mean of z^T H z over
    ``probes`` vectors z of random signs from ``seed``, whose standard error is declared.

    Raises MethodError for a damping that is negative or not finite, and for a relative one where the mean eigenvalue is not positive.
    """
    if not (math.isfinite(damping) and damping >= 0):
        raise bad_argument("damping", "a finite number, 0 or more", damping)
    if not relative:
        return Damping(float(damping), None, None, 0)
    if probes < 2 or num_parameters < 1:
        raise bad_argument("probes and num_parameters", "at least 2 and at least 1", (probes, num_parameters))
    exact = num_parameters <= probes
    generator = torch.Generator().manual_seed(seed)
    system, forms = _System(product, 0.0), []
    for start in range(0, num_parameters if exact else probes, _PROBES_AT_ONCE):
        count = min(_PROBES_AT_ONCE, (num_parameters if exact else probes) - start)
        if exact:
            vectors = torch.eye(num_parameters, dtype=torch.float64)[:, start : start + count]
        else:
            vectors = (2.0 * torch.randint(2, (count, num_parameters), generator=generator) - 1).double().T
        forms.append((vectors * system(vectors)).sum(dim=0))
    values = torch.cat(forms) / num_parameters
    mean = float(values.sum() if exact else values.mean())
    error = 0.0 if exact else float(values.std()) / math.sqrt(probes)
    if not mean > 0:
        raise MethodError(
            "a relative damping needs a Hessian with a positive mean eigenvalue",
            where="influence damping",
            expected="trace(H)/P > 0",
            got=f"{mean:.3g}" + ("" if exact else f" with standard error {error:.2g} from {probes} probes"),
            remedy=("" if exact else "ask for more probes, ") + "give an absolute damping, train further, or choose the curvature 'ggn'",
        )
    return Damping(damping * mean, mean, error, 0 if exact else probes)


@dataclass(frozen=True)
class HessianCertificate:
    """What a solution of (H + ``damping`` I) x = b is worth, column by column.

    ``residuals`` = ||b - (H + damping I) x|| / ||b|| with the product computed afresh, 0 for b = 0; ``residual`` is the largest.
    ``iterations``: steps of the slowest column. ``products``: vectors that were multiplied with H, all in all.
    ``negative_curvature``: columns in whose course v^T (H + damping I) v <= 0 was met; they stop there and are not converged.
    ``smallest_rayleigh``, ``largest_rayleigh``: bounds of H's spectrum from inside, the extreme Rayleigh quotients v^T H v/v^T v seen
    (None where no direction was). A smallest one below zero, by more than rounding of the largest, proves that H is indefinite: the
    parameters are at no minimum. One below -``damping`` proves it of H + damping I, whose kernel is then no Mercer kernel.
    That none was seen proves nothing.
    ``scale``: LiSSA's, else None. ``converged``: every residual within ``tolerance`` and no negative curvature met.
    """

    solver: Literal["cg", "lissa"]
    damping: float
    scale: float | None
    iterations: int
    products: int
    residual: float
    residuals: list[float]
    negative_curvature: int
    smallest_rayleigh: float | None
    largest_rayleigh: float | None
    tolerance: float
    converged: bool


def conjugate_gradients(
    product: Product,
    right: Tensor,
    *,
    damping: float,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
    allow_unconverged: bool = False,
) -> tuple[Tensor, HessianCertificate]:
    """X (P, M) float64 with (H + ``damping`` I) X = ``right`` (P, M), by conjugate gradients for each column, and its certificate.

    Columns that have converged leave the products. One that meets a direction p with p^T (H + damping I) p <= 0 stays where it is:
    beyond, the method's promise ends. The certificate's Rayleigh quotients are extremes over each column's whole Krylov space (Ritz
    values), so such a direction is found whenever it lies there. Memory besides what ``product`` holds: some 6 matrices (P, M).

    Raises ConvergenceError with the numbers unless every column reaches ``tolerance`` on its relative residual within
    ``max_iterations`` steps, or ``allow_unconverged``, when the certificate tells which did not; MethodError for impossible arguments;
    ProblemError or NonFiniteError for a ``right`` or a product of the wrong form, or with NaN or Inf.
    """
    _check_solver(damping, tolerance, max_iterations)
    right = _check_right(right)
    system, norms = _System(product, damping), right.norm(dim=0)
    solution, remaining = torch.zeros_like(right), right.clone()
    stopped = torch.zeros_like(norms, dtype=torch.bool)
    iterations = 0
    while iterations < max_iterations:
        # Rounding parts the recursion's residual from the true one: a column is done when the true one says so, else it starts again.
        before = remaining.norm(dim=0)
        live = ((before > tolerance * norms) & ~stopped).nonzero().flatten()
        if not len(live):
            break
        steps, broken = _sweep(system, solution, remaining, live, tolerance * norms, max_iterations - iterations)
        iterations += steps
        stopped[broken] = True
        remaining[:, live] = right[:, live] - system(solution[:, live])
        if not bool((remaining.norm(dim=0) < 0.5 * before)[live].any()):
            break
    certificate = _certify("cg", system, remaining, norms, int(stopped.sum()), iterations, tolerance, None)
    return _accept(certificate, f"{max_iterations} steps", "max_iterations", allow_unconverged, solution)


def lissa(
    product: Product,
    right: Tensor,
    *,
    damping: float,
    scale: float | None = None,
    depth: int = 5000,
    tolerance: float = 1e-6,
    seed: int = 0,
    allow_unconverged: bool = False,
) -> tuple[Tensor, HessianCertificate]:
    """X (P, M) float64 with (H + ``damping`` I) X = ``right`` (P, M) by LiSSA (Agarwal et al. 2016), and its certificate.

    u_0 = b, u_{t+1} = b + (I - (H + damping I)/scale) u_t, and X = u/scale; written as the sum of its increments, the terms of
    Neumann's series. Every product is with the Hessian of all rows, not of a sample of them: the result is deterministic and needs no
    repeats. It converges when all eigenvalues of H + damping I lie between 0 and 2 ``scale``, the slower the smaller
    the least of them: a rate of 1 - smallest/scale. ``scale`` None takes 1.1 times the largest eigenvalue as power iteration
    from ``seed`` estimates it, and is declared in the certificate. A column stops when its residual is within ``tolerance``, after
    ``depth`` steps, or at negative curvature, as in :func:`conjugate_gradients`. Memory: some 5 matrices (P, M).

    Raises ConvergenceError when a column diverges because ``scale`` is too small, always, naming one that is not; when ``tolerance`` is
    not reached, unless ``allow_unconverged``; and as :func:`conjugate_gradients`.
    """
    _check_solver(damping, tolerance, depth)
    if scale is not None and not (math.isfinite(scale) and scale > 0):
        raise bad_argument("scale", "a finite number above 0, or None", scale)
    right = _check_right(right)
    system, norms = _System(product, damping), right.norm(dim=0)
    if scale is None:
        start = torch.randn(len(right), 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(right.device)
        scale = _MARGIN * _largest_eigenvalue(system, start)
    total, stopped = torch.zeros_like(right), torch.zeros_like(norms, dtype=torch.bool)
    live = (norms > 0).nonzero().flatten()
    term, iterations, trusted = right[:, live], 0, False
    while len(live) and iterations < depth:
        total[:, live] += term
        image = system(term)
        square = term.square().sum(dim=0)
        quotient = (term * image).sum(dim=0) / square
        system.saw(float(quotient.min()), float(quotient.max()))
        following = term - image / scale
        size, fine = following.norm(dim=0), quotient > 0
        # I - (H + damping I)/scale is symmetric: a term that grows betrays an eigenvalue outside of (0, 2 scale).
        growing = fine & ~(size <= (1 + 1e-6) * square.sqrt())
        if bool(growing.any()) and not trusted:
            largest = _largest_eigenvalue(system, term[:, growing][:, :1])
            if scale <= _MARGIN * largest / 2:
                raise _divergence(system, scale, largest, iterations + 1)
            # So it is one below zero, and will soon show itself in the quotient.
            trusted = True
        iterations += 1
        stopped[live[~fine]] = True
        go_on = fine & (size > tolerance * norms[live])
        live, term = live[go_on], following[:, go_on]
    solution = total / scale
    remaining = right - system(solution)
    certificate = _certify("lissa", system, remaining, norms, int(stopped.sum()), iterations, tolerance, scale)
    return _accept(certificate, f"depth {depth}", "depth", allow_unconverged, solution)


class _System:
    """V -> (H + damping I) V, checked and counted; remembers the extreme Rayleigh quotients of H + damping I that its users saw."""

    def __init__(self, product: Product, damping: float) -> None:
        self._product = product
        self.damping = damping
        self.products = 0
        self.smallest = math.inf
        self.largest = -math.inf

    def __call__(self, vectors: Tensor) -> Tensor:
        if not vectors.shape[1]:
            return torch.zeros_like(vectors)
        image = self._product(vectors)
        if image.shape != vectors.shape or image.dtype != torch.float64:
            raise ProblemError(
                "the product with the Hessian has the wrong form",
                where="influence, curvature 'hessian'",
                expected=f"float64 of shape {tuple(vectors.shape)}",
                got=f"{image.dtype} of shape {tuple(image.shape)}",
            )
        self.products += vectors.shape[1]
        require_finite(image, "a product with the Hessian")
        return image + self.damping * vectors

    def saw(self, smallest: float, largest: float) -> None:
        self.smallest, self.largest = min(self.smallest, smallest), max(self.largest, largest)


def _sweep(system: _System, solution: Tensor, remaining: Tensor, live: Tensor, goals: Tensor, max_steps: int) -> tuple[int, Tensor]:
    """Conjugate gradients on the columns ``live`` from ``solution``, which is changed, and its residual ``remaining``, until each is
    within its goal. Returns the steps made and the columns that met negative curvature.
    """
    residual = remaining[:, live]
    direction, square = residual, residual.square().sum(dim=0)
    steps, broken = 0, [live[:0]]
    # Lanczos' tridiagonal matrices: (curvature, ratio) for each step of each column.
    course: dict[int, list[tuple[float, float]]] = {column: [] for column in live.tolist()}
    ratio = torch.zeros_like(square)
    while len(live) and steps < max_steps:
        image = system(direction)
        curvature = (direction * image).sum(dim=0)
        for column, pair in zip(live.tolist(), torch.stack([curvature / square, ratio], 1).tolist(), strict=True):
            course[column].append((pair[0], pair[1]))
        steps += 1
        fine = curvature > 0
        broken.append(live[~fine])
        length = torch.where(fine, square / curvature, 0.0)
        solution[:, live] += length * direction
        residual = residual - length * image
        previous, square = square, residual.square().sum(dim=0)
        ratio = square / previous
        go_on = fine & (square.sqrt() > goals[live])
        direction = (residual + ratio * direction)[:, go_on]
        live, residual, square, ratio = live[go_on], residual[:, go_on], square[go_on], ratio[go_on]
    for pairs in course.values():
        system.saw(*_ritz_values(pairs))
    return steps, torch.cat(broken)


def _ritz_values(course: list[tuple[float, float]]) -> tuple[float, float]:
    """Smallest and largest eigenvalue of the tridiagonal matrix of a column's conjugate gradients: the extremes on its Krylov space."""
    curvature, ratio = torch.tensor(course, dtype=torch.float64).T
    carried = ratio[1:] * curvature[:-1]
    beside = ratio[1:].sqrt() * curvature[:-1]
    diagonal = curvature.clone()
    diagonal[1:] += carried
    values = torch.linalg.eigvalsh(torch.diag(diagonal) + torch.diag(beside, 1) + torch.diag(beside, -1))
    return float(values[0]), float(values[-1])


def _largest_eigenvalue(system: _System, start: Tensor) -> float:
    """The largest |eigenvalue| of H + damping I by power iteration from ``start`` (P, 1): from below, near enough for a choice of scale."""
    vector = start
    estimate = 0.0
    for _ in range(_POWER_STEPS):
        vector = vector / vector.norm()
        image = system(vector)
        quotient, previous, estimate = float((vector * image).sum()), estimate, float(image.norm())
        system.saw(quotient, quotient)
        if estimate == 0:
            raise bad_argument("scale", "H + damping I that is not zero", "zero for a random vector")
        if abs(estimate - previous) <= 1e-3 * estimate:
            break
        vector = image
    return estimate


def _certify(
    solver: Literal["cg", "lissa"],
    system: _System,
    remaining: Tensor,
    norms: Tensor,
    negative: int,
    iterations: int,
    tolerance: float,
    scale: float | None,
) -> HessianCertificate:
    # A column of zeros is its own solution.
    relative = torch.where(norms > 0, remaining.norm(dim=0) / norms, 0.0)
    residual = float(relative.max()) if len(relative) else 0.0
    return HessianCertificate(
        solver=solver,
        damping=float(system.damping),
        scale=scale,
        iterations=iterations,
        products=system.products,
        residual=residual,
        residuals=relative.tolist(),
        negative_curvature=negative,
        smallest_rayleigh=system.smallest - system.damping if math.isfinite(system.smallest) else None,
        largest_rayleigh=system.largest - system.damping if math.isfinite(system.largest) else None,
        tolerance=tolerance,
        converged=residual <= tolerance and negative == 0,
    )


def _accept(
    certificate: HessianCertificate, limit: str, limit_name: str, allow_unconverged: bool, solution: Tensor
) -> tuple[Tensor, HessianCertificate]:
    if certificate.converged or allow_unconverged:
        return solution, certificate
    over = sum(residual > certificate.tolerance for residual in certificate.residuals)
    got = f"{over} of {len(certificate.residuals)} columns above it, the worst {certificate.residual:.3g}"
    if certificate.negative_curvature:
        smallest = certificate.smallest_rayleigh
        got += f"; negative curvature in {certificate.negative_curvature} columns: H has the Rayleigh quotient {smallest:.3g}"
        remedy = f"raise the damping well above {-(smallest or 0.0):.2g}, train further, or choose the curvature 'ggn', which has none"
    else:
        remedy = f"raise the damping, the tolerance or {limit_name}, or compute the products in float64"
    raise ConvergenceError(
        "the influence system with the true Hessian is not solved",
        where=f"{certificate.solver}, damping {certificate.damping:.3g}",
        expected=f"relative residual <= {certificate.tolerance:g} for every column within {limit}",
        got=got,
        remedy=remedy + "; or ask for the unconverged answer",
    )


def _divergence(system: _System, scale: float, largest: float, step: int) -> ConvergenceError:
    return ConvergenceError(
        "LiSSA diverges: its scale is too small",
        where=f"lissa, damping {system.damping:.3g}, step {step}",
        expected=f"a scale above half the largest eigenvalue of H + damping I, which is about {largest:.3g}",
        got=f"scale {scale:.3g}",
        remedy=f"choose scale={_MARGIN * largest:.3g}, or scale=None to have it estimated",
    )


def _check_solver(damping: float, tolerance: float, steps: int) -> None:
    if not (math.isfinite(damping) and damping >= 0):
        raise bad_argument("damping", "a finite number, 0 or more", damping)
    if not (math.isfinite(tolerance) and tolerance > 0):
        raise bad_argument("tolerance", "a finite number above 0", tolerance)
    if steps < 1:
        raise bad_argument("max_iterations or depth", "at least 1", steps)


def _check_right(right: Tensor) -> Tensor:
    if right.dim() != 2 or not right.shape[0]:
        raise ProblemError("right-hand sides have the wrong form", where="influence", expected="(P, M)", got=f"{tuple(right.shape)}")
    right = right.detach().to(torch.float64)
    require_finite(right.T, "right-hand sides (gradients of test points)")
    return right


def require_finite(values: Tensor, name: str) -> None:
    """NonFiniteError naming the rows of ``values`` (N, ...) that hold NaN or Inf."""
    finite = torch.isfinite(values).all(dim=1)
    if not bool(finite.all()):
        bad = (~finite).nonzero().flatten().tolist()
        raise NonFiniteError(
            f"{name} hold NaN or Inf", where="influence", expected="finite numbers", got=f"{len(bad)} rows, the first: {bad[:5]}"
        )


def bad_argument(name: str, expected: str, got: object) -> MethodError:
    return MethodError("the influence kernel cannot be computed so", where=f"influence {name}", expected=expected, got=repr(got))
