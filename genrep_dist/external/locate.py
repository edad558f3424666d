"""Which file holds the scores of which seed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from genrep_dist.config.sections import ExternalSection
from genrep_dist.errors import ConfigError
from genrep_dist.config.score_layouts import score_layout

SUFFIXES = (".npy", ".npz", ".pt", ".safetensors", ".parquet", ".zarr", ".mmap")
"""Endings of the files, and of Zarr's folders, that are read."""


def locate(name: str, section: ExternalSection, folders: Sequence[Path], seeds: Sequence[int]) -> dict[int, Path] | Path:
    """The file (or Zarr folder) of every seed, or one file for all of them.

    ``section.path`` is looked for in ``folders``, in order. ConfigError when it is not there, when seeds have no file (all are
    named), when a name does not say its seed, or when two files are of one seed.
    """
    if "{seed}" in section.path:
        return _by_template(name, section, folders, seeds)
    found = next((folder / section.path for folder in folders if (folder / section.path).exists()), None)
    if found is None:
        tried = ", ".join(dict.fromkeys(str(folder / section.path) for folder in folders))
        raise ConfigError(
            "there are no scores of this name",
            where=f"external.{name}.path",
            expected=f"one of {tried}",
            got="neither a file nor a folder",
            remedy="correct path; or, to compute them, export the models that are judged: genrep export problem EXPERIMENT --to FOLDER",
        )
    if not found.is_dir() or is_zarr(found):
        return found
    inside = _of_layout(found, section.layout)
    return inside if inside is not None else _in_folder(name, found, seeds)


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr array or group, of format 2 or 3."""
    return path.is_dir() and (path.suffix == ".zarr" or any((path / mark).is_file() for mark in ("zarr.json", ".zarray", ".zgroup")))


def _by_template(name: str, section: ExternalSection, folders: Sequence[Path], seeds: Sequence[int]) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for seed in seeds:
        relative = section.path.replace("{seed}", str(seed))
        path = next((folder / relative for folder in folders if (folder / relative).exists()), None)
        if path is not None and path.is_dir() and not is_zarr(path):
            path = _of_layout(path, section.layout)
        if path is not None:
            found[seed] = path
    _refuse_missing(f"external.{name}.path: {section.path}", found, seeds)
    return found


def _of_layout(folder: Path, layout: str) -> Path | None:
    """The one file that the layout's tool writes into its output folder, or None."""
    pattern = score_layout(layout).file
    if not pattern:
        return None
    files = sorted(folder.glob(pattern))
    if len(files) > 1:
        raise ConfigError(
            f"several files of {layout} in one folder",
            where=str(folder),
            expected=f"one {pattern}",
            got=", ".join(file.name for file in files[:5]),
            remedy="let path name the file",
        )
    return files[0] if files else None


def _in_folder(name: str, folder: Path, seeds: Sequence[int]) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix not in SUFFIXES:
            continue
        seed = _seed_of(path)
        if seed in found:
            raise ConfigError(
                f"two files are of seed {seed}",
                where=str(folder),
                expected="one file for each seed",
                got=f"{found[seed].name} and {path.name}",
                remedy="move one of them away, or let path be a template with {seed}",
            )
        found[seed] = path
    _refuse_missing(f"external.{name}.path: {folder}", found, seeds)
    return {seed: found[seed] for seed in seeds}


def _seed_of(path: Path) -> int:
    """The number after 'seed' in a file's name; without that word, its only number."""
    named = re.findall(r"seed[-_=. ]?(\d+)", path.stem, flags=re.IGNORECASE)
    numbers = named or re.findall(r"\d+", path.stem)
    if len(numbers) != 1:
        raise ConfigError(
            "a file's name does not say of which seed it is",
            where=str(path),
            expected="one number, or one number after 'seed', such as seed-3.npy",
            got=f"{len(numbers)} numbers",
            remedy="rename the file, move it away, or let path be a template with {seed}",
        )
    return int(numbers[0])


def _refuse_missing(where: str, found: dict[int, Path], seeds: Sequence[int]) -> None:
    missing = [seed for seed in seeds if seed not in found]
    if missing:
        raise ConfigError(
            "seeds of the experiment have no scores",
            where=where,
            expected=f"a file for each of {len(seeds)} seeds",
            got=f"none for seeds {', '.join(map(str, missing[:10]))}" + (" ..." if len(missing) > 10 else ""),
            remedy="compute their scores, or leave these seeds out of the experiment",
        )
