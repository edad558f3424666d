"""Files that do not fit are refused, with a message that says where and what to do."""

from __future__ import annotations

import ast
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from genrep_dist.errors import ConfigError, MethodError, NonFiniteError
from tests.experiments import ROOT
from tests.external import files
from tests.external.files import FORMATS, MODELS, POSITIONS, TEST_IDS, TRAIN_IDS, load, parts, scores

SQUARE_FREE = "the numbers of training and test samples differ, so that a transposed matrix cannot pass"


def write(tmp_path: Path, matrix: Any, **others: Any) -> Path:
    files.write_npz(tmp_path / "a.npz", parts(matrix, **{"model": MODELS[0], **others}))
    return tmp_path / "a.npz"


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_a_number_that_is_none(tmp_path: Path, name: str, transposed: bool, number: float) -> None:
    suffix, writer = FORMATS[name]
    matrix = scores()
    matrix[4, 3] = number  # train id 100, test id 30, which seed 0 explains
    order = np.arange(len(TRAIN_IDS))[::-1]
    held = parts(matrix[order].T if transposed else matrix[order], TRAIN_IDS[order], model=MODELS[0])
    writer(tmp_path / f"a{suffix}", held)
    place = "row 3, column 2" if transposed else "row 2, column 3"
    with pytest.raises(NonFiniteError, match=rf"a\{suffix}, {place}: train id 100, test id 30[\s\S]*1 such numbers[\s\S]*what to do"):
        load(tmp_path / f"a{suffix}", transposed=transposed)


def test_a_null_of_parquet_is_no_number(tmp_path: Path) -> None:
    table = files.pairs(scores(), TRAIN_IDS, TEST_IDS)
    score = pa.array(table["score"], mask=(table["train_id"] == 19) & (table["test_id"] == 2))
    metadata = {"genrep.model": MODELS[0]}
    pq.write_table(
        pa.table({"train_id": table["train_id"], "test_id": table["test_id"], "score": score}, metadata=metadata), tmp_path / "a.parquet"
    )
    with pytest.raises(NonFiniteError, match="train id 19, test id 2"):
        load(tmp_path / "a.parquet")
    ids = pa.array(table["train_id"], mask=table["train_id"] == 19)
    pq.write_table(pa.table({"train_id": ids, "test_id": table["test_id"], "score": score}, metadata=metadata), tmp_path / "a.parquet")
    with pytest.raises(MethodError, match=r"an id is missing[\s\S]*train_id"):
        load(tmp_path / "a.parquet")


def test_a_bad_number_of_another_test_sample_is_no_matter(tmp_path: Path) -> None:
    matrix = scores()
    matrix[:, 0] = np.nan
    assert 0 not in POSITIONS[0]
    assert np.isfinite(load(write(tmp_path, matrix))[0].phi).all()


@pytest.mark.parametrize("columns", [slice(None), POSITIONS[0]])
@pytest.mark.parametrize("declared", [None, False, True])
def test_transposed(tmp_path: Path, columns: Any, declared: bool | None) -> None:
    matrix = scores()[:, columns]
    remedy = rf"transposed\n[\s\S]*a.npz[\s\S]*what to do: set transposed: {'false' if declared else 'true'}"
    with pytest.raises(MethodError, match=remedy):
        load(write(tmp_path, matrix if declared else matrix.T), transposed=declared)
    ids = {"train_ids": TRAIN_IDS, "test_ids": TEST_IDS[columns]}
    with pytest.raises(MethodError, match=remedy):
        load(write(tmp_path, matrix if declared else matrix.T, **ids), transposed=declared)


def test_a_layouts_direction_is_a_default(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="set transposed: false"):
        load(write(tmp_path, scores()), layout="captum")
    assert load(write(tmp_path, scores()), layout="captum", transposed=False)[0].verified
    assert load(write(tmp_path, scores().T), layout="captum")[0].verified


@pytest.mark.parametrize("shape", [(6, 5), (7, 4), (8, 2), (7, 3), (0, 0), (7, 0)])
def test_shapes(tmp_path: Path, shape: tuple[int, int]) -> None:
    with pytest.raises(MethodError, match=r"shape of the scores does not fit[\s\S]*7 training samples x 2 or 5 test samples") as caught:
        load(write(tmp_path, np.ones(shape)))
    assert str(shape) in caught.value.got


