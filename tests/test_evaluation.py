"""Every metric end to end, against slow references that read trained models and scores one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score
from torch import Tensor

import genrep_dist as gr
from genrep_dist.config.metrics import requested_retrainings
from genrep_dist.errors import PlanError
from genrep_dist.evaluation.subsets import draw_left_out, draw_subsets
from genrep_dist.executors.serial import SerialExecutor
from genrep_dist.runner.progress import NoProgress
from genrep_dist.store import Store
from genrep_dist.units import Retraining
from genrep_dist.workflow.execute import execute
from genrep_dist.workflow.prepare import PreparedExperiment, prepare
from genrep_dist.workflow.retrain import retrain
from genrep_dist.workflow.stages import artifacts_of
from genrep_dist.workflow.status import StageStatus, stage_status
from tests.experiments import ROOT, experiment
from tests.test_run import explained_outputs, jacobian
from tests.toys import trainings

METHODS = ["ntk-final/tracking", "ntk-final/target", "last-layer-final/target", "influence-function", "tracincp", "random"]
SUBSETS = {"lds": {"subsets": 6, "fraction": 0.5, "retrain": "fresh", "replicates": 2}, "loo": {"samples": 5}}
FIELDS: dict[str, Any] = {
    **SUBSETS,
    "methods": METHODS,
    "deletion": {"counts": [0, 3, 8], "signs": ["negative"]},
    "brittleness": {"fractions": [0.0, 0.1, 0.3, 0.6]},
    "baseline": "tracincp",
}

PLAIN: dict[str, Any] = {"lds": None, "loo": None, "brittleness": None, "baseline": None, "methods": ["ntk-final/tracking", "random"]}


def run(store: Path, problem: str = "tests.toys:Blobs", options: dict[str, Any] | None = None, **fields: Any) -> gr.Run:
    asked = experiment(problem, options, **{**FIELDS, **fields})
    return gr.run(asked, store=str(store), executor=SerialExecutor(0), search_path=[str(ROOT)])


@pytest.fixture(scope="module", params=[2, 3], ids=["binary", "three classes"])
def judged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> gr.Run:
    problem = {"name": "tests.toys:Blobs", "options": {"num_classes": request.param}, "flip_labels": {"share": 0.2, "seed": 3}}
    plain = experiment(**FIELDS).resolved()
    asked = gr.Experiment.model_validate({**plain, "problem": problem})
    return gr.run(asked, store=str(tmp_path_factory.mktemp("judge")), executor=SerialExecutor(0), search_path=[str(ROOT)])


def outputs_without(done: gr.Run, seed: int, removed: list[int], policy: str = "same", replicate: int = 0) -> npt.NDArray[np.float64]:
    """All outputs (T, C) of one model trained here and now; no ledger."""
    key = done.plan.keys.retraining(seed, removed, policy, replicate)
    if not removed:
        problem = done.problem(seed)
        with torch.no_grad():
            return np.asarray(problem.model(problem.test.inputs).double())
    row = retrain(Retraining(key, seed, policy, tuple(sorted(removed)), replicate), done.context)  # type: ignore[arg-type]
    return np.asarray(row.outputs, dtype=np.float64)


def points(done: gr.Run, metric: str, method: str, seed: int) -> list[float]:
    """The metric's values in the order of the seed's test points."""
    rows = done.points().filter(metric=metric, method=method, seed=seed).collect()
    value_of = dict(zip(rows["test_id"], rows["value"], strict=True))
    return [value_of[test_id] for test_id in done.test_ids(seed).tolist()]


@pytest.mark.parametrize("metric", ["lds", "loo_correlation"])
def test_subset_metrics_are_spearman_of_sums_with_retrained_outputs(judged: gr.Run, metric: str) -> None:
    n, ids, seed = 40, judged.train_ids(0), 0
    masks = draw_subsets(seed, n, 6, 0.5) if metric == "lds" else draw_left_out(seed, n, 5)
    rows, classes = explained_outputs(judged, seed)
    replicates = [("fresh", 0), ("fresh", 1)] if metric == "lds" else [("same", 0)]
    real = np.array([[outputs_without(judged, seed, ids[mask].tolist(), *how) for mask in masks] for how in replicates])
    for method in METHODS:
        phi = judged.attributions(method, seed)
        found = points(judged, metric, method, seed)
        for m, (row, output) in enumerate(zip(rows, classes, strict=True)):
            predicted = [-phi[mask, m].sum() for mask in masks]
            expected = stats.spearmanr(predicted, real[:, :, row, output].mean(axis=0)).statistic
            assert found[m] == pytest.approx(expected, abs=1e-9), (method, m)
    ceilings = judged.judged()["ceilings"].filter(metric=metric, seed=seed)
    if metric == "lds":
        row, output = rows[0], classes[0]
        agreement = stats.spearmanr(real[0, :, row, output], real[1, :, row, output]).statistic
        known = ceilings.filter(test_id=int(judged.test_ids(seed)[0]))
        assert known["reliability"][0] == pytest.approx(agreement)
        assert known["ceiling"][0] == pytest.approx(np.sqrt(max(0.0, 2 * agreement / (1 + agreement))))
    else:
        assert ceilings["ceiling"].null_count() == ceilings.height == 2  # common random numbers: nothing to average over


def test_brittleness_is_the_first_removal_that_flips_the_class(judged: gr.Run) -> None:
    seed = 1
    rows, classes = explained_outputs(judged, seed)
    outputs = outputs_without(judged, seed, [])
    table = judged.judged()["brittleness"]

    def predicted(all_outputs: npt.NDArray[np.float64], row: int) -> int:
        return int(all_outputs[row, 0] > 0) if all_outputs.shape[1] == 1 else int(all_outputs[row].argmax())

    for method in ("ntk-final/tracking", "random"):
        phi = judged.attributions(method, seed)
        for m, (row, output) in enumerate(zip(rows, classes, strict=True)):
            explained_is_predicted = outputs[row, 0] > 0 if outputs.shape[1] == 1 else output == outputs[row].argmax()
            by_id = np.lexsort((judged.train_ids(seed), -phi[:, m] if explained_is_predicted else phi[:, m]))
            smallest = None
            for count in (4, 12, 24):
                removed = judged.train_ids(seed)[by_id[:count]].tolist()
                if predicted(outputs_without(judged, seed, removed), row) != predicted(outputs, row):
                    smallest = count
                    break
            found = table.filter(method=method, seed=seed, test_id=int(judged.test_ids(seed)[m])).row(0, named=True)
            assert found["num_removed"] == smallest
            assert points(judged, "brittleness_flipped", method, seed)[m] == float(smallest is not None)
            assert points(judged, "brittleness_removed", method, seed)[m] == (0.6 if smallest is None else smallest / 40)


def test_one_factorisation_a_seed_serves_the_influence_kernel_and_self_influence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    factor, counted = torch.linalg.cholesky_ex, []

    def noted(matrix: Tensor, *arguments: Any, **options: Any) -> Any:
        if len(matrix) == 40:  # the gram's size
            counted.append(len(matrix))
        return factor(matrix, *arguments, **options)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", noted)
    problem = {"name": "tests.toys:Blobs", "options": {}, "flip_labels": {"share": 0.2, "seed": 3}}
    fields = {**PLAIN, "methods": ["influence-final/tracking", "influence-function", "random"]}
    asked = gr.Experiment.model_validate({**experiment(**{**FIELDS, **fields}).resolved(), "problem": problem})
    done = gr.run(asked, store=str(tmp_path), executor=SerialExecutor(0), search_path=[str(ROOT)])
    assert len(counted) == len(done.plan.experiment.seeds)
    # Lost, the diagonal is computed again, and is the same.
    artifact = done.store.artifact("diagonal", done.plan.keys.diagonal(0, "influence", done.plan.keys.epochs))
    before = artifact.read("diagonal")
    done.store.objects.delete_folder(artifact.path)
    [lost] = [unit for artifact in artifacts_of(done.plan, "diagonals") for unit in artifact.units if unit.seed == 0]
    execute(prepare(asked, done.store, [str(ROOT)]).job, lost)
    np.testing.assert_allclose(artifact.read("diagonal"), before, rtol=1e-9)


def test_flipped_labels_are_recorded_and_self_influence_ranks_them(judged: gr.Run) -> None:
    """phi(x_i -> x_i) for the logit of i's own label, from gradients one by one; AUROC by scikit-learn."""
    clean = dict(zip(*(t.tolist() for t in judged.context.problem.train_data()[2:0:-1]), strict=True))
    given = dict(zip(judged.train.ids.tolist(), judged.train.targets.tolist(), strict=True))
    assert judged.flipped_ids() == {sample for sample in given if given[sample] != clean[sample]}
    assert len(judged.flipped_ids()) == 8
    problem, outputs = judged.problem(0), judged.plan.shape.num_outputs
    flipped = [sample in judged.flipped_ids() for sample in problem.train.ids.tolist()]
    jacobians = torch.stack([jacobian(problem.model, sample) for sample in problem.train.inputs]).double()
    own = problem.train.targets.long() if outputs > 1 else torch.zeros(40, dtype=torch.int64)
    sign = torch.ones(40) if outputs > 1 else 2 * problem.train.targets - 1
    with torch.no_grad():
        fitted = problem.model(problem.train.inputs)
    h = problem.loss.second_derivative(fitted.double(), problem.train.targets)
    curvature = torch.einsum("ncp,ncd,ndq->pq", jacobians, h, jacobians) / 40 + 0.1 * torch.eye(jacobians.shape[2], dtype=torch.float64)
    target, tracking = (torch.as_tensor(judged.importance(name, 0)).reshape(40, -1) for name in ("target", "tracking"))
    last = 9 * outputs
    expected = {
        "ntk-final/target": (target, torch.einsum("ncp,np->nc", jacobians, jacobians[torch.arange(40), own])),
        "ntk-final/tracking": (tracking, torch.einsum("ncp,np->nc", jacobians, jacobians[torch.arange(40), own])),
        "last-layer-final/target": (
            target,
            torch.einsum("ncp,np->nc", jacobians[..., -last:], jacobians[torch.arange(40), own][:, -last:]),
        ),
        "influence-function": (target, torch.einsum("ncp,pq,nq->nc", jacobians, curvature.inverse(), jacobians[torch.arange(40), own])),
    }
    for method, (alpha, kernel) in expected.items():
        scores = sign * (alpha * kernel).sum(dim=1)
        found = judged.points().filter(metric="mislabel_auroc", method=method, seed=0).collect()
        assert found["test_id"].null_count() == 1
        assert found["value"][0] == pytest.approx(roc_auc_score(flipped, scores.numpy()), abs=1e-12), method
    curve = judged.judged()["inspection"].filter(method="tracincp")
    assert curve["found"].is_sorted()
    assert (curve["found"][0], curve["found"][-1]) == (0.0, 1.0)


