"""Attributions phi(x_i -> x): global times local importance (Eq. 2), TracInCP's sum of such products, random scores, and rankings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from genrep_dist.errors import MethodError, NonFiniteError, ProblemError

Sign = Literal["negative", "positive"]


def attribute(alpha: Tensor, kernel: Tensor | Iterable[Tensor]) -> Tensor:
    """Phi (N, M), phi[n, m] = sum_c alpha[n, c] K[n, c, m] (Eq. 2), for ``alpha`` (N, C) and ``kernel`` (N, C, M).

    The kernel may come in blocks of consecutive rows, which are consumed one by one.
    Positive: training sample n raises the declared output of test sample m. The result has the wider of the two dtypes.
    """
    if not isinstance(kernel, Tensor):
        parts, at = list[Tensor](), 0
        for block in kernel:
            parts.append(attribute(alpha[at : at + len(block)], block))
            at += len(block)
        if at != len(alpha):
            raise ProblemError("blocks of a kernel are missing", where="attribute", expected=f"{len(alpha)} rows", got=f"{at} rows")
        return torch.cat(parts) if len(parts) > 1 else parts[0]
    if alpha.dim() != 2 or kernel.dim() != 3 or alpha.shape != kernel.shape[:2]:
        raise ProblemError(
            "importances and kernel do not fit each other",
            where="attribute",
            expected="alpha (N, C) and kernel (N, C, M)",
            got=f"alpha {tuple(alpha.shape)}, kernel {tuple(kernel.shape)}",
        )
    dtype = torch.promote_types(alpha.dtype, kernel.dtype)
    return torch.einsum("nc,ncm->nm", alpha.to(dtype), kernel.to(dtype))


def tracincp(terms: Iterable[tuple[float, Tensor, Tensor | Iterable[Tensor]]]) -> Tensor:
    """Phi (N, M) = sum_t eta_t sum_c alpha_t[n, c] K_t[n, c, m], TracInCP with the test point's output as target (Eq. 14).

    One term for each checkpoint: its learning rate, the target derivative (N, C) and the NTK (N, C, M) at its parameters. Terms, and
    blocks of a kernel, are consumed one by one, so that an iterator holds one at a time. Raises MethodError if there is none, ProblemError
    if shapes differ.
    """
    return weighted_sum((rate, attribute(alpha, kernel)) for rate, alpha, kernel in terms)


def weighted_sum(terms: Iterable[tuple[float, Tensor]]) -> Tensor:
    """Sum_t eta_t phi_t (N, M) of the rates and products (N, M) of :func:`tracincp`, with its errors."""
    total: Tensor | None = None
    for rate, phi in terms:
        term = rate * phi
        if total is not None and total.shape != term.shape:
            raise ProblemError(
                "checkpoints disagree on the samples", where="tracincp", expected=f"{tuple(total.shape)}", got=f"{tuple(term.shape)}"
            )
        total = term if total is None else total + term
    if total is None:
        raise MethodError("TracInCP needs checkpoints", where="tracincp", expected="at least one checkpoint", got="none")
    return total


def random_scores(seeds: Iterable[int], num_train: int) -> Tensor:
    """Phi (N, M) float64 of standard normal draws, with a generator for each column m, seeded by ``seeds[m]``.

    A column depends only on its seed and N, so test points can be added or removed without changing the others.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    columns = [torch.randn(num_train, generator=generator, dtype=torch.float64) for generator in generators]
    return torch.stack(columns, dim=1) if columns else torch.empty(num_train, 0, dtype=torch.float64)


def ranking(phi: Tensor, ids: Tensor, count: int, sign: Sign) -> Tensor:
    """The ``count`` training ids to remove first for each test point: (M, count) int64, for ``phi`` (N, M) and ``ids`` (N,) int64.

    ``sign`` "negative": most negative phi first; "positive": most positive first. Among equal scores the lowest id is first, so the order
    of rows does not matter. If there are fewer than ``count`` scores of that sign, those of the other sign follow.
    Raises NonFiniteError with the ids of scores that are NaN or Inf, ProblemError for arguments that do not fit.
    """
    _check_ranking(phi, ids, count, sign)
    require_finite_scores(phi, ids, "ranking")
    # Rows sorted by id, so that a stable sort leaves the lowest id in front. Adding 0 turns -0 into 0, which a sort may distinguish.
    by_id = torch.argsort(ids)
    # Contiguous scores of a test point sort several times faster, and the more so the larger N is.
    scores = (phi[by_id] + 0.0).T.contiguous()
    order = torch.sort(scores, dim=1, descending=sign == "positive", stable=True).indices
    return ids[by_id][order[:, :count]]


def require_finite_scores(phi: Tensor, ids: Tensor, where: str) -> None:
    """Raise NonFiniteError with the ``ids`` (N,) of samples whose scores ``phi`` (N, M) are NaN or Inf."""
    finite = torch.isfinite(phi).all(dim=1)
    if not bool(finite.all()):
        bad = ids[~finite].sort().values.tolist()
        raise NonFiniteError(
            "attributions hold NaN or Inf",
            where=where,
            expected="finite scores",
            got=f"{len(bad)} training samples, ids {bad[:10]}" + (" ..." if len(bad) > 10 else ""),
        )


def _check_ranking(phi: Tensor, ids: Tensor, count: int, sign: str) -> None:
    shapes = f"phi {tuple(phi.shape)}, ids {tuple(ids.shape)} {ids.dtype}"
    if phi.dim() != 2 or ids.shape != phi.shape[:1] or ids.dtype != torch.int64:
        raise ProblemError("scores and ids do not fit each other", where="ranking", expected="phi (N, M), ids (N,) int64", got=shapes)
    if torch.unique(ids).numel() != ids.numel():
        raise ProblemError("sample ids repeat", where="ranking", expected="unique ids", got=shapes)
    if not 0 <= count <= phi.shape[0]:
        raise ProblemError("cannot rank so many", where="ranking count", expected=f"0 to {phi.shape[0]}", got=str(count))
    if sign not in ("negative", "positive"):
        raise MethodError("unknown sign", where="ranking sign", expected="'negative' or 'positive'", got=repr(sign))
