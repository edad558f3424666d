from __future__ import annotations

import hashlib
import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from genrep_dist.errors import CorruptError, NonFiniteError, ProblemError, StoreError
from genrep_dist.problems.protocol import Dataset
from genrep_dist.problems.tables import data_digest, from_table, to_table, validate

DTYPES = [torch.float32, torch.float64, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]


def example(
    rows: int = 6,
    shape: tuple[int, ...] = (1, 2, 3),
    dtype: torch.dtype = torch.float32,
    targets: torch.dtype = torch.float32,
    seed: int = 0,
) -> Dataset:
    generator = torch.Generator().manual_seed(seed)
    inputs = (torch.rand((rows, *shape), generator=generator) * 200).to(dtype)
    return Dataset(inputs, torch.randint(0, 2, (rows,), generator=generator).to(targets), torch.randperm(rows, generator=generator) + 10)


def equal(first: Dataset, second: Dataset) -> bool:
    return all(a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b) for a, b in zip(first, second, strict=True))


def through_parquet(table: pa.Table) -> pa.Table:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=2)
    return pq.read_table(io.BytesIO(buffer.getvalue()))


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 5), st.lists(st.integers(1, 4), max_size=3), st.sampled_from(DTYPES), st.sampled_from(DTYPES), st.booleans())
def test_a_dataset_comes_back_bit_for_bit(rows: int, shape: list[int], dtype: torch.dtype, targets: torch.dtype, parquet: bool) -> None:
    dataset = example(rows, tuple(shape), dtype, targets)
    table = to_table(dataset)
    found = from_table(through_parquet(table) if parquet else table)
    assert equal(found, dataset)
    found.inputs.zero_()  # memory of its own, writable
    assert equal(from_table(table), dataset)


def test_bits_that_compare_unequal_or_alike_survive() -> None:
    bits = torch.tensor([[0x7FC00001, -2147483648, 0x00000001, 0x7F800000]], dtype=torch.int32)  # NaN with a payload, -0, denormal, Inf
    dataset = Dataset(bits.view(torch.float32), torch.tensor([1.0]), torch.tensor([4]))
    assert torch.equal(from_table(through_parquet(to_table(dataset))).inputs.view(torch.int32), bits)


def test_soft_targets_are_lists() -> None:
    dataset = example()._replace(targets=torch.rand(6, 3))
    assert equal(from_table(through_parquet(to_table(dataset))), dataset)


def test_a_slice_of_a_table_is_that_part_of_the_dataset() -> None:
    dataset = example(6)
    assert equal(from_table(to_table(dataset).slice(2, 3)), Dataset(*(tensor[2:5] for tensor in dataset)))


def test_tensors_need_not_be_contiguous() -> None:
    dataset = example(4)
    transposed = dataset._replace(inputs=dataset.inputs.permute(0, 3, 2, 1))
    assert equal(from_table(to_table(transposed)), transposed)
    contiguous = transposed._replace(inputs=transposed.inputs.contiguous())
    assert data_digest(transposed, dataset) == data_digest(contiguous, dataset)


def test_views_are_resolved() -> None:
    """Expanded samples, and the imaginary part of a conjugate, whose sign is a bit of the view."""
    plain = example(4, (3,))
    numbers = torch.complex(torch.zeros(4, 3), torch.rand(4, 3))
    for view, values in ((torch.ones(1, 3).expand(4, 3), torch.ones(4, 3)), (numbers.conj().imag, -numbers.imag)):
        dataset, expected = plain._replace(inputs=view), plain._replace(inputs=values)
        validate(dataset, "train")
        assert equal(from_table(to_table(dataset)), expected)
        assert data_digest(dataset, plain) == data_digest(expected, plain)


def test_the_schema_is_declared() -> None:
    schema = to_table(example()).schema
    assert schema.names == ["id", "input", "target"]
    assert not any(field.nullable for field in schema)
    assert schema.field("id").type == pa.int64()
    assert schema.field("input").type.list_size == 6
    assert schema.metadata[b"genrep.schema"] == b"genrep-dataset/1"


def test_foreign_tables_are_refused() -> None:
    table = to_table(example())
    layout = table.schema.metadata[b"genrep.layout"]
    foreign = [
        table.replace_schema_metadata(None),
        table.drop_columns(["target"]),
        table.replace_schema_metadata({"genrep.schema": "genrep-dataset/1", "genrep.layout": layout.replace(b"float32", b"float64")}),
        table.replace_schema_metadata({"genrep.schema": "genrep-dataset/1", "genrep.layout": layout.replace(b"[1, 2, 3]", b"[1, 2, 4]")}),
        table.replace_schema_metadata({"genrep.schema": "genrep-dataset/1"}),
        table.replace_schema_metadata({"genrep.schema": "genrep-dataset/1", "genrep.layout": "{"}),
        table.set_column(0, "id", pa.array([1, 2, None, 4, 5, 6], pa.int64())),
    ]
    for other in foreign:
        with pytest.raises(CorruptError):
            from_table(other)
    with pytest.raises(StoreError, match="newer version"):
        from_table(table.replace_schema_metadata({"genrep.schema": "genrep-dataset/2", "genrep.layout": layout}))


