"""State dictionaries as arrays: one row per checkpoint and one array per dtype, so that nothing has to be pickled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genrep_dist.core.tensors import numpy_values
from genrep_dist.errors import ProblemError, StoreError
from genrep_dist.store.artifacts import Artifact
from genrep_dist.training.observers import Checkpoint

Entries = list[dict[str, Any]]
"""Name and shape of each tensor of one dtype, in the order of their values."""


@dataclass(frozen=True)
class StateArray:
    """Tensors of one dtype of several states: ``values`` (states, numbers), and their ``entries``."""

    values: npt.NDArray[Any]
    entries: Entries


def pack_states(artifact: Artifact, checkpoints: Sequence[Checkpoint]) -> None:
    """Write all checkpoints' states as ``state_<dtype>`` (checkpoints, numbers); names and shapes go to the attributes."""
    epochs = [checkpoint.epoch for checkpoint in checkpoints]
    for dtype, array in state_arrays([checkpoint.state for checkpoint in checkpoints]).items():
        attributes = {"entries": array.entries, "epochs": epochs}
        # A buffer may hold -Inf, as attention masks do. Parameters that are not finite are an error of training.
        artifact.write(f"state_{dtype}", array.values, ("checkpoint", "number"), attributes, require_finite=False)
    artifact.write("epochs", np.array(epochs, dtype=np.int64), ("checkpoint",))
    artifact.write("rates", np.array([c.rate for c in checkpoints], dtype=np.float64), ("checkpoint",))


def unpack_state(artifact: Artifact, epoch: int) -> dict[str, Tensor]:
    """The state dictionary after ``epoch`` epochs. StoreError names the epochs that were kept."""
    manifest = artifact.manifest()
    epochs = artifact.read("epochs").tolist()
    if not manifest["state_dtypes"]:
        raise StoreError("this model is no torch module, and has no parameters in the store", where=artifact.path, expected="a state_dict")
    if epoch not in epochs:
        raise StoreError("no such checkpoint", where=artifact.path, expected=f"one of epochs {epochs}", got=f"epoch {epoch}")
    row = epochs.index(epoch)
    state: dict[str, Tensor] = {}
    for dtype in manifest["state_dtypes"]:
        name = f"state_{dtype}"
        values = artifact.read(name, (slice(row, row + 1), slice(None)))[0]
        state |= state_tensors(dtype, values, artifact.attributes(name)["entries"])
    return state


def state_dtypes(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the dtypes of a state dictionary, sorted. ProblemError for a value that is not a dense tensor."""
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized:
            kind = f"{value.dtype}, {value.layout}" if isinstance(value, Tensor) else type(value).__name__
            raise ProblemError(
                "a checkpoint of the model cannot be stored",
                where=f"model.state_dict()[{name!r}]",
                expected="a dense tensor",
                got=kind,
                remedy="keep sparse tensors as to_dense(), quantized ones as dequantize(), and other values outside state_dict()",
            )
    return sorted({str(value.dtype).removeprefix("torch.") for value in state.values()})


def state_arrays(states: Sequence[Mapping[str, Tensor]]) -> dict[str, StateArray]:
    """The tensors of ``states`` by dtype. bfloat16 and dtypes of 8 bits, which numpy lacks, are held as float32, exactly.

    ProblemError for states that differ in names, dtypes or shapes, and as in :func:`state_dtypes`.
    """
    first, arrays = states[0], {}
    dtypes = state_dtypes(first)
    for state in states[1:]:
        changed = sorted(name for name in first.keys() | state.keys() if _form(first.get(name)) != _form(state.get(name)))
        if changed:
            raise ProblemError(
                "the model's state changes its form while it trains",
                where=f"model.state_dict()[{changed[0]!r}]",
                expected=f"{_form(first.get(changed[0]))}, as at the start",
                got=_form(state.get(changed[0])),
                remedy="create all parameters and buffers in model(), in their final shape and dtype",
            )
    for dtype in dtypes:
        names = [name for name, value in first.items() if str(value.dtype) == f"torch.{dtype}"]
        ends = np.cumsum([first[name].numel() for name in names])
        # One matrix, filled a tensor at a time: the states are in memory beside it.
        rows = np.empty((len(states), int(ends[-1])), dtype=numpy_values(first[names[0]].reshape(-1)[:0]).dtype)
        for row, state in zip(rows, states, strict=True):
            for part, name in zip(np.split(row, ends[:-1]), names, strict=True):
                part[:] = numpy_values(state[name]).reshape(-1)
        arrays[dtype] = StateArray(rows, [{"name": name, "shape": list(first[name].shape)} for name in names])
    return arrays


def state_tensors(dtype: str, row: npt.NDArray[Any], entries: Entries) -> dict[str, Tensor]:
    """The tensors of ``dtype`` of one state, from its ``row`` (numbers,) of :func:`state_arrays`."""
    numbers = torch.from_numpy(row.copy()).to(getattr(torch, dtype))
    sizes = [int(np.prod(entry["shape"], dtype=np.int64)) for entry in entries]
    parts = torch.split(numbers, sizes)
    return {entry["name"]: part.reshape(entry["shape"]) for entry, part in zip(entries, parts, strict=True)}


def _form(value: Tensor | None) -> str:
    return "nothing" if value is None else f"{value.dtype} {tuple(value.shape)}"
