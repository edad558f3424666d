"""Datasets as Arrow tables, their digest, and their validation."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from genrep_dist.core.inputs import InputForm, PackedInputs, form_of, input_leaves
from genrep_dist.core.tensors import numpy_values
from genrep_dist.errors import CorruptError, NonFiniteError, ProblemError, StoreError
from genrep_dist.problems.protocol import Dataset

SCHEMA_VERSION = "genrep-dataset/1"
OLDEST_VERSION = 1
"""Tables of this and later versions are read."""

_ARROW_TYPES: dict[torch.dtype, pa.DataType] = {
    torch.float32: pa.float32(),
    torch.float64: pa.float64(),
    torch.uint8: pa.uint8(),
    torch.int8: pa.int8(),
    torch.int16: pa.int16(),
    torch.int32: pa.int32(),
    torch.int64: pa.int64(),
}
_CHECKED_BYTES = 2**24
_TORCH_TYPES = {str(dtype).removeprefix("torch."): dtype for dtype in _ARROW_TYPES}


def to_table(dataset: Dataset) -> pa.Table:
    """A table with columns ``id`` int64, ``input`` (a fixed-size list of all values of a sample, row-major) and ``target``, without nulls.

    ``target`` is a plain column for targets (N,), else a fixed-size list. The schema's metadata hold the schema version and the dtypes
    and shapes of a sample, so that :func:`from_table` returns the same bits. Inputs of several tensors are
    bytes, and the metadata say where in them each tensor is. ProblemError for wrong dtypes, shapes or lengths; unlike
    :func:`validate`, values are not checked.
    """
    _check_form(dataset, "dataset")
    columns = {"id": dataset.ids, "input": dataset.inputs, "target": dataset.targets}
    arrays = {name: _to_arrow(tensor, as_list=name == "input") for name, tensor in columns.items()}
    layout: dict[str, Any] = {
        name: {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape[1:])} for name, tensor in columns.items()
    }
    form = form_of(dataset.inputs)
    if form is not None:
        layout["input"]["form"] = form.to_record()
    schema = pa.schema(
        [pa.field(name, array.type, nullable=False) for name, array in arrays.items()],
        metadata={"genrep.schema": SCHEMA_VERSION, "genrep.layout": json.dumps(layout, sort_keys=True)},
    )
    return pa.Table.from_arrays(list(arrays.values()), schema=schema)


def from_table(table: pa.Table, where: str = "dataset table") -> Dataset:
    """The dataset of a table of :func:`to_table`, bit for bit, as a copy. ``where``: its file, for messages.

    StoreError for a table of a newer version, CorruptError for any other table.
    """
    metadata = table.schema.metadata or {}
    version = metadata.get(b"genrep.schema", b"none").decode(errors="replace")
    if _version_number(version) > _version_number(SCHEMA_VERSION):
        raise StoreError(
            "a dataset table was written by a newer version of genrep-dist",
            where=where,
            expected=f"schema {SCHEMA_VERSION} or older",
            got=f"schema {version}",
            remedy="install the version that wrote it, or a newer one; or use another --store. Nothing in the store was changed",
        )
    if _version_number(version) < OLDEST_VERSION or table.column_names != ["id", "input", "target"]:
        raise CorruptError(
            "this table is not a dataset of this version",
            where=where,
            expected=f"columns id, input, target and schema {SCHEMA_VERSION}",
            got=f"columns {', '.join(table.column_names)} and schema {version}",
        )
    try:
        layout = json.loads(metadata[b"genrep.layout"])
        columns = [_from_arrow(table.column(name), _TORCH_TYPES[layout[name]["dtype"]], layout[name]["shape"]) for name in layout]
        by_name = dict(zip(layout, columns, strict=True))
        return Dataset(_with_form(by_name["input"], layout["input"].get("form")), by_name["target"], by_name["id"])
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptError("a dataset table does not match its metadata", where=where, got=f"{type(error).__name__}: {error}") from error


def _with_form(rows: Tensor, record: dict[str, Any] | None) -> Tensor:
    """``rows`` as inputs of the form of a record; as they are without one. ValueError for rows of another length."""
    if record is None:
        return rows
    form = InputForm.from_record(record)
    if rows.dtype != torch.uint8 or rows.shape[1:] != (form.row_bytes,):
        raise ValueError(f"expected rows of {form.row_bytes} bytes, got {rows.dtype} {tuple(rows.shape)}")
    return PackedInputs.of(rows, form)


def _version_number(schema: str) -> int:
    """The number of a schema version; 0 for another name."""
    name, _, number = schema.partition("/")
    return int(number) if name == SCHEMA_VERSION.partition("/")[0] and number.isdigit() else 0


def data_digest(train: Dataset, test: Dataset) -> str:
    """sha256 of both datasets: dtypes, shapes, ids and raw little-endian values, in the order of the rows.

    Independent of how and where the data are stored.
    """
    digest = hashlib.sha256(b"genrep-data/1")
    for which, dataset in (("train", train), ("test", test)):
        _check_form(dataset, which)
        for name, tensor in zip(Dataset._fields, dataset, strict=True):
            digest.update(f"\n{which}.{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            if isinstance(tensor, PackedInputs):
                digest.update(json.dumps(tensor.form.to_record(), sort_keys=True).encode())
            values = _values(tensor)
            digest.update(values.astype(values.dtype.newbyteorder("<"), copy=False).data)
    return digest.hexdigest()


def validate(dataset: Dataset, which: str) -> None:
    """Raise ProblemError, naming ``which`` ('train' or 'test'), unless the dataset can be used for training and explanations.

    Required: inputs (N, ...) and targets (N,) or (N, C) are CPU tensors of a storable dtype without gradient; ids (N,) are int64, not
    negative and unique; N >= 1; no sample is empty. NonFiniteError names the samples with NaN or Inf, and the first position. The same
    id may occur in the training set and in the test set.
    """
    _check_form(dataset, which)
    ids = dataset.ids
    if len(ids) == 0:
        raise ProblemError("a dataset is empty", where=f"{which} data", expected="at least one sample", got="none")
    if int(ids.min()) < 0:
        raise ProblemError("a sample id is negative", where=f"{which} data", expected="ids of 0 or more", got=str(int(ids.min())))
    unique, counts = torch.unique(ids, return_counts=True)
    if len(unique) != len(ids):
        repeated = unique[counts > 1]
        raise ProblemError(
            "sample ids are not unique",
            where=f"{which} data",
            expected=f"{len(ids)} different ids",
            got=f"{len(unique)}; more than once: {_some(repeated)}",
        )
    form = form_of(dataset.inputs)
    places = ["inputs"] if form is None else [one.place for one in form.fields]
    for part, tensor in (*zip(places, input_leaves(dataset.inputs), strict=True), ("targets", dataset.targets)):
        _check_finite(tensor, ids, f"{which} data, {part}")


def _check_finite(tensor: Tensor, ids: Tensor, where: str) -> None:
    if not tensor.is_floating_point():
        return
    # In blocks, for data that are mapped from a file larger than memory.
    rows_a_block = max(1, _CHECKED_BYTES // max(1, tensor[0].numel() * tensor.element_size()))
    blocks = (tensor[start : start + rows_a_block] for start in range(0, len(tensor), rows_a_block))
    bad = torch.cat([~torch.isfinite(block).reshape(len(block), -1).all(dim=1) for block in blocks])
    rows = bad.nonzero()[:, 0]
    if len(rows) == 0:
        return
    row = int(rows[0])
    place = int((~torch.isfinite(tensor[row].reshape(-1))).nonzero()[0, 0])
    position = tuple(int(i) for i in np.unravel_index(place, tensor.shape[1:])) if tensor.dim() > 1 else ()
    raise NonFiniteError(
        f"{len(rows)} samples contain NaN or Inf",
        where=f"{where}, sample ids {_some(ids[rows])}",
        expected="finite numbers",
        got=f"{tensor[row].reshape(-1)[place].item()} at position {position} of sample {int(ids[row])}",
        remedy="correct or remove these samples; they are not replaced here",
    )


def _some(ids: Tensor) -> str:
    return ", ".join(str(int(i)) for i in ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")


def _check_form(dataset: Dataset, which: str) -> None:
    """Types, dtypes, shapes and lengths."""
    for name, tensor in zip(Dataset._fields, dataset, strict=True):
        where = f"{which} data, {name}"
        if not isinstance(tensor, Tensor):
            raise ProblemError("data are not tensors", where=where, expected="torch.Tensor", got=type(tensor).__name__)
        sparse = tensor.is_nested or tensor.layout != torch.strided
        if tensor.device.type != "cpu" or tensor.requires_grad or sparse:
            raise ProblemError(
                "data must be plain tensors on the CPU; training moves them to its device",
                where=where,
                expected="a dense CPU tensor without requires_grad",
                got=f"{tensor.layout}{' (nested)' * tensor.is_nested} on {tensor.device}, requires_grad={tensor.requires_grad}",
                remedy="return samples of one shape, padded where needed" if tensor.is_nested else _plain_remedy(tensor),
            )
        if tensor.dtype not in _ARROW_TYPES:
            raise ProblemError(
                "data have a dtype that cannot be stored",
                where=where,
                expected=", ".join(_TORCH_TYPES),
                got=str(tensor.dtype),
                remedy=_dtype_remedy(tensor),
            )
    inputs, targets, ids = dataset
    checks = [
        ("ids", ids, ids.dtype == torch.int64 and ids.dim() == 1, "int64 (N,)"),
        ("inputs", inputs, inputs.dim() >= 1 and math.prod(inputs.shape[1:]) > 0, "(N, ...), without empty samples"),
        ("targets", targets, targets.dim() in (1, 2) and 0 not in targets.shape[1:], "(N,) or (N, C)"),
    ]
    for name, tensor, fine, expected in checks:
        if not fine:
            got = f"{tensor.dtype} {tuple(tensor.shape)}"
            raise ProblemError("data have a wrong shape or dtype", where=f"{which} data, {name}", expected=expected, got=got)
    lengths = {name: len(tensor) for name, tensor in zip(Dataset._fields, dataset, strict=True)}
    if len(set(lengths.values())) != 1:
        got = ", ".join(f"{length} {name}" for name, length in lengths.items())
        raise ProblemError("data differ in length", where=f"{which} data", expected="one input, target and id per sample", got=got)


def _plain_remedy(tensor: Tensor) -> str:
    steps = {"detach()": tensor.requires_grad, "to_dense()": tensor.layout != torch.strided, "cpu()": tensor.device.type != "cpu"}
    return "return " + ".".join(["tensor", *(step for step, needed in steps.items() if needed)])


def _dtype_remedy(tensor: Tensor) -> str:
    if tensor.is_quantized:
        return "return tensor.dequantize()"
    if tensor.is_floating_point():
        return "return tensor.float(), which holds the same values; model.forward can convert them to its own dtype"
    if tensor.is_complex():
        return "return torch.view_as_real(tensor): two real numbers for each complex one"
    return "return tensor.to(torch.uint8)" if tensor.dtype == torch.bool else "return tensor.long(), if its values fit"


def _values(tensor: Tensor) -> npt.NDArray[Any]:
    """All values, row-major, (numel,)."""
    return numpy_values(tensor.contiguous()).reshape(-1)


def _to_arrow(tensor: Tensor, *, as_list: bool) -> pa.Array:
    numbers = _values(tensor)
    # pa.array() would import pandas first, which takes longer than most data.
    values = pa.Array.from_buffers(pa.from_numpy_dtype(numbers.dtype), len(numbers), [None, pa.py_buffer(numbers)])
    if tensor.dim() == 1 and not as_list:
        return values
    kind = pa.list_(pa.field("item", values.type, nullable=False), math.prod(tensor.shape[1:]))
    return pa.FixedSizeListArray.from_arrays(values, type=kind)


def _from_arrow(column: pa.ChunkedArray, dtype: torch.dtype, shape: list[int]) -> Tensor:
    array = column.combine_chunks()
    if array.null_count:
        raise ValueError(f"{array.null_count} nulls")
    values = array.flatten() if pa.types.is_fixed_size_list(array.type) else array
    if values.null_count or values.type != _ARROW_TYPES[dtype]:
        raise ValueError(f"expected {_ARROW_TYPES[dtype]} without nulls, got {values.type} with {values.null_count} nulls")
    if len(values) != len(array) * math.prod(shape):
        raise ValueError(f"expected {math.prod(shape)} values a sample for the shape {shape}, got {len(values)} for {len(array)} samples")
    # A copy, because Arrow's memory is read-only and a tensor would be writable. (to_numpy() would import pandas.)
    return torch.from_numpy(np.array(np.from_dlpack(values))).reshape(len(array), *shape)
