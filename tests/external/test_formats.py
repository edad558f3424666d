"""Every format, direction and order of ids gives the same phi, looked up pair by pair."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st

from genrep_dist.external import ExternalScores, load_external
from tests.external import files
from tests.external.files import FORMATS, MODELS, POSITIONS, TEST_IDS, TRAIN_IDS, expected, load, parts, scores

POINTS = TEST_IDS[POSITIONS[0]]


def same(found: ExternalScores, wanted: files.Array) -> None:
    assert found.phi.dtype == np.float64
    assert found.phi.flags.c_contiguous
    np.testing.assert_array_equal(found.phi, wanted)


@pytest.mark.parametrize("columns", ["points", "test set"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_in_the_order_of_the_samples(tmp_path: Path, name: str, transposed: bool, columns: str) -> None:
    suffix, write = FORMATS[name]
    full = scores()
    matrix = full if columns == "test set" else full[:, POSITIONS[0]]
    write(tmp_path / f"their scores{suffix}", parts(matrix.T if transposed else matrix, model=MODELS[0]))
    found = load(f"their scores{suffix}", folders=[tmp_path / "nothing", tmp_path], transposed=transposed)[0]
    same(found, expected(full, TRAIN_IDS.tolist(), TEST_IDS.tolist()))
    assert found.verified
    assert found.source == str(tmp_path / f"their scores{suffix}")


orders = st.permutations(range(len(TRAIN_IDS)))
some_columns = st.permutations(range(len(TEST_IDS))).flatmap(
    # The seed's points and any of the others.
    lambda order: st.sets(st.sampled_from(order)).map(lambda kept: [j for j in order if j in kept or j in POSITIONS[0]])
)


@pytest.mark.parametrize("name", FORMATS)
@given(rows=orders, columns=some_columns, transposed=st.booleans(), positive_raises=st.booleans())
def test_ids_rule_over_order(name: str, rows: list[int], columns: list[int], transposed: bool, positive_raises: bool) -> None:
    suffix, write = FORMATS[name]
    full = scores()
    matrix, train_ids, test_ids = full[np.ix_(rows, columns)], TRAIN_IDS[rows], TEST_IDS[columns]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        write(path, parts(matrix.T if transposed else matrix, train_ids, test_ids, MODELS[0]))
        found = load(path, transposed=transposed, positive_raises=positive_raises)[0]
        same(found, expected(full, TRAIN_IDS.tolist(), TEST_IDS.tolist(), sign=1.0 if positive_raises else -1.0))


@given(rows=orders, columns=some_columns, transposed=st.booleans())
def test_a_parquet_matrix_says_by_its_id_column_which_way_round_it_is(rows: list[int], columns: list[int], transposed: bool) -> None:
    full = scores()
    matrix, sides = full[np.ix_(rows, columns)], (TRAIN_IDS[rows], TEST_IDS[columns])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.parquet"
        if transposed:
            files.write_matrix_parquet(path, matrix.T, sides[1], sides[0], "test_id", MODELS[0])
        else:
            files.write_matrix_parquet(path, matrix, *sides, model=MODELS[0])
        found = load(path, layout="captum")[0]  # a layout's direction is a default: the file knows better
        same(found, expected(full, TRAIN_IDS.tolist(), TEST_IDS.tolist()))


@given(order=st.randoms(use_true_random=False), columns=some_columns, with_seeds=st.booleans())
def test_parquet_pairs_in_any_order(order: object, columns: list[int], with_seeds: bool) -> None:
    full = scores()
    tables = [files.pairs(full[:, columns], TRAIN_IDS, TEST_IDS[columns], 0 if with_seeds else None)]
    if with_seeds:
        tables.append(files.pairs(scores(1), TRAIN_IDS, TEST_IDS, 1))
    shuffled = np.arange(sum(len(table["score"]) for table in tables))
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.parquet"
        files.write_pairs(path, *tables, model=MODELS[0], order=shuffled)
        found = load(path)[0]
        same(found, expected(full, TRAIN_IDS.tolist(), TEST_IDS.tolist()))


def test_one_table_of_pairs_holds_all_seeds(tmp_path: Path) -> None:
    tables = [files.pairs(scores(seed), TRAIN_IDS, TEST_IDS, seed) for seed in (2, 0, 1)]
    files.write_pairs(tmp_path / "all.parquet", *tables, model=json.dumps({str(seed): model for seed, model in MODELS.items()}))
    found = load(tmp_path / "all.parquet", seeds=[0, 1, 2])
    for seed in (0, 1, 2):
        same(found[seed], expected(scores(seed), TRAIN_IDS.tolist(), TEST_IDS.tolist(), seed))
        assert found[seed].verified


def test_names_in_the_file_can_be_declared(tmp_path: Path) -> None:
    full = scores()
    held = {"other": full * 2, "influence": full[::-1], "rows": TRAIN_IDS[::-1], "points": TEST_IDS, "model": MODELS[0]}
    files.write_npz(tmp_path / "a.npz", held)
    wanted = expected(full, TRAIN_IDS.tolist(), TEST_IDS.tolist())
    same(load(tmp_path / "a.npz", key="influence", train_ids="rows", test_ids="points")[0], wanted)
    table = files.pairs(full, TRAIN_IDS, TEST_IDS)
    files.write_pairs(tmp_path / "a.parquet", {"x": table["train_id"], "z": table["test_id"], "phi": table["score"]}, model=MODELS[0])
    same(load(tmp_path / "a.parquet", key="phi", train_ids="x", test_ids="z")[0], wanted)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8, np.uint16, np.int64, np.bool_])
def test_real_numbers_of_any_width_are_cast(tmp_path: Path, dtype: type) -> None:
    full: files.Array = np.round(scores() * 10).astype(dtype)
    files.write_npz(tmp_path / "a.npz", parts(full, model=MODELS[0]))
    same(load(tmp_path / "a.npz")[0], expected(full.astype(np.float64), TRAIN_IDS.tolist(), TEST_IDS.tolist()))


@pytest.mark.parametrize("form", ["tensor", "dictionary"])
def test_bfloat16_and_gradients_of_torch(tmp_path: Path, form: str) -> None:
    tensor = torch.from_numpy(scores()).to(torch.bfloat16).requires_grad_()
    torch.save(tensor if form == "tensor" else {"phi": tensor}, tmp_path / "a.pt")
    wanted = tensor.detach().double().numpy()
    same(load(tmp_path / "a.pt", unverified=True)[0], expected(wanted, TRAIN_IDS.tolist(), TEST_IDS.tolist()))


@pytest.mark.parametrize("form", ["sparse", "float8", "conjugate", "expanded"])
def test_tensors_of_other_layouts_and_dtypes(tmp_path: Path, form: str) -> None:
    plain = torch.from_numpy(np.round(scores() * 4)).float()
    tensor = {
        "sparse": plain.to_sparse(),
        "float8": plain.to(torch.float8_e5m2),
        "conjugate": torch.complex(plain, -plain).conj().imag,
        "expanded": plain[:, :1].expand(plain.shape),
    }[form]
    torch.save({"phi": tensor}, tmp_path / "a.pt")
    wanted = plain[:, :1].expand(plain.shape) if form == "expanded" else tensor.float().to_dense() if form != "conjugate" else plain
    same(load(tmp_path / "a.pt", unverified=True)[0], expected(wanted.double().numpy(), TRAIN_IDS.tolist(), TEST_IDS.tolist()))


def test_a_folder_that_is_one_zarr_array(tmp_path: Path) -> None:
    array = zarr.create_array(str(tmp_path / "influences"), data=scores().T, chunks=(2, 3))
    array.attrs["genrep.model"] = MODELS[0]
    found = load(tmp_path / "influences", layout="pydvl")[0]
    same(found, expected(scores(), TRAIN_IDS.tolist(), TEST_IDS.tolist()))
    assert found.verified


def test_zeros_keep_no_sign(tmp_path: Path) -> None:
    full = np.zeros((len(TRAIN_IDS), len(TEST_IDS)))
    full[::2] = -0.0
    files.write_npz(tmp_path / "a.npz", parts(full, model=MODELS[0]))
    for positive_raises in (True, False):
        phi = load(tmp_path / "a.npz", positive_raises=positive_raises)[0].phi
        assert not np.signbit(phi).any()


def test_as_many_test_points_as_test_samples(tmp_path: Path) -> None:
    everything = {0: list(range(len(TEST_IDS)))}
    files.write_npz(tmp_path / "a.npz", parts(scores(), model=MODELS[0]))
    found = load_external(
        "theirs",
        files.section(tmp_path / "a.npz"),
        [Path()],
        seeds=[0],
        models=MODELS,
        train_ids=TRAIN_IDS,
        test_ids=TEST_IDS,
        positions=everything,
    )
    same(found[0], scores())
