"""Commands about the experiments and the disk space of a store: list, du, compare, rm, gc."""

from __future__ import annotations

import copy
import io
import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rich.console import Console

import genrep_dist as gr
from genrep_dist.cli.status import show_status
from genrep_dist.results import open_run
from genrep_dist.results.compare import compare_runs
from genrep_dist.store import Store
from genrep_dist.store.lease import Lease, lease_holder
from genrep_dist.store.paths import ExperimentPaths
from tests.cli.calls import FEW, SLOWER, Genrep, files_below
from tests.experiments import ROOT, experiment


@pytest.fixture
def store(finished: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "store"))


def test_list_names_state_size_and_time(genrep: Genrep, store: Path) -> None:
    rows = {row["name"]: row for row in genrep("list", "--store", store, "--json").json()}
    assert list(rows) == ["first", "second", "third"]
    assert {row["state"] for row in rows.values()} == {"finished"}
    assert [row["seeds"] for row in rows.values()] == [2, 2, 3]
    size = sum(size for path, size in files_below(store).items() if path.startswith("results/first/"))
    assert rows["first"]["results_bytes"] == size > 0
    assert rows["first"]["updated"] == json.loads((store / "experiments/first/progress.json").read_text())["written"]
    (store / "results/second/manifest.json").unlink()
    (store / "experiments/third/record.json").write_text("{")
    states = {row["name"]: row["state"] for row in genrep("list", "--store", store, "--json").json()}
    assert states == {"first": "finished", "second": "not finished", "third": "damaged record"}
    assert "not finished" in genrep("list", "--store", store).output


def test_runs_of_an_export_are_hidden(genrep: Genrep, store: Path) -> None:
    record = json.loads((store / "experiments/first/record.json").read_text())
    Store(str(store)).objects.put_json("experiments/first.originals/record.json", {k: v for k, v in record.items() if k != "sha256"})
    assert "first.originals" not in genrep("list", "--store", store).output
    assert "first.originals" in genrep("list", "--store", store, "--all").output
    refused = genrep("status", "nothing", "--store", store)
    assert (refused.code, "one of first, second, third" in refused.error, "originals" in refused.error) == (1, True, False)
    assert genrep("rm", "first", "--store", store, "--yes").code == 0
    assert [row["name"] for row in genrep("list", "--store", store, "--all", "--json").json()] == ["second", "third"]


def test_du_counts_every_file_once(genrep: Genrep, store: Path) -> None:
    usage = genrep("du", "--store", store, "--json").json()
    files = files_below(store)
    assert (sum(one["files"] for one in usage), sum(one["bytes"] for one in usage)) == (len(files), sum(files.values()))
    assert {"artifacts/train", "artifacts/attribution", "ledger", "results", "data"} <= {one["part"] for one in usage}


def test_du_tells_what_experiments_share(genrep: Genrep, store: Path) -> None:
    found = {one["name"]: one for one in genrep("du", "--experiments", "--store", store, "--json").json()["experiments"]}
    files = files_below(store)
    own = sum(size for path, size in files.items() if path.startswith(("results/first/", "experiments/first/")))
    assert found["first"]["own_bytes"] == own, "all that it computed is the third one's too"
    assert found["second"]["own_bytes"] > sum(size for path, size in files.items() if path.startswith("results/second/"))
    assert all(one["own_bytes"] < one["bytes"] < sum(files.values()) for one in found.values())


def test_compare_pairs_equal_seeds_and_names_what_differs(genrep: Genrep, store: Path) -> None:
    found = genrep("compare", "first", "second", "--store", store, "--json").json()
    assert [change["field"] for change in found["configuration"]] == ["recipe.learning_rate"]
    assert [found["configuration"][0][name] for name in ("first", "second")] == [0.1, 0.05]
    rows = {row["method"]: row for row in found["methods"] if row["metric"] == "auc_del_negative"}
    assert list(rows) == FEW["methods"]
    for method, row in rows.items():
        means = [_by_seed(store, name, method) for name in ("first", "second")]
        difference = means[1] - means[0]
        np.testing.assert_allclose([row["first"], row["second"], row["difference"]], [*map(np.mean, means), difference.mean()], atol=1e-12)
        # With two seeds the interval is the range of the seeds' differences.
        np.testing.assert_allclose(sorted([row["ci95_low"], row["ci95_high"]]), sorted(difference), atol=1e-6)
        assert row["paired"]
    shown = genrep("compare", "first", "second", "--store", store).output
    assert "second - first, paired by seed" in shown
    assert "recipe.learning_rate" in shown


def test_compare_of_other_seeds_is_not_paired(genrep: Genrep, store: Path) -> None:
    found = genrep("compare", "first", "third", "--store", store, "--json").json()
    assert {row["paired"] for row in found["methods"]} == {False}
    assert all(row["ci95_low"] < row["difference"] < row["ci95_high"] for row in found["methods"])
    assert [change["field"] for change in found["configuration"]] == ["seeds"]
    assert "independent seeds" in genrep("compare", "first", "third", "--store", store).output


def test_runs_of_other_data_loss_or_target_are_not_comparable(store: Path) -> None:
    first, second = (open_run(str(store), name) for name in ("first", "second"))
    assert compare_runs(first, second).warnings == []
    changed = copy.deepcopy(dict(second.record))
    changed["data"], changed["loss"] = "0" * 64, "squared"
    changed["experiment"]["target"] = {"kind": "loss"}
    changed["identities"]["problem"]["form"]["option epochs"] = "int 7"
    second.record = changed
    found = compare_runs(first, second)
    (warning,) = found.warnings
    for word in ("target", "loss", "data", "cannot be compared"):
        assert word in warning
    assert [(one.first, one.second) for one in found.changes if one.field == "problem: option epochs"] == [(None, "7")]