def test_differences_and_ranks_cover_the_grid(judged: gr.Run) -> None:
    compared = judged.comparisons().filter(metric="auc_del_negative")
    assert {(row["method"], row["baseline"]) for row in compared.to_dicts()} == {
        (method, baseline) for method in METHODS for baseline in ("tracincp", "random") if method not in (baseline, "random")
    }, "the two baselines are compared once"
    auc = dict(zip(*judged.summary().select("method", "auc_del_negative"), strict=True))
    for row in compared.to_dicts():
        assert row["mean"] == pytest.approx(auc[row["method"]] - auc[row["baseline"]])
        assert row["p_holm"] >= row["p_value"] >= 0.5 - 1e-12, "two seeds cannot show anything"
    means = judged.metrics().filter(metric="auc_del_negative")
    assert dict(zip(*means.select("method", "mean"), strict=True)) == pytest.approx(auc)
    assert means["ci95_two_way_low"].null_count() == means.height, "each seed has test points of its own"


def test_counts_instead_of_fractions(judged: gr.Run) -> None:
    found = judged.deletion().select("num_removed", "fraction").unique().collect().sort("num_removed")
    assert found.rows() == [(0, 0.0), (3, 3 / 40), (8, 8 / 40)]


def test_named_test_points_are_shared_by_all_seeds(tmp_path: Path) -> None:
    ids = [5006, 5000, 5015]
    done = run(tmp_path, test_points=ids, seeds=3, **PLAIN)
    assert [sorted(done.test_ids(seed).tolist()) for seed in range(3)] == [sorted(ids)] * 3
    assert done.metrics()["ci95_two_way_low"].null_count() == 0
    assert gr.open_run(str(tmp_path), "toy").attributions("random", 2).shape == (40, 3)
    with pytest.raises(PlanError, match="test points that the test set does not have"):
        run(tmp_path, test_points=[5006, 77])