@pytest.mark.parametrize("shape", [(7,), (7, 5, 1), ()])
def test_dimensions(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(MethodError, match="scores are not a matrix"):
        load(write(tmp_path, np.ones(shape)), key="scores")


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "safetensors"])
def test_complex_numbers(tmp_path: Path, name: str) -> None:
    suffix, writer = FORMATS[name]
    writer(tmp_path / f"a{suffix}", parts(scores() + 1j, model=MODELS[0]))
    with pytest.raises(MethodError, match=r"not real numbers[\s\S]*complex128"):
        load(tmp_path / f"a{suffix}")


def test_text(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="not real numbers"):
        load(write(tmp_path, scores().astype(str)))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("side", ["train", "test"])
@pytest.mark.parametrize("fault", ["unknown", "missing", "twice"])
def test_ids(tmp_path: Path, name: str, side: str, fault: str) -> None:
    suffix, writer = FORMATS[name]
    train, test, matrix = TRAIN_IDS.copy(), TEST_IDS.copy(), scores()
    ids = train if side == "train" else test
    place, victim = (2, 19) if side == "train" else (3, 30)
    if fault == "unknown":
        ids[place], victim = 12345, 12345
    elif fault == "twice":
        ids[place], victim = ids[0], int(ids[0])
    else:
        keep = np.arange(len(ids)) != place
        train, test = (train[keep], test) if side == "train" else (train, test[keep])
        matrix = matrix[keep] if side == "train" else matrix[:, keep]
    writer(tmp_path / f"a{suffix}", parts(matrix, train, test, MODELS[0]))
    say = {"unknown": "belong to no sample of this experiment", "missing": "ids are missing", "twice": "ids occur more than once"}[fault]
    at = "" if fault == "missing" else f", at position {place}"
    with pytest.raises(MethodError, match=rf"{say}[\s\S]*a\{suffix}, {side} ids{at}\n[\s\S]*got: {victim}\n[\s\S]*what to do"):
        load(tmp_path / f"a{suffix}")


def test_a_test_sample_that_is_not_explained_may_be_missing(tmp_path: Path) -> None:
    found = load(write(tmp_path, scores()[:, [3, 1, 2]], test_ids=TEST_IDS[[3, 1, 2]]))[0]
    np.testing.assert_array_equal(found.phi, scores()[:, POSITIONS[0]])


@pytest.mark.parametrize("ids", [TRAIN_IDS.astype(float), TRAIN_IDS[None], TRAIN_IDS.astype(str)])
def test_ids_that_are_no_whole_numbers(tmp_path: Path, ids: Any) -> None:
    with pytest.raises(MethodError, match=r"ids are not a list of integers[\s\S]*a.npz, 'train_ids'"):
        load(write(tmp_path, scores(), train_ids=ids))


def test_names_that_the_file_does_not_have(tmp_path: Path) -> None:
    path = write(tmp_path, scores())
    with pytest.raises(ConfigError, match=r"no such array[\s\S]*'phi'[\s\S]*'scores'"):
        load(path, key="phi")
    with pytest.raises(ConfigError, match=r"does not contain the declared ids[\s\S]*'rows'[\s\S]*correct train_ids"):
        load(path, train_ids="rows")
    np.savez(tmp_path / "two.npz", a=scores(), b=scores())
    with pytest.raises(ConfigError, match=r"which array[\s\S]*'a' \(7, 5\), 'b' \(7, 5\)[\s\S]*set key"):
        load(tmp_path / "two.npz")
    np.save(tmp_path / "a.npy", scores())
    with pytest.raises(ConfigError, match="remove key"):
        load(tmp_path / "a.npy", key="phi")