def test_status_of_a_store_that_is_not_there_yet_makes_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("genrep_dist.cli.status.time.sleep", stop)
    with pytest.raises(KeyboardInterrupt):
        show_status(Console(file=io.StringIO()), str(tmp_path / "later"), "toy", 0.1)
    assert list(tmp_path.iterdir()) == []


def _by_seed(store: Path, name: str, method: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    points = gr.open_run(str(store), name).points().collect()
    rows = points.filter(metric="auc_del_negative", method=method).group_by("seed").agg(pl.col("value").mean()).sort("seed")
    return rows["value"].to_numpy()


def test_nothing_of_a_store_in_use_is_garbage(genrep: Genrep, store: Path) -> None:
    before = files_below(store)
    assert "nothing" in genrep("gc", "--store", store, "--yes", "--ledgers").output
    assert {path: size for path, size in files_below(store).items() if "/lease/" not in path} == {
        path: size for path, size in before.items() if "/lease/" not in path
    }


def test_rm_and_gc_delete_after_a_dry_run(genrep: Genrep, store: Path) -> None:
    before = files_below(store)
    planned = genrep("rm", "second", "--store", store)
    assert (planned.code, files_below(store) == before) == (0, True)
    assert "nothing was deleted: add --yes" in planned.output

    assert genrep("rm", "second", "--store", store, "--yes").code == 0
    assert not (store / "results/second").exists()
    assert [row["name"] for row in genrep("list", "--store", store, "--json").json()] == ["first", "third"]
    kept = files_below(store)
    assert {path for path in before if path.startswith(("artifacts", "ledger", "data"))} <= kept.keys(), "what others may share stays"

    planned = genrep("gc", "--store", store, "--json")
    assert files_below(store) == kept
    garbage = planned.json()["removed"]
    assert {one["what"] for one in garbage} == {"artifacts/train", "artifacts/kernel", "artifacts/attribution"}
    deleted = genrep("gc", "--store", store, "--json", "--yes").json()
    assert deleted == {"deleted": True, "removed": garbage}
    after = files_below(store)
    assert sum(kept.values()) - sum(one["bytes"] for one in garbage) == sum(after[path] for path in kept.keys() & after.keys()), (
        "and no more"
    )
    assert len([path for path in after if path.startswith("ledger/")]) == len([path for path in before if path.startswith("ledger/")])

    ledgers = genrep("gc", "--store", store, "--ledgers", "--yes", "--json").json()["removed"]
    assert [one["what"] for one in ledgers] == ["ledger"]
    for name in ("first", "third"):
        run = gr.open_run(str(store), name)
        assert run.judge()["deletion"].equals(run.deletion().collect()), "what is left is whole"


def test_a_removed_experiment_is_run_again(genrep: Genrep, store: Path) -> None:
    before = gr.open_run(str(store), "second").deletion().collect()
    genrep("rm", "second", "--store", store, "--yes")
    genrep("gc", "--store", store, "--yes")
    again = gr.run(experiment(name="second", **(FEW | SLOWER)), store=str(store), serial=True, search_path=[str(ROOT)])
    assert again.deletion().collect().equals(before)


def test_nothing_is_deleted_while_a_run_is_active(genrep: Genrep, store: Path) -> None:
    before = {path for path in files_below(store) if "/lease/" not in path}
    objects = Store(str(store)).objects
    with Lease(objects, ExperimentPaths("third").lease):
        for command in (("rm", "third"), ("gc",)):
            refused = genrep(*command, "--store", store, "--yes")
            assert refused.code == 1
            assert "a run is active in this store, and nothing was deleted" in refused.error
            assert "experiment third" in refused.error
    assert {path for path in files_below(store) if "/lease/" not in path} == before
    assert genrep("gc", "--store", store, "--yes").code == 0


def test_a_lease_of_another_machine_is_held_while_it_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects, folder = Store(str(tmp_path)).objects, "experiments/x/lease"
    beat = 0

    def write(*, released: bool = False) -> None:
        record = {"token": "t", "beat": beat, "released": released, "host": "far", "pid": 7, "machine": "other", "started": "1"}
        objects.put(f"{folder}/000000000001.json", json.dumps(record).encode())

    def renew(seconds: float) -> None:
        nonlocal beat
        beat += 1
        write()

    write()
    assert lease_holder(objects, folder, watch_seconds=0.05) == "", "it was not renewed"
    monkeypatch.setattr("genrep_dist.store.lease.time.sleep", renew)
    assert lease_holder(objects, folder) == "process 7 on far"
    write(released=True)
    assert lease_holder(objects, folder) == ""
    assert lease_holder(objects, "experiments/y/lease") == ""


def test_gc_refuses_what_it_does_not_understand(genrep: Genrep, store: Path) -> None:
    objects = Store(str(store)).objects
    record = objects.get_json("experiments/third/record.json")
    objects.put_json("experiments/third/record.json", {**record, "extensions": {"stage theirs": "0"}})
    before = files_below(store)
    for more in ((), ("--yes",)):
        refused = genrep("gc", "--store", store, *more)
        assert refused.code == 1
        assert "experiment third" in refused.error
        assert "stage theirs of this run is not registered here" in refused.error
    assert {path for path in before if "/lease/" not in path} == {path for path in files_below(store) if "/lease/" not in path}
    assert "third: not known" in genrep("du", "--experiments", "--store", store).output


def test_a_store_that_is_not_there_is_not_created(genrep: Genrep, tmp_path: Path) -> None:
    for command in (("list",), ("du",), ("gc",), ("rm", "x"), ("compare", "a", "b")):
        refused = genrep(*command, "--store", tmp_path / "stor")
        assert (refused.code, "there is no store" in refused.error) == (1, True)
    assert not (tmp_path / "stor").exists()