def test_replicates_are_averaged_and_kept(tmp_path: Path) -> None:
    deletion = {"fractions": [0.0, 0.2], "retrain": "fresh", "replicates": 3}
    done = run(tmp_path, **{**PLAIN, "deletion": deletion})
    kept = done.judged()["replicates"].filter(pl.col("num_removed") > 0)
    assert kept.height == 3 * 2 * 2 * 2
    row = kept.row(0, named=True)
    place = {name: row[name] for name in ("seed", "method", "test_id", "fraction")}
    mean = done.deletion().filter(**place).collect()["score_retrained"][0]
    three = kept.filter(**place)["score_retrained"]
    assert mean == pytest.approx(three.mean())
    assert three.n_unique() == 3
    assert done.costs()["unique"] == kept.select("seed", "method", "test_id").n_unique() * 3


def test_another_metric_pays_only_for_its_new_sets(tmp_path: Path) -> None:
    options = {"folder": str(tmp_path)}
    both = {"counts": [0, 4, 12], "signs": ["negative", "positive"]}
    first = run(tmp_path / "store", "tests.toys:Counting", options, **{**PLAIN, "deletion": both})
    before = trainings(tmp_path)
    assert before == 2 + first.costs()["unique"]
    brittle = {**PLAIN, "deletion": both, "brittleness": {"fractions": [0.0, 0.1, 0.3]}}
    run(tmp_path / "store", "tests.toys:Counting", options, **brittle)
    assert trainings(tmp_path) == before, "removals of brittleness are among those of the deletion curves"
    run(tmp_path / "store", "tests.toys:Counting", options, **{**brittle, "loo": {"samples": 7}})
    assert trainings(tmp_path) == before + 2 * 7


