"""State dictionaries as arrays: one row per checkpoint and one array per dtype, so that nothing has to be pickled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from genrep_dist.errors import StoreError
from genrep_dist.store.artifacts import Artifact
from genrep_dist.training.observers import Checkpoint


def pack_states(artifact: Artifact, checkpoints: Sequence[Checkpoint]) -> None:
    """Write all checkpoints' states as ``state_<dtype>`` (checkpoints, numbers); names and shapes go to the attributes."""
    first = checkpoints[0].state
    for dtype in sorted({str(value.dtype).removeprefix("torch.") for value in first.values()}):
        names = [name for name, value in first.items() if str(value.dtype) == f"torch.{dtype}"]
        # One matrix, filled a tensor at a time: the states of all checkpoints are in memory beside it.
        rows = torch.empty(len(checkpoints), sum(first[name].numel() for name in names), dtype=first[names[0]].dtype)
        for row, checkpoint in zip(rows, checkpoints, strict=True):
            for part, name in zip(row.split([first[name].numel() for name in names]), names, strict=True):
                part.copy_(checkpoint.state[name].reshape(-1))
        entries = [{"name": name, "shape": list(first[name].shape)} for name in names]
        epochs = [checkpoint.epoch for checkpoint in checkpoints]
        artifact.write(f"state_{dtype}", rows.numpy(), ("checkpoint", "number"), {"entries": entries, "epochs": epochs})
    artifact.write("epochs", np.array([c.epoch for c in checkpoints], dtype=np.int64), ("checkpoint",))
    artifact.write("rates", np.array([c.rate for c in checkpoints], dtype=np.float64), ("checkpoint",))


def unpack_state(artifact: Artifact, epoch: int) -> dict[str, Tensor]:
    """The state dictionary after ``epoch`` epochs. StoreError names the epochs that were kept."""
    manifest = artifact.manifest()
    epochs = artifact.read("epochs").tolist()
    if epoch not in epochs:
        raise StoreError("no such checkpoint", where=artifact.path, expected=f"one of epochs {epochs}", got=f"epoch {epoch}")
    row = epochs.index(epoch)
    state: dict[str, Tensor] = {}
    for dtype in manifest["state_dtypes"]:
        name = f"state_{dtype}"
        numbers = torch.from_numpy(artifact.read(name, (slice(row, row + 1), slice(None)))[0].copy())
        offset = 0
        for entry in artifact.attributes(name)["entries"]:
            size = int(np.prod(entry["shape"], dtype=np.int64))
            state[entry["name"]] = numbers[offset : offset + size].reshape(entry["shape"])
            offset += size
    return state
