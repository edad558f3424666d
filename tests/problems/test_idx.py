from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from genrep_dist.errors import ProblemError
from genrep_dist.problems.datasets.idx import find_idx, parse_idx, read_idx
from tests.problems.idx_files import CODES, idx_bytes, small_mnist, write_folder


@pytest.mark.parametrize("dtype", sorted(CODES))
@pytest.mark.parametrize("compressed", [False, True])
def test_what_was_written_is_read(tmp_path: Path, dtype: str, compressed: bool) -> None:
    array: npt.NDArray[Any] = (np.arange(24).reshape(2, 3, 4) * 5 - 7).astype(dtype)
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(idx_bytes(array)) if compressed else idx_bytes(array))
    found = read_idx(path, dtype=dtype, shape=(None, 3, 4))
    assert found.dtype == np.dtype(dtype)
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, array)
    found[0] = 0  # memory of its own, writable


IMAGES = idx_bytes(np.zeros((2, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an IDX file"),
        (b"\x00\x00\x08", "not an IDX file"),
        (b"\x01" + IMAGES[1:], "not an IDX file"),
        (b"\x00\x00\x07\x02" + IMAGES[4:], "not an IDX file"),
        (b"\x00\x00\x08\x00", "not an IDX file"),
        (b"<html>not here</html>", "not an IDX file"),
        (IMAGES[:9], "ends inside its header"),
        (IMAGES[:-1], "does not match its dimensions"),
        (IMAGES + b"\x00", "does not match its dimensions"),
    ],
)
def test_damaged_bytes_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(ProblemError, match=message) as caught:
        parse_idx(data, "somewhere/file")
    assert "somewhere/file" in str(caught.value)


def test_a_header_that_declares_gigabytes_allocates_nothing() -> None:
    with pytest.raises(ProblemError, match="does not match its dimensions"):
        parse_idx(b"\x00\x00\x08\x03" + b"\xff" * 12, "bomb")


def test_another_type_or_shape_than_expected_is_refused() -> None:
    with pytest.raises(ProblemError, match="wrong type"):
        parse_idx(IMAGES, "here", dtype=np.float32)
    with pytest.raises(ProblemError, match="wrong shape"):
        parse_idx(IMAGES, "here", shape=(None, 4))
    with pytest.raises(ProblemError, match="wrong shape"):
        parse_idx(IMAGES, "here", shape=(None,))


def test_damaged_compression_and_missing_files_are_refused(tmp_path: Path) -> None:
    whole = gzip.compress(IMAGES)
    for name, data in {"cut": whole[:-4], "changed": whole[:12] + bytes([whole[12] ^ 255]) + whole[13:]}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ProblemError, match="cannot be read"):
            read_idx(tmp_path / name)
    with pytest.raises(ProblemError, match="cannot be read"):
        read_idx(tmp_path / "missing")


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dotted", [False, True])
@pytest.mark.parametrize("below", ["", "raw", "MNIST/raw"])
def test_usual_names_are_found(tmp_path: Path, compressed: bool, dotted: bool, below: str) -> None:
    write_folder(tmp_path / below, small_mnist(), compressed=compressed, dotted=dotted)
    assert find_idx(tmp_path, "t10k-labels-idx1-ubyte").parent == tmp_path / below


def test_a_missing_name_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match="train-images-idx3-ubyte"):
        find_idx(tmp_path, "train-images-idx3-ubyte")
