"""Readers of score files, one per format. No reader unpickles or runs code from a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from genrep_dist.config.sections import ExternalSection
from genrep_dist.errors import ConfigError, MethodError
from genrep_dist.external.archives import NpzArray, load_tensors, open_npz
from genrep_dist.external.contents import Contents, Matrix, integer_ids, is_transposed, scores_name
from genrep_dist.external.locate import SUFFIXES, is_zarr
from genrep_dist.external.parquet import MODEL, names_seeds, read_parquet
from genrep_dist.filesystem import EMPTY_FILE, FILE, FOLDER, what_is_at
from genrep_dist.limits import parse_json, read_json, require_fits
from genrep_dist.store.zarr_reader import ZarrArray, open_zarr

Found = tuple[Contents, Any]
"""Contents, and the file's model: a content address, one per seed ({seed: address}), or None."""


def read_scores(path: Path, section: ExternalSection, seed: int) -> Contents:
    """The scores of ``seed`` in ``path`` (a file, or a Zarr folder) and its sidecar ``<path>.json``.

    ConfigError for an unknown format, a damaged file, a file with Python objects, and names that the file does not contain.
    """
    found = what_is_at(path)
    suffix = ".zarr" if found == FOLDER and is_zarr(path) else path.suffix
    if found not in ((FOLDER,) if suffix == ".zarr" else (FILE, EMPTY_FILE)):
        raise ConfigError(
            "the scores cannot be read",
            where=str(path),
            expected="a Zarr folder" if suffix == ".zarr" else "a file of scores",
            got=found,
            remedy="set path to the file, or compute the scores again",
        )
    if suffix not in SUFFIXES:
        raise ConfigError(
            "this format of scores cannot be read",
            where=str(path),
            expected=f"one of {', '.join(SUFFIXES)}",
            got=suffix or "no suffix",
            remedy="save them as .npz with Exported.save, or in one of these formats",
        )
    try:
        contents, model = read_parquet(path, section, seed) if suffix == ".parquet" else _READERS[suffix](path, section)
    except (ConfigError, MethodError):  # they are ValueErrors too
        raise
    except Exception as error:  # libraries raise anything for a damaged file
        raise unreadable(path, error) from error
    return _with_sidecar(path, contents, model, section, seed)


def unreadable(path: Path, error: Exception) -> ConfigError:
    """The error for a file of scores that its library cannot read."""
    found = what_is_at(path)
    return ConfigError(
        f"this file cannot be read as {'.zarr' if found == FOLDER else path.suffix}",
        where=str(path),
        expected="a complete file of plain arrays, without Python objects",
        got=EMPTY_FILE if found == EMPTY_FILE else f"{type(error).__name__}: {error}".splitlines()[0][:500],
        remedy="write it again, for example as .npz with Exported.save",
    )


def holds_all_seeds(path: Path, section: ExternalSection) -> bool:
    """Whether one file can hold several seeds: a Parquet table of pairs with a column ``seed``."""
    try:
        return path.suffix == ".parquet" and path.is_file() and names_seeds(path, section)
    except (OSError, ValueError):  # reported when the file is read
        return False


def sidecar(path: Path) -> Path:
    """The JSON file next to a score file that may hold its model and ids."""
    return path.with_name(path.name + ".json")


def _with_sidecar(path: Path, contents: Contents, model: Any, section: ExternalSection, seed: int) -> Contents:
    """Contents completed by the sidecar. MethodError if file and sidecar contradict each other."""
    beside: dict[str, Any] = {}
    if sidecar(path).is_file():
        try:
            beside = dict(read_json(sidecar(path)))
        except (ValueError, TypeError) as error:
            raise ConfigError(
                "a sidecar is not a JSON object",
                where=str(sidecar(path)),
                expected='{"model": ...}',
                got=str(error),
                remedy="write it again, or delete it if the file itself names the model",
            ) from error
    in_file: dict[str, Any] = {"model": _model_address(model, seed, path), "train_ids": contents.train_ids, "test_ids": contents.test_ids}
    in_sidecar: dict[str, Any] = {"model": _model_address(beside.get("model"), seed, sidecar(path))}
    for side in ("train_ids", "test_ids"):
        declared = getattr(section, side)
        name = declared or side
        in_sidecar[side] = integer_ids(beside[name], f"{sidecar(path)}, {name!r}") if name in beside else None
        if declared is not None and in_file[side] is None and in_sidecar[side] is None:
            raise ConfigError(
                "the file does not contain the declared ids",
                where=str(path),
                expected=repr(name),
                got="nothing of this name",
                remedy=f"correct {side}",
            )
    for part, value in in_file.items():
        if value is not None and in_sidecar[part] is not None and not np.array_equal(value, in_sidecar[part]):
            raise MethodError(
                f"a file and its sidecar differ in {part}",
                where=str(path),
                expected=f"equal {part}",
                got=f"other {part} in {sidecar(path).name}",
                remedy="delete the one that is wrong",
            )
    return replace(contents, **{part: in_sidecar[part] if value is None else value for part, value in in_file.items()})


