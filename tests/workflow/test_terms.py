"""Scores whose importances are known take one vector-Jacobian product a training sample, and equal importances times K."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import genrep_dist as gr
from genrep_dist.diagnostics.run_checks import diagnose
from genrep_dist.errors import NonFiniteError
from genrep_dist.plan import Plan
from genrep_dist.problems.protocol import Dataset
from genrep_dist.store import Store
from genrep_dist.workflow.prepare import prepare
from genrep_dist.workflow.terms import term_block
from tests.experiments import ROOT, experiment
from tests.toys import Blobs

CLASSES, EPOCHS = 3, 4
DIRECT = ["ntk-final/target", "ntk-initial/tracking", "ntk-final/tracking", "tracincp"]
BY_KERNEL = ["last-layer-final/target", "influence-function"]


class Double(Blobs):
    def model(self) -> nn.Module:
        return super().model().double()

    def _data(self, seed: int, rows: int, first_id: int) -> Dataset:
        inputs, targets, ids = super()._data(seed, rows, first_id)
        return Dataset(inputs.double(), targets, ids)


def asked(methods: list[str], **fields: Any) -> gr.Experiment:
    given = {"seeds": 1, "deletion": {"counts": [0]}, "tracincp": {"checkpoints": [1, EPOCHS]}, **fields}
    return experiment("tests.workflow.test_terms:Double", {"num_classes": CLASSES, "epochs": EPOCHS}, methods=methods, **given)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> gr.Run:
    folder = tmp_path_factory.mktemp("terms")
    return gr.run(asked([*DIRECT, "last-layer-final/target"]), store=str(folder), serial=True, search_path=[str(ROOT)])


def jacobians(model: nn.Module, inputs: torch.Tensor) -> np.ndarray[Any, Any]:
    """(B, C, P) by one backward pass for each sample and output."""
    parameters = list(model.parameters())
    rows = [
        torch.stack([torch.cat([g.flatten() for g in torch.autograd.grad(o, parameters, retain_graph=True)]) for o in model(x[None])[0]])
        for x in inputs
    ]
    return np.asarray(torch.stack(rows))


def plainly(run: gr.Run, epoch: int) -> np.ndarray[Any, Any]:
    """K (N, C, M) float64 at an epoch, by plain autograd."""
    problem = run.problem(0)
    rows = [problem.test.ids.tolist().index(i) for i in run.test_ids(0).tolist()]
    explained = problem.model(problem.test.inputs[rows]).argmax(dim=1).tolist()
    problem.model.load_state_dict(run.checkpoint(0, epoch))
    points = np.stack([row[c] for row, c in zip(jacobians(problem.model, problem.test.inputs[rows]), explained, strict=True)])
    return np.asarray(np.einsum("ncp,mp->ncm", jacobians(problem.model, problem.train.inputs), points))


def softmax_importance(run: gr.Run, epoch: int) -> np.ndarray[Any, Any]:
    problem = run.problem(0)
    problem.model.load_state_dict(run.checkpoint(0, epoch))
    with torch.no_grad():
        p = problem.model(problem.train.inputs).softmax(1)
    return np.asarray(nn.functional.one_hot(problem.train.targets, CLASSES) - p)


def test_scores_are_importances_times_the_kernel_of_plain_autograd(finished: gr.Run) -> None:
    kernels = {epoch: plainly(finished, epoch) for epoch in (0, 1, EPOCHS)}
    tracking, rate = finished.importance("tracking", 0), 0.1
    expected = {
        "ntk-final/target": np.einsum("nc,ncm->nm", softmax_importance(finished, EPOCHS), kernels[EPOCHS]),
        "ntk-final/tracking": np.einsum("nc,ncm->nm", tracking, kernels[EPOCHS]),
        "ntk-initial/tracking": np.einsum("nc,ncm->nm", tracking, kernels[0]),
        "tracincp": sum(rate * np.einsum("nc,ncm->nm", softmax_importance(finished, e), kernels[e]) for e in (1, EPOCHS)),
    }
    for method, phi in expected.items():
        np.testing.assert_allclose(finished.attributions(method, 0), phi, rtol=1e-5, atol=1e-6 * np.abs(phi).max(), err_msg=method)


def test_a_kernel_that_is_not_stored_is_computed(finished: gr.Run) -> None:
    assert ("ntk", EPOCHS) not in finished.plan.needs.cross
    for which, epoch in (("final", EPOCHS), ("initial", 0), (1, 1)):
        kernel, expected = finished.kernel("ntk", which, 0), plainly(finished, epoch)
        assert kernel.dtype == np.float32
        np.testing.assert_allclose(kernel, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_the_same_products_serve_other_points_and_the_doctor(finished: gr.Run) -> None:
    for method in DIRECT:
        np.testing.assert_array_equal(finished.explain(method, 0, test_ids=finished.test_ids(0).tolist()), finished.attributions(method, 0))
    findings = [finding for finding in diagnose(finished, samples=4) if finding.name in ("kernel", "scores", "gradients", "features")]
    assert sum(finding.name == "kernel" for finding in findings) == 2
    assert {finding.colour for finding in findings} == {"green"}
    assert any("sum_c alpha_c K_c" in finding.text for finding in findings)


def test_the_doctor_sees_changed_products(finished: gr.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = 1.01 * torch.from_numpy(softmax_importance(finished, EPOCHS))
    monkeypatch.setattr("genrep_dist.diagnostics.checks.kernel.alpha", lambda *_: changed)
    (finding,) = [f for f in diagnose(finished, samples=4) if f.name == "kernel" and "alpha_c" in f.text]
    assert finding.colour == "red"
    assert "artifacts/term/" in (finding.remedy or "")


def test_one_backward_pass_serves_all_outputs(finished: gr.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    context = finished.context
    points = context.test_points(0)
    rows, grad = list[int](), torch.autograd.grad
    block, term = (0, 40), ("ntk", EPOCHS, "target", EPOCHS)
    term_block(context, term, 0, *block, points)  # models and test points are prepared

    def counted(*arguments: Any, **options: Any) -> Any:
        rows.append(1)
        return grad(*arguments, **options)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    phi = term_block(context, term, 0, *block, points)
    direct = len(rows)
    finished.kernel("ntk", "final", 0)
    assert (len(rows) - direct) == CLASSES * direct * len(finished.plan.blocks("ntk"))
    np.testing.assert_array_equal(phi.numpy(), finished.attributions("ntk-final/target", 0))


def plan(tmp_path: Path, methods: list[str], **fields: Any) -> Plan:
    return prepare(asked(methods, **fields), Store(str(tmp_path)), [str(ROOT)]).plan


def test_which_scores_need_no_kernel_depends_on_the_method_alone(tmp_path: Path) -> None:
    terms = [("ntk", EPOCHS, "target", EPOCHS), ("ntk", EPOCHS, "tracking", EPOCHS)]
    alone = plan(tmp_path, ["ntk-final/target", "ntk-final/tracking"])
    assert (list(alone.needs.terms), alone.needs.cross) == (terms, ())
    line = next(stage for stage in alone.stages if stage.name == "kernels")
    assert "2 products with importances without K (1 vector-Jacobian product a sample instead of 3, because" in line.what
    beside = plan(tmp_path, ["ntk-final/target", "ntk-final/tracking", "ntk-final/surrogate", *BY_KERNEL])
    assert list(beside.needs.terms) == terms
    assert beside.needs.cross == (("last-layer", EPOCHS), ("ntk", EPOCHS))
    binary = prepare(experiment(methods=DIRECT, options={"num_classes": 2}), Store(str(tmp_path)), [str(ROOT)]).plan
    assert binary.needs.terms == ()
    stored = plan(tmp_path, ["ntk-final/target"], resources={"features": "store"})
    assert list(stored.needs.terms) == terms[:1]
    assert stored.stored_features == ()


def test_keys_of_products_tell_their_importances_and_points(tmp_path: Path) -> None:
    keys = plan(tmp_path, DIRECT).keys
    other = replace(keys, experiment=asked(DIRECT, target={"kind": "margin"}))
    found = [
        keys.term(0, "ntk", 4, "target", 4),
        keys.term(0, "ntk", 4, "tracking", 4),
        keys.term(0, "ntk", 1, "target", 4),
        keys.term(0, "ntk", 1, "target", 1),
        keys.term(1, "ntk", 4, "target", 4),
        other.term(0, "ntk", 4, "target", 4),
    ]
    assert len(set(found)) == len(found)


def test_importances_that_are_tiny_keep_their_digits_and_bad_ones_are_named(finished: gr.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    context = finished.context
    points, term = context.test_points(0), ("ntk", EPOCHS, "target", EPOCHS)
    alphas = torch.from_numpy(softmax_importance(finished, EPOCHS)).double()
    expected = term_block(context, term, 0, 0, 5, points)
    monkeypatch.setattr("genrep_dist.workflow.terms.alpha", lambda *_: 1e-60 * alphas)
    scaled, error = 1e60 * term_block(context, term, 0, 0, 5, points), 1e-6 * float(expected.abs().max())
    torch.testing.assert_close(scaled, expected, rtol=1e-5, atol=error)
    monkeypatch.setattr("genrep_dist.workflow.terms.alpha", lambda *_: torch.zeros_like(alphas))
    assert not term_block(context, term, 0, 0, 5, points).any()
    alphas[3, 1] = torch.nan
    monkeypatch.setattr("genrep_dist.workflow.terms.alpha", lambda *_: alphas)
    with pytest.raises(NonFiniteError, match=str(int(finished.train_ids(0)[3]))):
        term_block(context, term, 0, 0, 5, points)