def test_a_plan_knows_what_the_store_has_of_another_experiment(tmp_path: Path) -> None:
    """Asked, distinct and done are told before the run; what is left is what the run then pays."""

    def planned(**fields: Any) -> tuple[PreparedExperiment, StageStatus]:
        asked = experiment("tests.toys:Counting", {"folder": str(tmp_path)}, name="more", **{**FIELDS, **PLAIN, **fields})
        found = prepare(asked, Store(str(tmp_path / "store")), [str(ROOT)])
        (status,) = [s for s in stage_status(found.plan, found.store, look_up=True) if s.name == "retrain"]
        return found, status

    fresh, nothing = planned()
    assert (nothing.total, nothing.done, nothing.exact) == (fresh.plan.retrainings_at_most, 0, False)
    first = run(tmp_path / "store", "tests.toys:Counting", {"folder": str(tmp_path)}, **PLAIN)
    unique = int(first.costs()["unique"])
    same = planned()[1]
    assert (same.total, same.done, same.exact) == (unique, unique, True)
    fields: dict[str, Any] = {"methods": ["ntk-final/tracking", "tracincp", "random"], "loo": {"samples": 7}}
    more, status = planned(**fields)
    a_method = 2 * requested_retrainings(more.plan.experiment, more.plan.shape.num_train).per_method
    # Six of seven: one sample's deletion may be among those that were made already.
    assert unique + a_method + 2 * 7 >= status.total > unique + a_method
    assert unique <= status.done <= unique + 2 * 7
    assert not status.exact
    before = trainings(tmp_path)
    gr.run(more.plan.experiment, store=str(tmp_path / "store"), executor=SerialExecutor(0), search_path=[str(ROOT)])
    assert trainings(tmp_path) - before <= status.total - status.done
    after = planned(**fields)[1]
    assert (after.done, after.exact) == (after.total, True)
    # Scores that are damaged are made anew by the next run: a plan takes them for missing, and does not fail.
    (tmp_path / "store/results").rename(tmp_path / "aside")
    for asked in (tmp_path / "store/experiments").rglob("requests-*.parquet"):
        asked.unlink()
    for part in (tmp_path / "store/artifacts/attribution").rglob("c/*/*"):
        part.write_bytes(part.read_bytes()[:-4])
    damaged = planned(**fields)[1]
    assert (damaged.exact, damaged.total >= after.total) == (False, True)


def test_a_damaged_part_is_refused_by_name_and_only_its_rows_are_trained_again(tmp_path: Path) -> None:
    said: list[str] = []

    class Listener(NoProgress):
        def message(self, text: str) -> None:
            said.append(text)

    options = {"folder": str(tmp_path)}
    fields: dict[str, Any] = {**FIELDS, "lds": None, "resources": {"task_seconds": 0.01}}
    asked = experiment("tests.toys:Counting", options, **fields)
    store = tmp_path / "store"
    whole = gr.run(asked, store=str(store), executor=SerialExecutor(0), search_path=[str(ROOT)])
    ledger = whole.store.ledger(whole.plan.keys.training)
    parts = sorted(ledger.parts())
    sizes = {part: pl.read_parquet(store / part).filter(pl.col("num_removed") > 0).height for part in parts}
    originals = next(part for part in parts if sizes[part] == 0)
    other = max(parts, key=lambda part: sizes[part])
    for part in (originals, other):
        (store / part).write_bytes((store / part).read_bytes()[:-20])
    (store / "results/toy/manifest.json").unlink()
    before, tables = (
        trainings(tmp_path),
        {name: (store / f"results/toy/{name}").read_bytes() for name in ("deletion.parquet", "points.parquet")},
    )
    gr.run(asked, store=str(store), executor=SerialExecutor(0), search_path=[str(ROOT)], progress=Listener())
    assert trainings(tmp_path) == before + sizes[other]
    assert all(any(Path(part).name in text for text in said) for part in (originals, other))
    assert {name: (store / f"results/toy/{name}").read_bytes() for name in tables} == tables