def _model_address(model: Any, seed: int, path: Path) -> str | None:
    """The content address of the seed's model, from one address or from {seed: address}, which may be JSON text."""
    got = type(model).__name__
    if isinstance(model, str) and model.startswith("{"):
        got = model[:80]
        try:
            model = parse_json(model)
        except ValueError:
            model = ()
    if isinstance(model, Mapping):
        model = model.get(str(seed))
    if model is None or isinstance(model, str):
        return model or None
    raise MethodError(
        "the model's address is not text",
        where=str(path),
        expected="a content address, or {seed: address}",
        got=got,
        remedy="write there the value of model in the export's problem.json",
    )


def _read_npy(path: Path, section: ExternalSection) -> Found:
    if section.key is not None:
        raise ConfigError(
            "a file of this format holds one array without a name", where=str(path), expected="no key", got=section.key, remedy="remove key"
        )
    return Contents(np.load(path, mmap_mode="r", allow_pickle=False), is_transposed(section)), None


def _read_npz(path: Path, section: ExternalSection) -> Found:
    entries: dict[str, Any] = dict(open_npz(path))
    model = entries.pop("model", None)
    return _from_entries(path, section, entries), None if model is None else str(model.read())


def _read_pt(path: Path, section: ExternalSection) -> Found:
    import torch

    loaded = load_tensors(path)
    if isinstance(loaded, torch.Tensor):
        loaded = {section.key or "scores": loaded}
    if not isinstance(loaded, dict):
        raise ConfigError(
            "this file holds no tensor",
            where=str(path),
            expected="a tensor, or {name: tensor}",
            got=type(loaded).__name__,
            remedy="save the matrix of scores as a tensor",
        )
    entries = {str(name): _to_array(value) for name, value in loaded.items() if isinstance(value, (torch.Tensor, list))}
    return _from_entries(path, section, entries), loaded.get("model")


def _read_safetensors(path: Path, section: ExternalSection) -> Found:
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
            require_fits(path.stat().st_size, "the file")
            entries = {name: _to_array(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 - not a mapping
            return _from_entries(path, section, entries), (file.metadata() or {}).get(MODEL)
    except SafetensorError as error:  # a subclass of Exception only
        raise ValueError(str(error)) from error


def _read_zarr(path: Path, section: ExternalSection) -> Found:
    found = open_zarr(path)
    if "" in found.arrays:
        entries: dict[str, Any] = {section.key or "scores": found.arrays[""]}
    else:
        entries = dict(found.arrays)
    names = [section.train_ids or "train_ids", section.test_ids or "test_ids"]
    entries |= {name: found.attributes[name] for name in names if name in found.attributes}
    return _from_entries(path, section, entries), found.attributes.get(MODEL)


_READERS: Mapping[str, Callable[[Path, ExternalSection], Found]] = {
    ".npy": _read_npy,
    ".mmap": _read_npy,  # TRAK's files have numpy's format
    ".npz": _read_npz,
    ".pt": _read_pt,
    ".safetensors": _read_safetensors,
    ".zarr": _read_zarr,
}


def _from_entries(path: Path, section: ExternalSection, entries: Mapping[str, Any]) -> Contents:
    train, test = section.train_ids or "train_ids", section.test_ids or "test_ids"
    ids = {name: integer_ids(_read(entries[name]), f"{path}, {name!r}") for name in (train, test) if name in entries}
    shapes = {name: (len(value),) if isinstance(value, list) else tuple(value.shape) for name, value in entries.items() if name not in ids}
    scores: Matrix = entries[scores_name(section, path, shapes)]
    return Contents(scores, is_transposed(section), ids.get(train), ids.get(test))


def _read(value: Any) -> Any:
    """The numbers of an array on disk; other values as they are."""
    return value.read() if isinstance(value, (NpzArray, ZarrArray)) else value


def _to_array(value: Any) -> Any:
    """A tensor as a numpy array; a list as it is."""
    from genrep_dist.core.tensors import numpy_array

    return value if isinstance(value, list) else numpy_array(value)
