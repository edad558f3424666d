"""The model that scores belong to, the file of each seed, and the digest."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path

import numpy as np
import pytest

from genrep_dist.errors import ConfigError, MethodError
from tests.external import files
from tests.external.files import FORMATS, MODELS, TEST_IDS, TRAIN_IDS, expected, load, parts, scores


@pytest.mark.parametrize("name", FORMATS)
def test_scores_of_another_seeds_model_are_refused(tmp_path: Path, name: str) -> None:
    suffix, write = FORMATS[name]
    write(tmp_path / f"seed-0{suffix}", parts(scores(), model=MODELS[1]))
    with pytest.raises(MethodError, match=r"wrong seed: seed 1[\s\S]*seed-0[\s\S]*what to do") as caught:
        load(tmp_path / f"seed-0{suffix}", unverified=True)  # unverified scores may name no model, but not a wrong one
    assert MODELS[0] in caught.value.expected


@pytest.mark.parametrize("name", FORMATS)
def test_scores_that_do_not_say_their_model(tmp_path: Path, name: str) -> None:
    suffix, write = FORMATS[name]
    write(tmp_path / f"a{suffix}", parts(scores()))
    with pytest.raises(MethodError, match=r"do not name the model[\s\S]*a\..*json[\s\S]*unverified: true"):
        load(tmp_path / f"a{suffix}")
    assert not load(tmp_path / f"a{suffix}", unverified=True)[0].verified
    (tmp_path / f"a{suffix}.json").write_text(json.dumps({"model": MODELS[0]}))
    assert load(tmp_path / f"a{suffix}", unverified=True)[0].verified


def test_scores_of_an_unknown_model(tmp_path: Path) -> None:
    files.write_npz(tmp_path / "a.npz", parts(scores(), model="d" * 64))
    with pytest.raises(MethodError, match=r"belong to another model[\s\S]*export the problem again"):
        load(tmp_path / "a.npz")


def test_a_table_of_pairs_is_held_to_its_seed(tmp_path: Path) -> None:
    files.write_pairs(tmp_path / "a.parquet", files.pairs(scores(), TRAIN_IDS, TEST_IDS, 1), model=MODELS[0])
    with pytest.raises(MethodError, match="no scores for seed 0"):
        load(tmp_path / "a.parquet")
    mixed = json.dumps({"0": MODELS[1]})
    files.write_pairs(tmp_path / "a.parquet", files.pairs(scores(), TRAIN_IDS, TEST_IDS, 0), model=mixed)
    with pytest.raises(MethodError, match="wrong seed: seed 1"):
        load(tmp_path / "a.parquet")


def test_the_sidecar_is_held_against_the_file(tmp_path: Path) -> None:
    files.write_npz(tmp_path / "a.npz", parts(scores(), TRAIN_IDS, model=MODELS[0]))
    beside = tmp_path / "a.npz.json"
    beside.write_text(json.dumps({"model": MODELS[0], "train_ids": TRAIN_IDS.tolist(), "test_ids": TEST_IDS[::-1].tolist()}))
    found = load(tmp_path / "a.npz")[0].phi
    np.testing.assert_array_equal(found, expected(scores(), TRAIN_IDS.tolist(), TEST_IDS[::-1].tolist()))
    beside.write_text(json.dumps({"model": MODELS[0], "train_ids": TRAIN_IDS[::-1].tolist()}))
    with pytest.raises(MethodError, match="a file and its sidecar differ in train_ids"):
        load(tmp_path / "a.npz")
    beside.write_text(json.dumps({"model": MODELS[1]}))
    with pytest.raises(MethodError, match="a file and its sidecar differ in model"):
        load(tmp_path / "a.npz")
    for broken in ("{", "[1, 2]"):
        beside.write_text(broken)
        with pytest.raises(ConfigError, match=r"not a JSON object[\s\S]*a.npz.json"):
            load(tmp_path / "a.npz")


def test_scores_are_read_when_they_are_used_and_not_held(tmp_path: Path) -> None:
    files.write_npz(tmp_path / "a.npz", parts(scores(), TRAIN_IDS, model=MODELS[0]))
    found = load(tmp_path / "a.npz")[0]
    held = weakref.ref(found.phi)
    gc.collect()
    assert held() is None
    files.write_npz(tmp_path / "a.npz", parts(2 * scores(), TRAIN_IDS, model=MODELS[0]))
    with pytest.raises(ConfigError, match=r"changed since it was checked[\s\S]*a\.npz"):
        _ = found.phi


@pytest.mark.parametrize("names", [("seed-{}.npz",), ("{}.npz",), ("scores_seed{}.npz",), ("v2-Seed={}.npz",)])
def test_a_folder_with_one_file_for_each_seed(tmp_path: Path, names: tuple[str]) -> None:
    for seed in (2, 0, 1, 10):
        files.write_npz(tmp_path / names[0].format(seed), parts(scores(seed), model=MODELS.get(seed)))
    (tmp_path / "notes 1 2.txt").write_text("of no format")
    for path in (str(tmp_path), str(tmp_path / names[0].replace("{}", "{seed}"))):
        found = load(path, seeds=[0, 1, 2])
        for seed, one in found.items():
            np.testing.assert_array_equal(one.phi, expected(scores(seed), TRAIN_IDS.tolist(), TEST_IDS.tolist(), seed))


def test_seeds_without_a_file_are_all_named(tmp_path: Path) -> None:
    files.write_npz(tmp_path / "seed-1.npz", parts(scores(1), model=MODELS[1]))
    for path in (str(tmp_path), str(tmp_path / "seed-{seed}.npz")):
        with pytest.raises(ConfigError, match=r"seeds of the experiment have no scores[\s\S]*seeds 0, 2"):
            load(path, seeds=[0, 1, 2])


def test_names_that_leave_the_seed_open(tmp_path: Path) -> None:
    for name in ("run-2-of-3.npz", "scores.npz", "seed-1-seed-2.npz"):
        files.write_npz(tmp_path / name, parts(scores(), model=MODELS[0]))
        with pytest.raises(ConfigError, match=r"does not tell its seed"):
            load(tmp_path)
        (tmp_path / name).unlink()
    files.write_npz(tmp_path / "0.npz", parts(scores(), model=MODELS[0]))
    files.write_npz(tmp_path / "seed-0.npz", parts(scores(), model=MODELS[0]))
    with pytest.raises(ConfigError, match=r"two files have the seed 0[\s\S]*0.npz and seed-0.npz"):
        load(tmp_path)


def test_one_file_is_for_one_seed(tmp_path: Path) -> None:
    files.write_npz(tmp_path / "a.npz", parts(scores(), model=MODELS[0]))
    files.write_pairs(tmp_path / "a.parquet", files.pairs(scores(), TRAIN_IDS, TEST_IDS), model=MODELS[0])
    for name in ("a.npz", "a.parquet"):
        assert load(tmp_path / name)[0].verified
        with pytest.raises(ConfigError, match=r"one file cannot hold the scores of several seeds"):
            load(tmp_path / name, seeds=[0, 1])


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"external.theirs.path[\s\S]*one.npz[\s\S]*two.npz|scores do not exist"):
        load("none.npz", folders=[tmp_path / "one", tmp_path / "two"])


def test_a_tools_own_output_folder(tmp_path: Path) -> None:
    (tmp_path / "0" / "scores").mkdir(parents=True)
    files.write_npy(tmp_path / "0" / "scores" / "points.mmap", parts(scores(), model=MODELS[0]))
    files.write_npy(tmp_path / "0" / "other.npy", parts(scores(1)))
    wanted = expected(scores(), TRAIN_IDS.tolist(), TEST_IDS.tolist())
    for path in (tmp_path / "0", tmp_path / "{seed}"):
        np.testing.assert_array_equal(load(path, layout="trak")[0].phi, wanted)
    files.write_npy(tmp_path / "0" / "scores" / "more.mmap", parts(scores(), model=MODELS[0]))
    with pytest.raises(ConfigError, match=r"several files of trak[\s\S]*more.mmap, points.mmap"):
        load(tmp_path / "{seed}", layout="trak")
    with pytest.raises(ConfigError, match="have no scores"):  # captum writes no files
        load(tmp_path / "{seed}", layout="captum")


@pytest.mark.parametrize("name", FORMATS)
def test_the_digest_is_of_bytes_and_declarations(tmp_path: Path, name: str) -> None:
    suffix, write = FORMATS[name]
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    write(tmp_path / "one" / f"a{suffix}", parts(scores(), model=MODELS[0]))
    first = load(tmp_path / "one" / f"a{suffix}")[0].digest
    assert load(tmp_path / "one" / f"a{suffix}")[0].digest == first
    (tmp_path / "one" / f"a{suffix}").rename(tmp_path / "two" / f"b{suffix}")
    if (tmp_path / "one" / f"a{suffix}.json").exists():
        (tmp_path / "one" / f"a{suffix}.json").rename(tmp_path / "two" / f"b{suffix}.json")
    moved = tmp_path / "two" / f"b{suffix}"
    assert load(moved)[0].digest == first, "the path is not part of it"
    others = [load(moved, positive_raises=False), load(moved, layout="trak"), load(moved, unverified=True)]
    changed = scores()
    changed[0, 0] += 1e-9
    write(moved, parts(changed, model=MODELS[0]))
    others.append(load(moved))
    (tmp_path / "two" / f"b{suffix}.json").write_text(json.dumps({"model": MODELS[0], "test_ids": TEST_IDS.tolist()}))
    others.append(load(moved))
    digests = [first, *(one[0].digest for one in others)]
    assert len(set(digests)) == len(digests)
    assert all(len(digest) == 64 and int(digest, 16) >= 0 for digest in digests)