def test_pairs_that_are_missing_or_there_twice(tmp_path: Path) -> None:
    table = files.pairs(scores(), TRAIN_IDS, TEST_IDS)
    path = tmp_path / "a.parquet"
    at = int(np.flatnonzero((table["train_id"] == 55) & (table["test_id"] == 77))[0])
    files.write_pairs(path, {name: np.delete(values, at) for name, values in table.items()}, model=MODELS[0])
    with pytest.raises(MethodError, match=r"has no score[\s\S]*train id 55, test id 77[\s\S]*1 of 35 pairs"):
        load(path)
    files.write_pairs(path, {name: np.append(values, values[at]) for name, values in table.items()}, model=MODELS[0])
    with pytest.raises(MethodError, match=r"several scores[\s\S]*train id 55, test id 77[\s\S]*2 rows"):
        load(path)
    with pytest.raises(ConfigError, match=r"no column of scores[\s\S]*'phi'"):
        load(path, key="phi")


def test_a_parquet_matrix_and_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    files.write_matrix_parquet(path, scores(), TRAIN_IDS, TEST_IDS, model=MODELS[0])
    with pytest.raises(MethodError, match=r"direction differs from the declared one[\s\S]*transposed: false, or remove it"):
        load(path, transposed=True)
    table = pq.read_table(path)
    pq.write_table(table.rename_columns(["train_id", "9", "2", "mean", "30", "11"]), path)
    with pytest.raises(MethodError, match=r"name of a column is not a sample id[\s\S]*'mean'"):
        load(path)
    pq.write_table(table.rename_columns(["index", "9", "2", "77", "30", "11"]), path)
    with pytest.raises(ConfigError, match=r"has no id column[\s\S]*'train_id' or 'test_id'[\s\S]*index"):
        load(path)


class Payload:
    """What a pickle could do: here it only says that it was run."""

    ran = False

    def __reduce__(self) -> Any:
        return (setattr, (Payload, "ran", True))


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".mmap", ".parquet", ".safetensors"])
def test_nothing_is_unpickled(tmp_path: Path, suffix: str) -> None:
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
    path = tmp_path / f"a{suffix}"
    objects = np.array([[Payload()] * 5] * 7, dtype=object)
    if suffix == ".npz":
        np.savez(path, scores=objects)
    elif suffix in (".npy", ".mmap"):
        with path.open("wb") as file:
            np.save(file, objects)
    elif suffix == ".pt":
        torch.save({"scores": Payload()}, path)
    else:
        path.write_bytes(pickle.dumps(objects))
    with pytest.raises(ConfigError, match=rf"cannot be read as \{suffix}[\s\S]*a\{suffix}[\s\S]*what to do"):
        load(path, unverified=True)
    assert not Payload.ran
    path.write_bytes(pickle.dumps(Payload(), protocol=2))
    with pytest.raises(ConfigError, match="cannot be read as"):
        load(path, unverified=True)
    assert not Payload.ran


@pytest.mark.parametrize("name", ["npz", "npy", "mmap", "pt", "safetensors"])
def test_damaged_files(tmp_path: Path, name: str) -> None:
    suffix, writer = FORMATS[name]
    path = tmp_path / f"a{suffix}"
    writer(path, parts(scores(), model=MODELS[0]))
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"no such format" * 20):
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match=rf"cannot be read as \{suffix}"):
            load(path)


def test_damaged_folders(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    path.mkdir()
    for metadata in (None, "{", "{}"):
        if metadata is not None:
            (path / "zarr.json").write_text(metadata)
        with pytest.raises(ConfigError, match="not a Zarr array or group"):
            load(path)


def test_a_format_that_is_not_read(tmp_path: Path) -> None:
    for name in ("a.csv", "a", "a.pkl"):
        (tmp_path / name).write_text("1,2")
        with pytest.raises(ConfigError, match=r"format of scores cannot be read[\s\S]*\.safetensors"):
            load(tmp_path / name)


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    (tmp_path / "a.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"needs another package[\s\S]*pip install safetensors"):
        load(tmp_path / "a.safetensors")


def test_the_examples_are_not_square() -> None:
    assert len(TRAIN_IDS) not in (len(TEST_IDS), len(POSITIONS[0])), SQUARE_FREE


def test_every_refusal_says_what_to_do() -> None:
    silent = [
        f"{module.name}:{node.lineno}"
        for module in sorted((ROOT / "genrep_dist" / "external").glob("*.py"))
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("Error") and node.keywords
        if "remedy" not in {keyword.arg for keyword in node.keywords}
    ]
    assert not silent
