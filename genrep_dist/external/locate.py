"""Finding the score file of each seed."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from genrep_dist.config.score_layouts import SCORE_LAYOUTS
from genrep_dist.config.sections import ExternalSection
from genrep_dist.errors import ConfigError
from genrep_dist.filesystem import what_is_at

SUFFIXES = (".npy", ".npz", ".pt", ".safetensors", ".parquet", ".zarr", ".mmap")
"""Suffixes of readable files, and of Zarr folders."""


def locate(name: str, section: ExternalSection, folders: Sequence[Path], seeds: Sequence[int]) -> dict[int, Path] | Path:
    """The file (or Zarr folder) of each seed, or one file for all seeds.

    ``section.path`` is searched in ``folders``, in order. ConfigError if it does not exist, if seeds have no file (all such seeds are
    named), if a file name does not tell its seed, or if two files have the same seed.
    """
    if "{seed}" in section.path:
        return _by_template(name, section, folders, seeds)
    found = _first(folders, section.path)
    if found is None:
        tried = dict.fromkeys(folder / section.path for folder in folders)
        raise ConfigError(
            "the scores do not exist",
            where=f"external.{name}.path",
            expected=f"a file or folder: one of {', '.join(map(str, tried))}",
            got=", ".join(dict.fromkeys(what_is_at(path) for path in tried)),
            remedy="correct path; or compute the scores from the exported models: genrep export problem EXPERIMENT --to FOLDER",
        )
    if not found.is_dir() or is_zarr(found):
        return found
    if found.suffix in SUFFIXES:
        raise _folder_not_file(f"external.{name}.path", found, section.path)
    return _tool_file(found, section.layout) or _in_folder(name, found, seeds)


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr array or group, of format 2 or 3."""
    return path.is_dir() and (path.suffix == ".zarr" or any((path / mark).is_file() for mark in ("zarr.json", ".zarray", ".zgroup")))


def _by_template(name: str, section: ExternalSection, folders: Sequence[Path], seeds: Sequence[int]) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for seed in seeds:
        relative = section.path.replace("{seed}", str(seed))
        path = _first(folders, relative)
        if path is not None and path.is_dir() and not is_zarr(path):
            file = _tool_file(path, section.layout)
            if file is None:
                raise _folder_not_file(f"external.{name}.path: {section.path}, seed {seed}", path, section.path)
            path = file
        if path is not None:
            found[seed] = path
    _refuse_missing(f"external.{name}.path: {section.path}", found, seeds)
    return found


def _first(folders: Sequence[Path], relative: str) -> Path | None:
    """The first of ``folders`` that has a file or folder of this name."""
    # Unlike Path.exists, it raises nothing for links in a circle and folders that may not be read.
    return next((folder / relative for folder in folders if os.path.exists(folder / relative)), None)


def _folder_not_file(where: str, path: Path, declared: str) -> ConfigError:
    """``declared``: the path as the experiment has it."""
    inside = sorted(entry.name for entry in path.iterdir())
    readable = [name for name in inside if Path(name).suffix in SUFFIXES]
    return ConfigError(
        "seeds of the experiment have no scores: the path is a folder",
        where=where,
        expected=f"a file ({', '.join(SUFFIXES)}), or a Zarr folder",
        got=f"the folder {path}, with {', '.join(inside[:5]) or 'nothing in it'}" + (", ..." if len(inside) > 5 else ""),
        remedy=f"name the file in it: path: {declared.rstrip('/')}/{readable[0]}" if readable else "set path to the file",
    )


def _tool_file(folder: Path, layout: str) -> Path | None:
    """The score file in the output folder of the layout's tool, or None."""
    pattern = SCORE_LAYOUTS.get(layout).file
    files = sorted(folder.glob(pattern)) if pattern else []
    if len(files) > 1:
        raise ConfigError(
            f"there are several files of {layout} in one folder",
            where=str(folder),
            expected=f"one {pattern}",
            got=", ".join(file.name for file in files[:5]),
            remedy="set path to the file",
        )
    return files[0] if files else None


def _in_folder(name: str, folder: Path, seeds: Sequence[int]) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix not in SUFFIXES:
            continue
        seed = _seed_in_name(path)
        if seed in found:
            raise ConfigError(
                f"two files have the seed {seed}",
                where=str(folder),
                expected="one file per seed",
                got=f"{found[seed].name} and {path.name}",
                remedy="move one of them to another folder, or set path to a template with {seed}",
            )
        found[seed] = path
    if not found:
        raise _folder_not_file(f"external.{name}.path", folder, str(folder))
    _refuse_missing(f"external.{name}.path: {folder}", found, seeds)
    return {seed: found[seed] for seed in seeds}


def _seed_in_name(path: Path) -> int:
    """The number after 'seed' in a file name, or the only number in a name without that word."""
    named = re.findall(r"seed[-_=. ]?(\d+)", path.stem, flags=re.IGNORECASE)
    numbers = named or re.findall(r"\d+", path.stem)
    if len(numbers) != 1:
        raise ConfigError(
            "a file name does not tell its seed",
            where=str(path),
            expected="one number, or one number after 'seed', such as seed-3.npy",
            got=f"{len(numbers)} numbers",
            remedy="rename the file, move it to another folder, or set path to a template with {seed}",
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
            remedy="compute their scores, or remove these seeds from the experiment",
        )