def test_every_table_declares_its_schema(judged: gr.Run) -> None:
    root = judged.store.objects.root
    assert root is not None
    found = {path: pq.read_schema(path) for place in ("results", "experiments", "ledger") for path in (root / place).rglob("*.parquet")}
    names = {path.stem.partition("-")[0] for path in found}
    assert {
        "deletion",
        "summary",
        "points",
        "metrics",
        "comparisons",
        "ranks",
        "best",
        "ceilings",
        "brittleness",
        "requests",
        "part",
    } <= names
    for path, schema in found.items():
        table = (schema.metadata or {}).get(b"genrep.table", b"").decode()
        assert table == {"part": "ledger"}.get(name := path.stem.partition("-")[0], name), path
        assert int(schema.metadata[b"genrep.version"]) >= 1
        assert not schema.field(0).nullable


def test_results_of_another_version_are_published_anew_and_nothing_is_trained(tmp_path: Path) -> None:
    options = {"folder": str(tmp_path)}
    first = run(tmp_path / "store", "tests.toys:Counting", options, **PLAIN)
    before, manifest = trainings(tmp_path), tmp_path / "store/results/toy/manifest.json"
    held = json.loads(manifest.read_text())
    del held["results_version"]
    manifest.write_text(json.dumps(held))
    (tmp_path / "store/results/toy/comparisons.parquet").unlink()
    again = run(tmp_path / "store", "tests.toys:Counting", options, **PLAIN)
    assert trainings(tmp_path) == before
    assert again.comparisons().height
    assert again.deletion().collect().equals(first.deletion().collect())


def test_brittleness_needs_classes(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="no classes"):
        run(tmp_path, "tests.test_evaluation:Regression")


class Regression:
    """Blobs' inputs with a number to predict."""

    loss = "squared"

    def __init__(self) -> None:
        from tests.toys import Blobs

        self._blobs = Blobs()
        self.recipe, self.model, self.train_data, self.test_data = (
            getattr(self._blobs, n) for n in ("recipe", "model", "train_data", "test_data")
        )


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ("nan", r"seed-1\.npz[\s\S]*train id 1099"),
        ("shape", r"seed-1\.npz[\s\S]*\(39, 2\)"),
        ("transposed", r"seed-1\.npz[\s\S]*transposed: true"),
        ("ids", r"seed-1\.npz[\s\S]*77"),
        ("seed", r"wrong seed: seed 0[\s\S]*seed-1\.npz"),
    ],
)
def test_bad_scores_are_refused_before_anything_is_trained(tmp_path: Path, harm: str, message: str) -> None:
    from genrep_dist.runner.export import export_problem
    from genrep_dist.runner.run import train_originals

    external = {"theirs": {"path": str(tmp_path / "scores"), "positive_raises": True}}
    asked = experiment(**{**PLAIN, "methods": ["random", "theirs"]}, external=external)
    list(export_problem(train_originals(asked, str(tmp_path / "elsewhere"), serial=True, search_path=[str(ROOT)]), tmp_path / "models"))
    for seed in (0, 1):
        problem = gr.open_exported(tmp_path / "models", seed, [ROOT])
        scores = np.random.default_rng(seed).normal(size=(40, 2))
        entries: dict[str, Any] = {"scores": scores, "train_ids": problem.train.ids.numpy(), "test_ids": problem.test_points.ids.numpy()}
        if seed == 1 and harm == "nan":
            scores[6, 1] = np.nan
        elif seed == 1 and harm == "shape":
            entries = {"scores": scores[:39]}
        elif seed == 1 and harm == "transposed":
            entries = {"scores": scores.T}
        elif seed == 1 and harm == "ids":
            entries["train_ids"] = np.where(entries["train_ids"] == 1000, 77, entries["train_ids"])
        identity = asked_model(problem, tmp_path, 0 if harm == "seed" else seed)
        (tmp_path / "scores").mkdir(exist_ok=True)
        np.savez(tmp_path / "scores" / f"seed-{seed}.npz", model=np.array(identity), **entries)
    with pytest.raises(gr.GenRepError, match=message):
        gr.run(asked, store=str(tmp_path / "store"), serial=True, search_path=[str(ROOT)])
    assert not list((tmp_path / "store").rglob("*.parquet")), "something was written for scores that were refused"


def asked_model(problem: Any, folder: Path, seed: int) -> str:
    """The content address that belongs to ``seed``."""
    return problem.identity if problem.seed == seed else gr.open_exported(folder / "models", seed, [ROOT]).identity
