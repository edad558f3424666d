"""The whole runner, in this process, against slow references that share no code with it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from mlflow import MlflowClient
from torch import Tensor, nn

import genrep_dist as gr
from genrep_dist.errors import ConvergenceError, MethodError, NonFiniteError, NotCommittedError, PlanError, StoreError
from genrep_dist.executors.serial import SerialExecutor
from genrep_dist.runner.progress import NoProgress, ProgressCounter
from genrep_dist.runner.stage_runner import StageRunner, Workers
from genrep_dist.runner.track import diagnostics
from genrep_dist.store import Store
from genrep_dist.store.ledger import Ledger
from genrep_dist.training.packs.mapped import MAPPED_SLOTS
from genrep_dist.training.randomness import Randomness
from genrep_dist.units import Retraining
from genrep_dist.workflow.execute import execute
from genrep_dist.workflow.prepare import prepare, publish_inputs
from genrep_dist.workflow.record import write_record
from genrep_dist.workflow.stages import artifacts_of
from genrep_dist.workflow.status import stage_status
from tests.experiments import METHODS, ROOT, experiment
from tests.publication import full_publication
from tests.toys import Blobs, Counting, trainings
from tests.training.reference import plainly_trained


def run(store: Path, **arguments: Any) -> gr.Run:
    return gr.run(experiment(**arguments), store=str(store), serial=True, search_path=[str(ROOT)])


@pytest.fixture(scope="module", params=[2, 3], ids=["binary", "three classes"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tables_only: pytest.MonkeyPatch) -> gr.Run:
    with full_publication(tables_only):
        return run(tmp_path_factory.mktemp("walk"), options={"num_classes": request.param})


def jacobian(model: nn.Module, sample: Tensor) -> Tensor:
    """(C, P) by one backward pass per output."""
    rows = []
    for output in model(sample[None])[0]:
        gradients = torch.autograd.grad(output, list(model.parameters()), retain_graph=True)
        rows.append(torch.cat([g.flatten() for g in gradients]))
    return torch.stack(rows)


def explained_outputs(finished: gr.Run, seed: int) -> tuple[list[int], list[int]]:
    """Rows and declared classes of the seed's test points."""
    problem = finished.problem(seed)
    rows = [problem.test.ids.tolist().index(i) for i in finished.test_ids(seed).tolist()]
    outputs = problem.model(problem.test.inputs[rows])
    return rows, outputs.argmax(dim=1).tolist()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("importance", "checkpoint"), [("tracking", "final"), ("target", "final"), ("surrogate", "final")])
def test_phi_is_alpha_times_the_kernel_of_one_by_one_gradients(finished: gr.Run, importance: str, checkpoint: str, seed: int) -> None:
    problem = finished.problem(seed)
    rows, classes = explained_outputs(finished, seed)
    name = "ntk-final/surrogate" if importance == "surrogate" else importance
    alpha = torch.as_tensor(finished.importance(name, seed)).reshape(len(problem.train.ids), -1)
    expected = np.zeros((len(problem.train.ids), len(rows)))
    for n, sample in enumerate(problem.train.inputs):
        left = jacobian(problem.model, sample).double()
        for m, (row, output) in enumerate(zip(rows, classes, strict=True)):
            right = jacobian(problem.model, problem.test.inputs[row]).double()[output]
            expected[n, m] = float(alpha[n].double() @ (left @ right))
    np.testing.assert_allclose(finished.attributions(f"ntk-{checkpoint}/{importance}", seed), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", ["influence-final/tracking", "influence-function"])
def test_influence_is_the_explicit_inverse_of_the_gauss_newton(finished: gr.Run, method: str) -> None:
    """phi = alpha J_i (H + delta I)^-1 g, with H = (1/n) sum J_i^T h_i J_i formed and inverted as a P x P matrix."""
    problem = finished.problem(0)
    rows, classes = explained_outputs(finished, 0)
    jacobians = torch.stack([jacobian(problem.model, sample) for sample in problem.train.inputs]).double()
    with torch.no_grad():
        outputs = problem.model(problem.train.inputs).double()
    curvature = problem.loss.second_derivative(outputs, problem.train.targets)
    hessian = torch.einsum("ncp,ncd,ndq->pq", jacobians, curvature, jacobians) / len(jacobians)
    inverse = torch.linalg.inv(hessian + 0.1 * torch.eye(len(hessian)))
    tests = torch.stack([jacobian(problem.model, problem.test.inputs[r])[c] for r, c in zip(rows, classes, strict=True)]).double()
    name = "target" if method == "influence-function" else "tracking"
    alpha = torch.as_tensor(finished.importance(name, 0)).double().reshape(len(jacobians), -1)
    expected = torch.einsum("nc,ncp,pq,mq->nm", alpha, jacobians, inverse, tests)
    np.testing.assert_allclose(finished.attributions(method, 0), expected.numpy(), rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def true_hessian(problem: Any) -> Tensor:
    """H (P, P) of the mean training loss, by autograd, float64."""
    model = problem.model.double()
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])

    def mean_loss(vector: Tensor) -> Tensor:
        parts = [part.reshape(shape) for part, shape in zip(torch.split(vector, [s.numel() for s in shapes]), shapes, strict=True)]
        outputs = torch.func.functional_call(model, dict(zip(names, parts, strict=True)), (problem.train.inputs.double(),))
        return torch.as_tensor(problem.loss.value(outputs, problem.train.targets).mean())

    return torch.as_tensor(torch.autograd.functional.hessian(mean_loss, flat))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("solver", ["cg", "lissa"])
