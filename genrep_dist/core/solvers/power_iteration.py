"""The largest eigenvalue of a symmetric operator by power iteration."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def largest_eigenvalue(matvec: Callable[[Tensor], Tensor], start: Tensor, *, tolerance: float, max_steps: int = 100) -> tuple[float, int]:
    """An estimate of the largest |eigenvalue| from below, and the number of products. ``matvec`` maps tensors of the shape of ``start``.

    Stops when the estimate changes by a relative ``tolerance`` or less. The result is 0 if the first product is zero.
    """
    vector, estimate = start / start.norm(), 0.0
    for step in range(max_steps):
        image = matvec(vector)
        previous, estimate = estimate, float(image.norm())
        if estimate == 0 or abs(estimate - previous) <= tolerance * estimate:
            return estimate, step + 1
        vector = image / estimate
    return estimate, max_steps