def slow_digest(train: Dataset, test: Dataset) -> str:
    """Value by value, as the docstring says."""
    digest = hashlib.sha256(b"genrep-data/1")
    for which, dataset in (("train", train), ("test", test)):
        for name in ("inputs", "targets", "ids"):
            tensor: Tensor = getattr(dataset, name)
            digest.update(f"\n{which}.{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            for value in tensor.reshape(-1):
                digest.update(np.array(value.item(), dtype=value.numpy().dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def test_the_digest_is_that_of_the_raw_values() -> None:
    train, test = example(), example(3, seed=1)
    assert data_digest(train, test) == slow_digest(train, test)
    assert data_digest(from_table(through_parquet(to_table(train))), test) == slow_digest(train, test)


def test_the_digest_sees_every_change() -> None:
    train, test = example(), example(3, seed=1)
    changed_input = train.inputs.clone()
    changed_input[5, 0, 1, 2] += 1
    others = [
        (test, train),
        (train._replace(inputs=changed_input), test),
        (train._replace(inputs=train.inputs.double()), test),
        (train._replace(inputs=train.inputs.reshape(6, 6)), test),
        (train._replace(targets=1 - train.targets), test),
        (train._replace(ids=train.ids + 1), test),
        (Dataset(*(tensor.flip(0) for tensor in train)), test),
        (train, test._replace(ids=test.ids + 1)),
    ]
    digests = {data_digest(*pair) for pair in others}
    assert len(digests) == len(others)
    assert data_digest(train, test) not in digests


def test_a_good_dataset_is_valid() -> None:
    validate(example(), "train")
    validate(example(1, ()), "test")
    validate(example(dtype=torch.int64, targets=torch.int64), "train")


def with_value(tensor: Tensor, position: tuple[int, ...], value: float) -> Tensor:
    copy = tensor.clone()
    copy[position] = value
    return copy


def test_a_bad_number_is_named_by_its_sample() -> None:
    dataset = example()
    inputs = with_value(with_value(dataset.inputs, (2, 0, 1, 2), float("nan")), (4, 0, 0, 0), float("-inf"))
    with pytest.raises(NonFiniteError) as caught:
        validate(dataset._replace(inputs=inputs), "train")
    message = str(caught.value)
    assert f"sample ids {int(dataset.ids[2])}, {int(dataset.ids[4])}" in message
    assert f"nan at position (0, 1, 2) of sample {int(dataset.ids[2])}" in message
    assert "train data, inputs" in message
    with pytest.raises(NonFiniteError, match=f"test data, targets, sample ids {int(dataset.ids[3])}"):
        validate(dataset._replace(targets=with_value(dataset.targets, (3,), float("inf"))), "test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": torch.tensor([1, 2, 3, 4, 2, 1])}, "more than once: 1, 2"),
        ({"ids": torch.tensor([1, 2, 3, 4, 5, -6])}, "negative"),
        ({"ids": torch.arange(6, dtype=torch.int32)}, "int64"),
        ({"ids": torch.arange(5)}, "differ in length"),
        ({"ids": [1, 2, 3, 4, 5, 6]}, "list"),
        ({"targets": torch.zeros(5)}, "differ in length"),
        ({"targets": torch.zeros(6, 2, 2)}, "shape"),
        ({"targets": torch.zeros(6, dtype=torch.bool)}, "bool"),
        ({"inputs": torch.zeros(6, 0)}, "without empty samples"),
        ({"inputs": torch.zeros(())}, "shape"),
        ({"inputs": torch.zeros(6, 2, requires_grad=True)}, "requires_grad"),
        ({"inputs": torch.zeros(6, 2, dtype=torch.complex64)}, "complex64"),
        ({"inputs": torch.zeros(6, 2).to_sparse()}, r"dense[\s\S]*tensor\.to_dense\(\)"),
        ({"inputs": torch.zeros(6, 2).to_sparse().requires_grad_()}, r"tensor\.detach\(\)\.to_dense\(\)"),
        ({"inputs": torch.zeros(6, 2).bfloat16()}, r"bfloat16[\s\S]*tensor\.float\(\)"),
        ({"inputs": torch.zeros(6, 2).half()}, r"float16[\s\S]*tensor\.float\(\)"),
        ({"targets": torch.zeros(6).to(torch.float8_e5m2)}, r"float8_e5m2[\s\S]*tensor\.float\(\)"),
        ({"inputs": torch.zeros(6, 2, dtype=torch.complex64).conj()}, "view_as_real"),
    ],
)
def test_malformed_data_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemError, match=message) as caught:
        validate(example()._replace(**change), "train")
    assert "train data" in str(caught.value)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused() -> None:
    inputs = torch.nested.nested_tensor([torch.zeros(size) for size in range(6)])
    with pytest.raises(ProblemError, match=r"nested[\s\S]*padded"):
        validate(example()._replace(inputs=inputs), "train")


def test_an_empty_dataset_is_refused() -> None:
    with pytest.raises(ProblemError, match="empty"):
        validate(example(0), "test")
