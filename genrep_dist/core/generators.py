"""The default random generators of Python, numpy and torch: a user's model may draw from each of them, also numpy's old one."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def preserved_generators() -> Iterator[None]:
    """Inside, anything may draw; outside, the generators are as they were before."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    python, numpy = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def seeded_generators(seed: int) -> Iterator[None]:
    """Inside, the generators start from ``seed``; outside, they are as they were before."""
    with preserved_generators():
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        yield


def generator_states() -> tuple[Any, ...]:
    """The states of the generators on the CPU. Two results are equal unless something was drawn in between."""
    numpy: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    state = {name: value.tobytes() if isinstance(value, np.ndarray) else value for name, value in numpy["state"].items()}
    return random.getstate(), numpy["bit_generator"], state, numpy["has_gauss"], numpy["gauss"], torch.get_rng_state().numpy().tobytes()


def read_generators() -> dict[str, Any]:
    """The states of all default generators, as tensors and numbers."""
    version, numbers, gauss = random.getstate()
    numpy: Any = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "python": (version, torch.tensor(numbers, dtype=torch.int64), gauss),
        "numpy": (numpy[0], torch.from_numpy(numpy[1].astype(np.int64)), *numpy[2:]),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def write_generators(states: Mapping[str, Any]) -> None:
    """Set all default generators to states of :func:`read_generators`."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
