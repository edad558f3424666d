"""Arrays of any dtype, shape and values come back as they were written, through every path of a local folder and of a bucket."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from genrep_dist.store import Store
from genrep_dist.store.artifacts import Artifact
from tests.store.s3_server import BUCKET, S3Server

Array = npt.NDArray[Any]
NAMES = ("a", "b", "c")
DTYPES = [
    *("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
]
KEYS = (f"{number:064x}" for number in itertools.count())
FEW = settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def arrays(special: list[float], min_dims: int = 0) -> st.SearchStrategy[Array]:
    """Mostly zeros, which Zarr omits by default; in arrays of floating-point numbers also ``special`` values."""
    shapes = st.lists(st.integers(0, 4), min_size=min_dims, max_size=3).map(tuple)

    def of_dtype(dtype: str) -> st.SearchStrategy[Array]:
        elements = [0, 1] if np.dtype(dtype).kind in "biu" else [0.0, -0.0, 1.0, *special]
        return npst.arrays(dtype, shapes, elements=st.sampled_from(elements), fill=st.just(0))

    return st.sampled_from(DTYPES).flatmap(of_dtype)


@pytest.fixture(scope="module", params=["folder", "bucket"])
def uri(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("store")
    if request.param == "folder":
        yield str(folder)
        return
    with S3Server.running() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        yield f"s3://{BUCKET}/{folder.name}"


def opened(uri: str, key: str) -> Artifact:
    """As another process opens it."""
    return Store(uri).artifact("tests", key)


def same(found: Array, written: Array) -> None:
    assert (found.dtype, found.shape) == (written.dtype, written.shape)
    np.testing.assert_array_equal(found, written)


@FEW
@given(written=st.tuples(*[arrays([np.nan, -np.inf])] * len(NAMES)))
def test_whole_arrays(uri: str, written: tuple[Array, ...]) -> None:
    """Each is written twice, by two processes, and neither touches the others."""
    key = next(KEYS)
    for _ in range(2):
        artifact = opened(uri, key)
        for name, values in zip(NAMES, written, strict=True):
            artifact.write(name, values, NAMES[: values.ndim], require_finite=False)
    artifact.commit({})
    for name, values in zip(NAMES, written, strict=True):
        same(opened(uri, key).read(name), values)
        same(opened(uri, key).reader(name).read(), values)


@FEW
@given(values=arrays([], min_dims=1), rows=st.integers(1, 3))
def test_arrays_in_parts(uri: str, values: Array, rows: int) -> None:
    """Parts of some rows, the last one shorter, each written by a process of its own, the first one twice."""
    key, chunks = next(KEYS), (rows, *values.shape[1:])
    opened(uri, key).create("a", values.shape, chunks, str(values.dtype), NAMES[: values.ndim])
    starts = range(0, len(values) if values.size else 0, rows)
    for start in (*starts, *starts[:1]):
        artifact = opened(uri, key)
        artifact.create("a", values.shape, chunks, str(values.dtype), NAMES[: values.ndim])
        artifact.write_part(f"rows-{start}", "a", (start, *[0] * (values.ndim - 1)), values[start : start + rows])
    artifact = opened(uri, key)
    artifact.commit({}, [f"rows-{start}" for start in starts])
    same(artifact.read("a"), values)
    same(artifact.read("a", (slice(1, 3),) + (slice(None),) * (values.ndim - 1)), values[1:3])
    assert artifact.damaged_parts() == {}
