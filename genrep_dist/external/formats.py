"""Readers of score files, one for each format. None of them runs code that a file brings: nothing is unpickled."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from genrep_dist.config.sections import ExternalSection
from genrep_dist.errors import ConfigError, MethodError
from genrep_dist.external.contents import Contents, Declared, Matrix, integer_ids
from genrep_dist.external.locate import SUFFIXES, is_zarr
from genrep_dist.external.parquet import MODEL, names_seeds, read_parquet
from genrep_dist.store.zarr_reader import open_zarr

Found = tuple[Contents, Any]
"""Contents, and what the file says of its model: a content address, or one for each seed."""

_ADDRESS = "write there what the export's problem.json has as model"
_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    RuntimeError,
    KeyError,
    TypeError,
    zipfile.BadZipFile,
    pickle.UnpicklingError,
    pa.ArrowException,
)


def read_scores(path: Path, section: ExternalSection, seed: int) -> Contents:
    """What ``path`` (a file, or a Zarr folder) and its sidecar ``<path>.json`` hold of ``seed``.

    ConfigError for a format that is not read, a file that is damaged or holds Python objects, and for names that it does not have.
    """
    declared = Declared.of(section)
    suffix = ".zarr" if is_zarr(path) else path.suffix
    if suffix not in SUFFIXES or (path.is_dir() and suffix != ".zarr"):
        raise ConfigError(
            "scores of this format are not read",
            where=str(path),
            expected=f"one of {', '.join(SUFFIXES)}",
            got=suffix or "no ending",
            remedy="write them as .npz with Exported.save, or as one of these",
        )
    try:
        contents, model = _read_parquet(path, declared, seed) if suffix == ".parquet" else _READERS[suffix](path, declared)
    except (ConfigError, MethodError):  # ours, and ValueErrors at that
        raise
    except _UNREADABLE as error:
        raise ConfigError(
            f"this file cannot be read as {suffix}",
            where=str(path),
            expected="a whole file of plain arrays, without Python objects",
            got=f"{type(error).__name__}: {error}".splitlines()[0],
            remedy="write it again, as .npz with Exported.save for example",
        ) from error
    return _with_sidecar(path, contents, model, declared, seed)


def holds_all_seeds(path: Path, section: ExternalSection) -> bool:
    """Whether one file can be of several seeds: a Parquet table of pairs with a column ``seed``."""
    try:
        return path.suffix == ".parquet" and path.is_file() and names_seeds(path, Declared.of(section))
    except (OSError, ValueError):  # what is wrong with it is said when it is read
        return False


def sidecar(path: Path) -> Path:
    """The file beside a score file that may name its model and its ids."""
    return path.with_name(path.name + ".json")


def _with_sidecar(path: Path, contents: Contents, model: Any, declared: Declared, seed: int) -> Contents:
    """Contents with what only the sidecar says. MethodError where the two contradict each other."""
    beside: dict[str, Any] = {}
    if sidecar(path).is_file():
        try:
            beside = dict(json.loads(sidecar(path).read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ConfigError(
                "a sidecar is no JSON object",
                where=str(sidecar(path)),
                expected='{"model": ...}',
                got=str(error),
                remedy="write it again, or delete it where the file itself holds the model",
            ) from error
    found: dict[str, Any] = {"model": _of_seed(model, seed, path)}
    found |= {"train_ids": contents.train_ids, "test_ids": contents.test_ids}
    said: dict[str, Any] = {"model": _of_seed(beside.get("model"), seed, sidecar(path))}
    for side in ("train_ids", "test_ids"):
        name = getattr(declared, side) or side
        said[side] = integer_ids(beside[name], f"{sidecar(path)}, {name!r}") if name in beside else None
        if getattr(declared, side) is not None and found[side] is None and said[side] is None:
            raise ConfigError(
                "the file does not hold the declared ids",
                where=str(path),
                expected=repr(name),
                got="nothing of this name",
                remedy=f"correct {side}",
            )
    for part, value in found.items():
        if value is not None and said[part] is not None and not np.array_equal(value, said[part]):
            raise MethodError(
                f"a file and its sidecar differ in {part}",
                where=str(path),
                got=f"other {part} in {sidecar(path).name}",
                remedy="delete the one that is wrong",
            )
    return replace(contents, **{part: said[part] if value is None else value for part, value in found.items()})


def _of_seed(model: Any, seed: int, path: Path) -> str | None:
    """The content address of the seed's model, from one address or from {seed: address}, which may be JSON text."""
    if isinstance(model, str) and model.startswith("{"):
        try:
            model = json.loads(model)
        except ValueError as error:
            raise MethodError(
                "the model's address is no text",
                where=str(path),
                expected="an address, or {seed: address}",
                got=model[:80],
                remedy=_ADDRESS,
            ) from error
    if isinstance(model, Mapping):
        model = model.get(str(seed))
    if model is None or isinstance(model, str):
        return model or None
    raise MethodError(
        "the model's address is no text", where=str(path), expected="a content address", got=type(model).__name__, remedy=_ADDRESS
    )