def test_influence_with_the_true_hessian(tmp_path: Path, solver: str) -> None:
    settings = {"curvature": "hessian", "damping": 0.5, "solver": solver, "tolerance": 1e-8}
    done = run(tmp_path, methods=["influence-function", "random"], seeds=1, influence=settings)
    problem, (rows, classes) = done.problem(0), explained_outputs(done, 0)
    hessian = true_hessian(problem)
    inverse = torch.linalg.inv(hessian + 0.5 * torch.eye(len(hessian)))
    left = torch.cat([jacobian(problem.model, sample) for sample in problem.train.inputs.double()])
    right = torch.stack([jacobian(problem.model, problem.test.inputs[r].double())[c] for r, c in zip(rows, classes, strict=True)])
    expected = done.importance("target", 0)[:, None] * (left @ inverse @ right.T).numpy()
    np.testing.assert_allclose(done.attributions("influence-function", 0), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    artifact = done.store.artifact("kernel", done.plan.keys.kernel(0, "influence", 4))
    assert artifact.manifest()["certificate"]["residual"] <= 1e-8
    assert done.importance("target", 0).shape == (40,)


def test_negative_curvature_is_refused_or_reported(tmp_path: Path) -> None:
    """An untrained network under a squared loss sits on no minimum; with hardly any damping the system is indefinite."""
    fields: dict[str, Any] = {"methods": ["influence-function", "random"], "seeds": 1, "recipe": {"learning_rate": 1e-6}}
    settings = {"curvature": "hessian", "damping": 1e-6, "max_iterations": 200}
    with pytest.raises(ConvergenceError, match="negative curvature"):
        run(tmp_path, influence=settings, **fields)
    done = run(tmp_path, influence=settings | {"allow_unconverged": True}, **fields)
    certificate = done.store.artifact("kernel", done.plan.keys.kernel(0, "influence", 4)).manifest()["certificate"]
    assert certificate["negative_curvature"] > 0
    assert certificate["smallest_rayleigh"] < 0


@pytest.mark.parametrize("num_classes", [2, 3])
def test_influence_of_the_last_layer_alone(tmp_path: Path, num_classes: int) -> None:
    settings = {"curvature": "last-layer", "damping": 0.2, "damping_unit": "mean-eigenvalue"}
    fields: dict[str, Any] = {"methods": ["influence-final/tracking", "random"], "seeds": 1, "options": {"num_classes": num_classes}}
    done = run(tmp_path, influence=settings, **fields)
    problem, (rows, classes) = done.problem(0), explained_outputs(done, 0)
    last = len(list(problem.model.parameters())) - 2
    size = sum(p.numel() for p in list(problem.model.parameters())[last:])
    jacobians = torch.stack([jacobian(problem.model, sample) for sample in problem.train.inputs]).double()[:, :, -size:]
    with torch.no_grad():
        curvature = problem.loss.second_derivative(problem.model(problem.train.inputs).double(), problem.train.targets)
    hessian = torch.einsum("ncp,ncd,ndq->pq", jacobians, curvature, jacobians) / len(jacobians)
    inverse = torch.linalg.inv(hessian + 0.2 * torch.trace(hessian) / size * torch.eye(size))
    tests = torch.stack([jacobian(problem.model, problem.test.inputs[r])[c] for r, c in zip(rows, classes, strict=True)]).double()
    alpha = torch.as_tensor(done.importance("tracking", 0)).reshape(len(jacobians), -1)
    expected = torch.einsum("nc,ncp,pq,mq->nm", alpha, jacobians, inverse, tests[:, -size:]).numpy()
    np.testing.assert_allclose(done.attributions("influence-final/tracking", 0), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("num_classes", [2, 3])
def test_a_kernel_of_ones_own(tmp_path: Path, num_classes: int) -> None:
    """Values by the formula, a surrogate on its gram, and keys that follow its source and options."""
    fields: dict[str, Any] = {
        "options": {"num_classes": num_classes},
        "methods": ["rbf-final/tracking", "rbf-middle/target", "rbf-final/surrogate"],
        "resources": {"memory_budget": "32KiB"},
    }
    done = run(tmp_path, kernels={"rbf": {"class": "tests.toys:Rbf", "options": {"width": 2.0}}}, **fields)
    problem = done.problem(0)
    rows, classes = explained_outputs(done, 0)
    hidden = problem.model[:2]  # type: ignore[index]
    with torch.no_grad():
        left, right = hidden(problem.train.inputs), hidden(problem.test.inputs[rows])
    values = np.array([[np.exp(-float(((a - b) ** 2).sum()) / 2.0) for b in right] for a in left])
    alpha = done.importance("tracking", 0).reshape(len(left), -1)
    expected = np.stack([alpha[:, c] * values[:, m] for m, c in enumerate(classes)], axis=1)
    np.testing.assert_allclose(done.attributions("rbf-final/tracking", 0), expected, rtol=1e-3, atol=1e-6)
    assert all(certificate["converged"] for certificate in done.certificates().to_dicts())
    other = run(tmp_path, name="other", kernels={"rbf": {"class": "tests.toys:Rbf", "options": {"width": 3.0}}}, **fields)
    assert done.plan.keys.kernel(0, "rbf", 4) != other.plan.keys.kernel(0, "rbf", 4)
    assert not np.allclose(done.attributions("rbf-final/tracking", 0), other.attributions("rbf-final/tracking", 0))


def test_the_surrogate_meets_proposition_8(finished: gr.Run) -> None:
    found = [certificate for certificate in finished.certificates().to_dicts() if certificate["importance"] == "surrogate"]
    assert {(certificate["seed"], certificate["kernel"]) for certificate in found} == {
        (s, k) for s in (0, 1) for k in ("ntk", "last-layer")
    }
    for certificate in found:
        assert certificate["converged"]
        assert certificate["residual"] <= 1e-6


def test_the_descent_is_gradient_descent_on_a_linear_model(finished: gr.Run) -> None:
    """Eq. 9 over the run's own batches: plain SGD in the parameters of f = <theta, Phi> with the last layer's features, towards f."""
    problem, recipe = finished.problem(1), Blobs().recipe
    hidden = problem.model[:2]  # type: ignore[index]
    with torch.no_grad():
        features = torch.cat([hidden(problem.train.inputs), torch.ones(40, 1)], dim=1).double()
        outputs = problem.model(problem.train.inputs).double()
    targets = problem.loss.soft_targets(outputs)
    weights = torch.zeros(features.shape[1], outputs.shape[1], dtype=torch.float64)
    for epoch in range(1, recipe.epochs + 1):
        for rows in torch.split(Randomness(1).order(epoch, 40), recipe.batch_size):
            slope = problem.loss.derivative(features[rows] @ weights, targets[rows])
            weights -= recipe.learning_rate / len(rows) * features[rows].T @ slope
    alpha = torch.as_tensor(finished.importance("last-layer-final/descent", 1)).reshape(40, -1)
    torch.testing.assert_close(features.T @ alpha, weights, rtol=1e-4, atol=1e-6)


def test_deletion_rows_are_plain_retrainings_on_the_remaining_rows(finished: gr.Run) -> None:
    """Every row of the table: the named samples are those with the lowest (highest) phi, and the score is a plain loop's."""
    num_classes = finished.plan.shape.num_outputs
    toy = Blobs(num_classes=2 if num_classes == 1 else num_classes)
    rows, classes = explained_outputs(finished, 1)
    ids = finished.train_ids(1)
    table = finished.deletion().filter(pl.col("seed") == 1, pl.col("method").is_in(["ntk-final/tracking", "tracincp"])).collect()
    assert table.height == 2 * 2 * 2 * 3
    for line in table.iter_rows(named=True):
        column = finished.test_ids(1).tolist().index(line["test_id"])
        phi = finished.attributions(line["method"], 1)[:, column]
        ranked = sorted(range(len(ids)), key=lambda i: ((phi[i] if line["sign"] == "negative" else -phi[i]), ids[i]))
        removed = {int(ids[i]) for i in ranked[: line["num_removed"]]}
        assert line["num_removed"] == round(line["fraction"] * len(ids))
        model = plainly_trained(toy.model, toy.loss, toy.recipe, toy.train_data(), Randomness(1), removed)
        score = float(model(toy.test_data().inputs[rows[column]][None])[0, classes[column]].detach())
        assert line["score_retrained"] == pytest.approx(score, abs=2e-5)
        assert line["delta"] == pytest.approx(line["score_retrained"] - line["score_original"], abs=1e-12)
        if line["num_removed"] == 0:
            assert line["delta"] == 0


def test_summary_has_a_row_a_method_best_first(finished: gr.Run) -> None:
    summary = finished.summary()
    assert sorted(summary["method"]) == sorted(METHODS)
    assert summary["auc_del_negative"].is_sorted(descending=True)
    root = finished.store.objects.root
    assert root is not None
    assert pl.read_parquet(root / "results/toy/summary.parquet")["method"].to_list() == METHODS
    table = finished.deletion().filter(pl.col("method") == "tracincp", pl.col("sign") == "negative").collect()
    assert summary.filter(pl.col("method") == "tracincp")["auc_del_negative"].item() == pytest.approx(table["delta"].mean())
    assert summary["num_seeds"].unique().to_list() == [2]


def test_files_of_the_public_contract(finished: gr.Run) -> None:
    root = finished.store.objects.root
    assert root is not None
    names = {path.name for path in (root / "results" / "toy").iterdir()}
    assert {"summary.parquet", "deletion.parquet", "table.md", "report.html", "config.yaml", "manifest.json"} <= names
    assert (root / "mlflow.db").is_file()


def test_mlflow_holds_what_the_solvers_certified(finished: gr.Run) -> None:
    found = diagnostics(finished)
    assert {name for name, _, _ in found["ntk-final/surrogate"]} == {
        "residual",
        "duality_gap",
        "efficiency_gap",
        "efficiency_gap_test",
        "iterations",
    }
    assert {seed for _, _, seed in found["influence-function"]} == {0, 1}
    assert "remaining_derivative" in {name for name, _, _ in found["last-layer-final/descent"]}
    assert not {"tracincp", "random", "ntk-final/tracking"} & set(found)
    link = finished.manifest()
    assert link is not None
    client = MlflowClient(link["tracking"]["uri"])
    runs = client.search_runs([link["tracking"]["experiment_id"]], "tags.`genrep.method` = 'ntk-final/surrogate'")
    history = client.get_metric_history(runs[0].info.run_id, "residual")
    assert sorted(metric.step for metric in history) == [0, 1]
    assert max(metric.value for metric in history) <= 1e-6


def test_the_last_layer_by_name(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"methods": ["last-layer-final/tracking", "random"], "seeds": 1}
    found = run(tmp_path, **fields)
    named = run(tmp_path, name="named", last_layer="2", **fields)
    np.testing.assert_array_equal(named.attributions("last-layer-final/tracking", 0), found.attributions("last-layer-final/tracking", 0))
    with pytest.raises(gr.GenRepError, match="'0'"):
        run(tmp_path, last_layer="0", **fields)


def test_momentum_is_tagged_and_warned_about(tmp_path: Path) -> None:
    said: list[str] = []

    class Listener(NoProgress):
        def message(self, text: str) -> None:
            said.append(text)

    fields: dict[str, Any] = {"methods": ["ntk-final/tracking", "random"], "seeds": 1}
    executor = SerialExecutor(0)
    gr.run(experiment(recipe={"momentum": 0.5}, **fields), str(tmp_path), executor=executor, progress=Listener(), search_path=[str(ROOT)])
    assert any("momentum 0.5" in text and "no longer sum up" in text for text in said)
    assert "momentum 0.5" in (tmp_path / "results/toy/report.html").read_text()
    assert run(tmp_path / "plain", **fields).plan.warnings == ()


def test_tables_in_blocks(tmp_path: Path) -> None:
    """Presentation only: the same question, divided; a method may stand in several blocks."""
    fields: dict[str, Any] = {"methods": ["tracincp", "random", "ntk-final/tracking"], "seeds": 1}
    plain = run(tmp_path, **fields)
    blocks = {"First": ["ntk-final/tracking", "random"], "Second": ["tracincp", "ntk-final/tracking"]}
    done = run(tmp_path / "other", blocks=blocks, **fields)
    assert done.plan.keys.results == plain.plan.keys.results
    text = (tmp_path / "other/results/toy/table.md").read_text()
    assert text.index("### First") < text.index("random") < text.index("### Second") < text.index("tracincp")
    assert text.count("ntk-final/tracking") == 2
    with pytest.raises(ValueError, match="methods of this experiment in block 'Third'"):
        experiment(blocks={"Third": ["nothing"]}, **fields)


def test_the_run_can_be_opened_and_read(finished: gr.Run) -> None:
    opened = gr.open_run(finished.store.uri, "toy")
    kernel = opened.kernel("ntk", "final", 0)
    outputs = finished.plan.shape.num_outputs
    assert kernel.shape == ((40, 2) if outputs == 1 else (40, outputs, 2))
    assert opened.importance("tracking", 0).shape == ((40,) if outputs == 1 else (40, outputs))
    assert set(opened.checkpoint(0, "initial")) == set(opened.problem(0).model.state_dict())
    assert not torch.equal(opened.checkpoint(0, "initial")["0.weight"], opened.checkpoint(0, "final")["0.weight"])
    assert opened.training()["test_accuracy"].min() is not None
    with pytest.raises(MethodError, match="not a seed of this run"):
        opened.attributions("tracincp", 7)
    with pytest.raises(MethodError, match="not a method of this run"):
        opened.attributions("ntk-initial/tracking", 0)
    with pytest.raises(StoreError, match="toy"):
        gr.open_run(finished.store.uri, "toi")
    with pytest.raises(NotCommittedError):
        opened.kernel("last-layer", "initial", 0)


def test_a_finished_run_again_does_nothing(finished: gr.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_more: object) -> None:
        raise AssertionError("work was done")

    monkeypatch.setattr("genrep_dist.executors.serial.SerialExecutor.from_resources", refuse)
    monkeypatch.setattr("genrep_dist.runner.run.evaluate", refuse)
    again = gr.run(finished.plan.experiment, store=finished.store.uri, serial=True, search_path=[str(ROOT)])
    assert again.summary().equals(finished.summary())


def test_one_more_method_pays_only_for_its_new_sets(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"problem": "tests.toys:Counting", "options": {"folder": str(tmp_path)}}
    first = run(tmp_path / "store", methods=["ntk-final/tracking", "random"], **fields)
    before = trainings(tmp_path)
    assert before == 2 + int(first.costs()["unique"])
    run(tmp_path / "store", methods=["ntk-final/tracking", "random"], name="again", **fields)
    assert trainings(tmp_path) == before, "the same question under another name retrained"
    more = run(tmp_path / "store", methods=["ntk-final/tracking", "last-layer-final/tracking", "random"], name="more", **fields)
    assert trainings(tmp_path) == before + int(more.costs()["unique"] - first.costs()["unique"])


def test_a_resource_setting_changes_no_result(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain")
    small = run(tmp_path / "small", resources={"memory_budget": "8KiB", "features": "stream"}, test_points=2)
    stored = run(tmp_path / "stored", resources={"memory_budget": "1GiB", "features": "store"})
    assert small.plan.block_rows["ntk"] < 40 <= stored.plan.block_rows["ntk"]
    assert len(small.plan.tiles("ntk")) > 1
    for other in (small, stored):
        for method in METHODS:
            np.testing.assert_allclose(other.attributions(method, 1), plain.attributions(method, 1), rtol=1e-4, atol=1e-6)
        assert other.deletion().collect().equals(plain.deletion().collect())


def test_fresh_retraining_draws_its_own_numbers(tmp_path: Path) -> None:
    same = run(tmp_path, name="same")
    fresh = run(tmp_path, name="fresh", deletion={"fractions": [0.0, 0.1, 0.2], "signs": ["negative", "positive"], "retrain": "fresh"})
    a, b = (r.deletion().filter(pl.col("num_removed") > 0).collect() for r in (same, fresh))
    assert a["score_original"].equals(b["score_original"])
    assert not np.isclose(a["score_retrained"], b["score_retrained"]).any()
    assert b["delta"].std() > a["delta"].std()  # type: ignore[operator]


def test_nan_in_the_data_is_refused_with_its_sample_id(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="1099"):
        run(tmp_path, options={"bad_row": 6})
    assert not (tmp_path / "artifacts").exists()


def test_a_failing_unit_does_not_hold_the_others_and_loses_nothing(tmp_path: Path) -> None:
    """With no retries the failing trainings are reported; the next runs finish what is missing."""
    fields: dict[str, Any] = {"problem": "tests.toys:Counting", "resources": {"retries": 0}, "methods": ["ntk-final/tracking", "random"]}
    options = {"folder": str(tmp_path), "every": 7}
    with pytest.raises(gr.GenRepError, match="made to fail"):
        run(tmp_path / "store", options=options, **fields)
    broken: gr.Run | None = None
    for _ in range(20):
        with contextlib.suppress(gr.GenRepError):
            broken = run(tmp_path / "store", options=options, **fields)
            break
    assert broken is not None
    (tmp_path / "trainings").unlink()
    whole = run(tmp_path / "other", options={"folder": str(tmp_path), "every": 0}, **fields)
    assert broken.deletion().collect().equals(whole.deletion().collect())


def test_every_third_unit_fails_and_the_result_is_the_same(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"problem": "tests.toys:Counting", "methods": ["ntk-final/tracking", "random"]}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = run(tmp_path / "a" / "store", options={"folder": str(tmp_path / "a")}, **fields)
    resources = {"retries": 8, "task_seconds": 1e-6}  # one model a task, so that a task is what fails
    flaky = run(tmp_path / "b" / "store", options={"folder": str(tmp_path / "b"), "every": 3}, resources=resources, **fields)
    assert flaky.deletion().collect().equals(whole.deletion().collect())
    done, begun = trainings(tmp_path / "a"), trainings(tmp_path / "b")
    assert done < begun <= done * 3 / 2 + 1


def test_tracincp_over_one_checkpoint_is_a_method_of_its_own(tmp_path: Path) -> None:
    """Its importances and its rate are that checkpoint's; `ntk-middle/target` takes the final model's importances."""
    done = run(tmp_path, methods=["tracincp", "ntk-middle/target"], seeds=1, tracincp={"checkpoints": [2]})
    problem, (rows, classes) = done.problem(0), explained_outputs(done, 0)
    model = problem.model
    model.load_state_dict(done.checkpoint(0, 2))
    with torch.no_grad():
        alpha = -problem.loss.derivative(model(problem.train.inputs), problem.train.targets)
    left = torch.cat([jacobian(model, sample) for sample in problem.train.inputs])
    right = torch.stack([jacobian(model, problem.test.inputs[r])[c] for r, c in zip(rows, classes, strict=True)])
    kernel = (left @ right.T).numpy()
    np.testing.assert_allclose(done.attributions("tracincp", 0), 0.1 * alpha.numpy() * kernel, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(
        done.attributions("ntk-middle/target", 0), done.importance("target", 0)[:, None] * kernel, rtol=1e-3, atol=1e-5
    )


def test_a_stopped_run_goes_on_with_another_memory_budget(tmp_path: Path) -> None:
    """The blocks of the first run are of another size: they are no parts of the second."""
    whole = run(tmp_path / "whole")
    prepared = prepare(experiment(resources={"memory_budget": "16KiB"}), Store(str(tmp_path / "store")), [str(ROOT)])
    publish_inputs(prepared)
    for stage in ("train", "gradients", "kernels"):
        for artifact in artifacts_of(prepared.plan, stage):
            artifact.declare(prepared.store)
            for unit in artifact.units[:1]:
                execute(prepared.job, unit)
            if stage == "gradients":
                for unit in artifact.units:
                    execute(prepared.job, unit)
                artifact.commit(prepared.store)
    done = run(tmp_path / "store", resources={"memory_budget": "1GiB"})
    assert done.deletion().collect().equals(whole.deletion().collect())


def test_the_same_name_with_another_question_has_no_results_yet(tmp_path: Path) -> None:
    first = run(tmp_path, seeds=1)
    other = prepare(experiment(seeds=1, deletion={"fractions": [0.0, 0.3]}), Store(str(tmp_path)), [str(ROOT)])
    assert stage_status(other.plan, other.store)[-1].done == 0, "retrainings of another question were counted"
    write_record(other)
    with pytest.raises(NotCommittedError, match="not finished"):
        gr.open_run(str(tmp_path), "toy").summary()
    assert first.summary().height == len(METHODS)


def test_a_surrogate_that_does_not_converge_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConvergenceError):
        run(tmp_path, seeds=1, methods=["ntk-final/surrogate"], surrogate={"lambda": 1e-6, "max_iterations": 1, "tolerance": 1e-12})


def test_what_the_disk_cannot_hold_is_refused_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genrep_dist.workflow.room.psutil.disk_usage", lambda _path: type("Usage", (), {"free": 1000})())
    with pytest.raises(PlanError, match=r"disk cannot hold[\s\S]*bytes free[\s\S]*1,000 bytes"):
        run(tmp_path)
    assert not (tmp_path / "artifacts").exists()


def test_an_executor_of_ones_own(tmp_path: Path) -> None:
    executor = SerialExecutor(retries=0)
    done = gr.run(experiment(seeds=1), store=str(tmp_path), executor=executor, search_path=[str(ROOT)])
    assert done.summary().height == len(METHODS)


def test_counting_counts() -> None:
    assert Counting.path_options == ("folder",)


def test_packs_are_timed_where_a_task_seems_to_have_time_for_a_few_models_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An original that takes as long as a task says nothing of models that share their steps. Tasks are of one policy."""
    timed: list[str] = []

    def seconds_in_packs(prepared: Any, policy: str) -> float:
        timed.append(policy)
        return 0.2

    monkeypatch.setattr("genrep_dist.runner.stage_runner.seconds_in_packs", seconds_in_packs)
    finished = run(tmp_path, lds={"subsets": 30, "fraction": 0.5, "retrain": "fresh"}, seeds=1, resources={"task_seconds": 1e-3})
    assert sorted(timed) == ["fresh", "same"]
    asked = experiment(seeds=1, resources={"task_seconds": 1.0})
    prepared = prepare(asked, Store(str(tmp_path)), [str(ROOT)])
    runner = StageRunner(prepared, ProgressCounter(NoProgress()), Workers(asked, executor=SerialExecutor(0)))
    # As if each model had taken three seconds.
    slow = finished.store.ledger(prepared.plan.keys.training).scan().with_columns(seconds=pl.lit(3.0))
    monkeypatch.setattr(Ledger, "scan", lambda self: slow)
    assert runner._models_per_task("same", 1000) == 5
    assert runner._retrain_units([Retraining(str(n), n % 2, "same" if n < 5 else "fresh", (n,)) for n in range(12)])[0].seed == 0


def test_models_that_are_mapped_are_retrained_by_whole_packs(tmp_path: Path) -> None:
    """And come out as alone, to rounding."""
    methods = ["ntk-final/tracking", "random"]
    mapped, alone = (
        run(tmp_path / str(way), problem="tests.toys:Sloped", options={"alone": way}, methods=methods, seeds=1) for way in (False, True)
    )
    for finished, pack_kind in ((mapped, "mapped"), (alone, "solo")):
        assert finished.store.artifact("train", finished.plan.keys.train(0)).manifest()["pack_kind"] == pack_kind
        assert finished.plan.shape.pack_kind == pack_kind
    order = ["seed", "method", "test_id", "sign", "fraction"]
    deltas = [finished.deletion().sort(order).select("delta").collect()["delta"].to_numpy() for finished in (mapped, alone)]
    assert np.abs(deltas[0]).max() > 0.05
    np.testing.assert_allclose(deltas[0], deltas[1], rtol=1e-2, atol=1e-4)
    prepared = prepare(experiment("tests.toys:Sloped", methods=methods), Store(str(tmp_path / "False")), [str(ROOT)])
    runner = StageRunner(prepared, ProgressCounter(NoProgress()), Workers(prepared.plan.experiment, executor=SerialExecutor(0)))
    assert runner._models_per_task("same", 40) == MAPPED_SLOTS
