"""Tests on a GPU need torch, numpy and pytest alone: no test here imports Ray, Zarr, polars or MLflow.

``GENREP_TEST_DEVICE=cpu`` runs on a CPU what does not depend on CUDA, so that the tests themselves are tested where there is no GPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from genrep_dist.training.precision import full_precision_products


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU, or what GENREP_TEST_DEVICE names."""
    name = os.environ.get("GENREP_TEST_DEVICE", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU: torch.cuda.is_available() is false")
    return torch.device(name)


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    if device.type != "cuda":
        pytest.skip(f"about CUDA, not about {device.type}")
    return device


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    """As units run, and as before afterwards."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    full_precision_products()
    yield
    cudnn.allow_tf32, matmul.allow_tf32 = before