# -- the formats ------------------------------------------------------------------------------------------------------------------


def _read_parquet(path: Path, declared: Declared, seed: int) -> Found:
    return read_parquet(path, declared, seed)


def _read_npy(path: Path, declared: Declared) -> Found:
    if declared.key is not None:
        raise ConfigError(
            "a file of this format holds one array, without a name",
            where=str(path),
            expected="no key",
            got=declared.key,
            remedy="leave key out",
        )
    return Contents(np.load(path, mmap_mode="r", allow_pickle=False), declared.direction), None


def _read_npz(path: Path, declared: Declared) -> Found:
    # Opened here: numpy leaves a damaged file open.
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
        entries = {name: archive[name] for name in archive.files}
    model = entries.pop("model", None)
    return _from_entries(path, declared, entries), None if model is None else str(model)


def _read_pt(path: Path, declared: Declared) -> Found:
    import torch

    held = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(held, torch.Tensor):
        held = {declared.key or "scores": held}
    if not isinstance(held, dict):
        raise ConfigError(
            "this file holds no tensor",
            where=str(path),
            expected="a tensor, or {name: tensor}",
            got=type(held).__name__,
            remedy="save the matrix of scores as a tensor",
        )
    model = held.get("model")
    entries = {str(name): _array(value) for name, value in held.items() if isinstance(value, (torch.Tensor, list))}
    return _from_entries(path, declared, entries), model


def _read_safetensors(path: Path, declared: Declared) -> Found:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ConfigError(
            "reading .safetensors needs another package",
            where=str(path),
            expected="the package safetensors",
            got="not installed",
            remedy="pip install safetensors",
        ) from error
    try:
        with safe_open(path, framework="pt") as file:
            entries = {name: _array(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 - not a mapping
            return _from_entries(path, declared, entries), (file.metadata() or {}).get(MODEL)
    except SafetensorError as error:  # no subclass of any error that is read from the others
        raise ValueError(str(error)) from error


def _read_zarr(path: Path, declared: Declared) -> Found:
    found = open_zarr(path)
    if "" in found.arrays:
        entries: dict[str, Any] = {declared.key or "scores": found.arrays[""]}
    else:
        entries = {name: array if len(array.shape) == 2 else array.read() for name, array in found.arrays.items()}
    names = [declared.train_ids or "train_ids", declared.test_ids or "test_ids"]
    entries |= {name: found.attributes[name] for name in names if name in found.attributes}
    return _from_entries(path, declared, entries), found.attributes.get(MODEL)


_READERS: Mapping[str, Callable[[Path, Declared], Found]] = {
    ".npy": _read_npy,
    ".mmap": _read_npy,  # TRAK's, in numpy's own format
    ".npz": _read_npz,
    ".pt": _read_pt,
    ".safetensors": _read_safetensors,
    ".zarr": _read_zarr,
}


def _from_entries(path: Path, declared: Declared, entries: Mapping[str, Any]) -> Contents:
    train, test = declared.train_ids or "train_ids", declared.test_ids or "test_ids"
    ids = {name: integer_ids(entries[name], f"{path}, {name!r}") for name in (train, test) if name in entries}
    shapes = {name: tuple(np.shape(value)) for name, value in entries.items() if name not in ids}
    scores: Matrix = entries[declared.array_name(path, shapes)]
    return Contents(scores, declared.direction, ids.get(train), ids.get(test))


def _array(value: Any) -> Any:
    """A tensor as numpy's array; numpy has no bfloat16, all of whose numbers float32 has too."""
    import torch

    if not isinstance(value, torch.Tensor):
        return value
    return (value.float() if value.dtype == torch.bfloat16 else value).detach().resolve_conj().numpy()
