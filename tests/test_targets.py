"""Targets from one end to the other: explanations, metrics and the ledger for numbers that are not an output."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import spearmanr
from torch import Tensor, nn
from typer.testing import CliRunner

import genrep_dist as gr
from genrep_dist.cli import app
from genrep_dist.core.kernels import KERNELS
from genrep_dist.diagnostics.run_checks import diagnose
from genrep_dist.errors import ConfigError, GenRepError
from genrep_dist.store import Store
from genrep_dist.workflow.prepare import prepare
from genrep_dist.workflow.requests import read_requests
from tests.experiments import experiment, experiment_file
from tests.test_extensions import InputKernel, registered
from tests.toys import Blobs, Counting

CLASSES, SEED, POINTS, EPOCHS = 3, 0, 3, 4
FINAL = ["ntk-final/target", "ntk-final/tracking", "last-layer-final/surrogate", "influence-function", "inputs-final/target"]
METHODS = [*FINAL, "tracincp", "ntk-initial/target"]
TARGETS: dict[str, dict[str, Any]] = {
    "margin": {"kind": "margin"},
    "loss": {"kind": "loss"},
    "probability": {"kind": "probability"},
    "log_probability": {"kind": "log_probability", "output": "label"},
    **{f"output {c}": {"kind": "logit", "output": c} for c in range(CLASSES)},
    "label": {"kind": "logit", "output": "label"},
}
FIELDS: dict[str, Any] = {
    "seeds": 1,
    "test_points": POINTS,
    "methods": METHODS,
    "tracincp": {"checkpoints": [1, EPOCHS]},
    "deletion": {"counts": [0]},
    "lds": {"subsets": 5},
}


class Quadratic:
    """A problem's own target: the squared distance of the outputs from a point that the label names."""

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - self.place(outputs, targets)).square().sum(1)

    def derivative(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 2 * (outputs - self.place(outputs, targets))

    def place(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 2.0 * nn.functional.one_hot(targets % outputs.shape[1], outputs.shape[1])


class WrongDerivative(Quadratic):
    def derivative(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs - self.place(outputs, targets)


class Failing(Quadratic):
    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        raise KeyError("temperature")


class WithOwnTarget(Blobs):
    def __init__(self, target: str = "Quadratic", **options: int) -> None:
        super().__init__(num_classes=CLASSES, **options)
        self.target = {"Quadratic": Quadratic, "WrongDerivative": WrongDerivative, "Failing": Failing}[target]()


class Runs:
    """Runs of one problem in one store, one a target, made when a test asks for them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.made = folder, dict[str, gr.Run]()
        (folder / "count").mkdir()
        self.options: dict[str, Any] = {"folder": str(folder / "count"), "num_classes": CLASSES}

    def __call__(self, name: str, **fields: Any) -> gr.Run:
        if name not in self.made:
            chosen = {**FIELDS, "target": TARGETS.get(name, {}), **fields, "name": name.replace(" ", "-")}
            asked = experiment("tests.toys:Counting", self.options, **chosen)
            self.made[name] = gr.run(asked, store=str(self.folder / "store"), serial=True)
        return self.made[name]

    @property
    def trainings(self) -> int:
        return (self.folder / "count" / "trainings").stat().st_size


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with registered(KERNELS, "inputs", InputKernel):
        yield Runs(tmp_path_factory.mktemp("targets"))


def original(run: gr.Run) -> tuple[Tensor, Tensor]:
    """The original model's outputs (M, C) float64 at the test points, and their labels (M,)."""
    rows = run.plan.keys.test_positions(SEED)
    outputs = run.store.artifact("train", run.plan.keys.train(SEED)).read("outputs_test")[rows]
    return torch.from_numpy(outputs).double(), run.test.targets[rows]


def value(name: str, outputs: Tensor, labels: Tensor, predicted: Tensor) -> Tensor:
    """The number by its definition, from probabilities."""
    p = outputs.softmax(dim=1)
    of_label, of_predicted = (p.gather(1, own[:, None]).squeeze(1) for own in (labels, predicted))
    return {
        "margin": of_label.log() - (1 - of_label).log(),
        "loss": -of_label.log(),
        "log_probability": of_label.log(),
        "probability": of_predicted,
        "label": outputs.gather(1, labels[:, None]).squeeze(1),
    }[name]


def derivative(name: str, outputs: Tensor, labels: Tensor, predicted: Tensor) -> Tensor:
    variable = outputs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(name, variable, labels, predicted).sum(), variable)
    return gradient


KINDS = ("margin", "loss", "probability", "log_probability", "label")


def test_other_targets_of_one_store_train_nothing(runs: Runs) -> None:
    runs("logit")
    before = runs.trainings
    for name in KINDS:
        runs(name)
    assert before >= 6
    assert runs.trainings == before


@pytest.mark.parametrize("name", KINDS)
def test_scores_follow_by_the_chain_rule_through_the_outputs(runs: Runs, name: str) -> None:
    run = runs(name)
    outputs, labels = original(run)
    weights = derivative(name, outputs, labels, outputs.argmax(dim=1)).numpy()
    for method in FINAL:
        each = np.stack([runs(f"output {c}").attributions(method, SEED) for c in range(CLASSES)])
        expected = np.einsum("mc,cnm->nm", weights, each)
        np.testing.assert_allclose(run.attributions(method, SEED), expected, rtol=1e-3, atol=2e-6 * np.abs(each).max())


@pytest.mark.parametrize("name", ["margin", "loss"])
def test_a_sum_over_checkpoints_takes_the_gradient_at_each(runs: Runs, name: str) -> None:
    run, own = runs(name), Counting(**runs.options)
    rows = run.plan.keys.test_positions(SEED)
    predicted, at_epoch = original(run)[0].argmax(dim=1), dict[int, Tensor]()
    alpha_final = torch.from_numpy(run.importance("target", SEED)).double()
    for epoch in (0, 1, EPOCHS):
        model = own.model().double().eval()
        model.load_state_dict(run.checkpoint(SEED, epoch))
        parameters = [p for p in model.parameters() if p.requires_grad]

        def gradient(number: Tensor, of: list[nn.Parameter] = parameters) -> Tensor:
            return torch.cat([g.flatten() for g in torch.autograd.grad(number, of)])

        test, train = run.test.inputs[rows].double(), run.train.inputs.double()
        right = [
            gradient(value(name, model(x[None]), y[None], c[None])[0])
            for x, y, c in zip(test, run.test.targets[rows], predicted, strict=True)
        ]
        loss = [-gradient(nn.functional.cross_entropy(model(x[None]), y[None])) for x, y in zip(train, run.train.targets, strict=True)]
        own_weights = [gradient((a * model(x[None])[0]).sum()) for a, x in zip(alpha_final, train, strict=True)]
        left = torch.stack(loss if epoch else own_weights)
        at_epoch[epoch] = left @ torch.stack(right).T
    total = own.recipe.learning_rate * (at_epoch[1] + at_epoch[EPOCHS])
    for method, expected in (("tracincp", total.numpy()), ("ntk-initial/target", at_epoch[0].numpy())):
        np.testing.assert_allclose(run.attributions(method, SEED), expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", KINDS)
def test_the_judge_reads_the_same_number(runs: Runs, name: str) -> None:
    run = runs(name)
    outputs, labels = original(run)
    predicted = outputs.argmax(dim=1)
    originals = run.deletion().filter(method="tracincp").collect().sort("test_id")
    order = np.argsort(run.test_ids(SEED))
    expected = value(name, outputs, labels, predicted).numpy()[order]
    np.testing.assert_allclose(originals["score_original"].to_numpy(), expected, rtol=1e-12)
    # LDS by hand: the number of each subset's model against the sum of scores in the subset.
    asked = requested_keys(run, "lds")
    ledger = {row["key"]: row for row in run.store.ledger(run.plan.keys.training).scan().collect().iter_rows(named=True)}
    rows = run.plan.keys.test_positions(SEED)
    models = [ledger[key] for key in asked]
    found = [torch.tensor(model["outputs"], dtype=torch.float64).view(-1, CLASSES)[rows] for model in models]
    numbers = torch.stack([value(name, one, labels, predicted) for one in found]).numpy()
    kept = np.stack([~np.isin(run.train_ids(SEED), model["removed"]) for model in models]).astype(float)
    points = run.points().filter(metric="lds", method="ntk-final/tracking").collect()
    for place, test_id in enumerate(run.test_ids(SEED).tolist()):
        expected_lds = spearmanr(kept @ run.attributions("ntk-final/tracking", SEED)[:, place], numbers[:, place]).statistic
        assert points.filter(test_id=test_id)["value"][0] == pytest.approx(expected_lds)


def requested_keys(run: gr.Run, metric: str) -> list[str]:
    return read_requests(run.plan, run.store).filter(metric=metric).sort("subset").collect()["key"].to_list()


def test_new_points_are_explained_by_the_same_number(runs: Runs) -> None:
    run = runs("loss")
    ids = run.test_ids(SEED).tolist()
    stored = run.attributions("ntk-final/target", SEED)
    np.testing.assert_allclose(run.explain("ntk-final/target", SEED, test_ids=ids), stored, rtol=1e-5, atol=1e-8)
    rows = run.plan.keys.test_positions(SEED)
    inputs, targets = run.test.inputs[rows], run.test.targets[rows]
    np.testing.assert_allclose(run.explain("ntk-final/target", SEED, inputs=inputs, targets=targets), stored, rtol=1e-5, atol=1e-8)
    with pytest.raises(GenRepError, match=r"needs the labels of the points(.|\n)*targets="):
        run.explain("ntk-final/target", SEED, inputs=inputs)
    with pytest.raises(GenRepError, match="not of the form"):
        run.explain("ntk-final/target", SEED, inputs=inputs, targets=targets[:-1])


def test_a_group_is_explained_by_the_mean_of_its_members(runs: Runs) -> None:
    single = runs("loss")
    ids = single.test_ids(SEED).tolist()
    before = runs.trainings
    fields = {"target": {"kind": "loss", "group": "mean"}, "methods": ["ntk-final/target", "tracincp"]}
    whole = runs("all of a seed", **fields)
    for method in ("ntk-final/target", "tracincp"):
        np.testing.assert_allclose(whole.attributions(method, SEED)[:, 0], single.attributions(method, SEED).mean(axis=1), rtol=1e-10)
    assert whole.test_groups(SEED) == [ids]
    named = runs("named groups", **fields, test_points=[[ids[2]], [ids[1], ids[0]]])
    phi = single.attributions("ntk-final/target", SEED)
    np.testing.assert_allclose(named.attributions("ntk-final/target", SEED), np.stack([phi[:, 2], phi[:, :2].mean(1)], 1), rtol=1e-5)
    assert [sorted(group) for group in named.test_groups(SEED)] == [[ids[2]], sorted(ids[:2])]
    outputs, labels = original(single)
    numbers = value("loss", outputs, labels, labels)
    table = named.deletion().filter(method="tracincp").collect()
    scores = dict(zip(table["test_id"], table["score_original"], strict=True))
    members = dict(zip(named.test_ids(SEED).tolist(), named.test_groups(SEED), strict=True))
    assert sorted(scores) == sorted(members)
    for test_id, group in members.items():
        assert scores[test_id] == pytest.approx(float(numbers[[ids.index(member) for member in group]].mean()))
    assert runs.trainings == before
    assert set(named.points().filter(metric="lds").collect()["test_id"]) == set(members)


def test_the_report_says_in_words_what_a_positive_score_means(runs: Runs) -> None:
    runs("loss")
    page = (runs.folder / "store" / "results" / "loss" / "report.html").read_text()
    assert "the loss of the test point with its own label. A positive score means that training on the sample raises this loss" in page
    assert "does not raise the loss" in page
    runs("margin")
    page = (runs.folder / "store" / "results" / "margin" / "report.html").read_text()
    assert "the margin log(p / (1 - p)) of the test point" in page


def test_the_doctor_computes_the_same_kernels(runs: Runs) -> None:
    names = {"kernel", "scores", "efficiency", "influence residual"}
    findings = [finding for finding in diagnose(runs("margin")) if finding.name in names]
    assert {finding.name for finding in findings} == names
    assert not [finding for finding in findings if finding.colour == "red"], findings


def test_brittleness_removes_what_supports_the_prediction(tmp_path: Path) -> None:
    fields = {**FIELDS, "methods": ["ntk-final/target"], "lds": None, "brittleness": {"counts": [4, 12]}}
    options = {"num_classes": CLASSES}
    loss, margin = (
        gr.run(experiment(options=options, **fields, name=kind, target={"kind": kind}), store=str(tmp_path), serial=True)
        for kind in ("loss", "log_probability")
    )
    outputs, labels = original(loss)
    right = (outputs.argmax(dim=1) == labels).numpy()
    assert right.any()
    asked = {
        row["test_id"]: row["sign"]
        for row in read_requests(loss.plan, loss.store).filter(metric="brittleness").collect().iter_rows(named=True)
    }
    for test_id, is_right in zip(loss.test_ids(SEED).tolist(), right, strict=True):
        assert asked[test_id] == ("negative" if is_right else "positive")
    # Where the prediction is right, both targets are the same number up to the sign.
    tables = [run.points().filter(metric="brittleness_removed").collect().sort("test_id") for run in (loss, margin)]
    same = np.isin(tables[0]["test_id"].to_numpy(), loss.test_ids(SEED)[right])
    np.testing.assert_array_equal(tables[0]["value"].to_numpy()[same], tables[1]["value"].to_numpy()[same])


def test_a_problem_brings_its_own_target(tmp_path: Path) -> None:
    fields = {**FIELDS, "methods": ["ntk-final/target"], "lds": None}
    runs = {
        name: gr.run(
            experiment("tests.test_targets:WithOwnTarget", name=f"own-{name}", **fields, target=target), store=str(tmp_path), serial=True
        )
        for name, target in {"own": {"kind": "problem"}, **{str(c): {"output": c} for c in range(CLASSES)}}.items()
    }
    outputs, labels = original(runs["own"])
    weights = Quadratic().derivative(outputs, labels).numpy()
    each = np.stack([runs[str(c)].attributions("ntk-final/target", SEED) for c in range(CLASSES)])
    expected = np.einsum("mc,cnm->nm", weights, each)
    np.testing.assert_allclose(runs["own"].attributions("ntk-final/target", SEED), expected, rtol=1e-3, atol=1e-6 * np.abs(each).max())
    table = runs["own"].deletion().collect().sort("test_id")
    order = np.argsort(runs["own"].test_ids(SEED))
    np.testing.assert_allclose(table["score_original"].to_numpy(), Quadratic().value(outputs, labels).numpy()[order])


@pytest.mark.parametrize(
    ("problem", "options", "fields", "message"),
    [
        ("tests.test_targets:WithOwnTarget", {"target": "WrongDerivative"}, {"target": {"kind": "problem"}}, "not that of its value"),
        (
            "tests.test_targets:WithOwnTarget",
            {"target": "Failing"},
            {"target": {"kind": "problem"}},
            r"value raised an error(.|\n)*temperature",
        ),
        ("tests.toys:Blobs", {}, {"target": {"kind": "problem"}}, "brings no target"),
        ("tests.oracles.test_deletion_closed_form:Ridge", {}, {"target": {"kind": "margin"}}, "for the logits of classes alone"),
        ("tests.oracles.test_deletion_closed_form:Ridge", {}, {"target": {"output": "label"}}, "needs the labels of the points"),
        ("tests.toys:Blobs", {}, {"target": {"kind": "loss", "output": "predicted"}}, r"remove target\.output"),
        ("tests.toys:Blobs", {"num_classes": 3}, {"target": {"kind": "probability", "output": 3}}, "not an output of the model"),
        ("tests.toys:Blobs", {}, {"target": {"group": "mean"}, "brittleness": {"counts": [3]}}, "class of one test point"),
        (
            "tests.test_targets:WithOwnTarget",
            {},
            {"target": {"kind": "problem"}, "brittleness": {"counts": [3]}},
            "class of one test point",
        ),
    ],
)
def test_what_is_not_defined_is_refused_before_anything_runs(
    tmp_path: Path, problem: str, options: dict[str, Any], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(GenRepError, match=message):
        prepare(experiment(problem, options, methods=["random"], **fields), Store(str(tmp_path)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"test_points": [[1, 2], [3]]}, "target.group: mean"),
        ({"test_points": [[1, 2], [2]], "target": {"group": "mean"}}, "without duplicates"),
        ({"test_points": [[1], []], "target": {"group": "mean"}}, "at least one test id"),
        ({"target": {"kind": "margins"}}, "did you mean margin"),
        ({"target": {"output": "true"}}, "label"),
    ],
)
def test_fields_that_do_not_fit_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        experiment(**fields)


def test_the_default_output_is_the_kinds_own() -> None:
    found = {
        kind: experiment(target={"kind": kind}).target.output for kind in ("logit", "margin", "loss", "probability", "log_probability")
    }
    assert found == {"logit": "predicted", "margin": "label", "loss": "label", "probability": "predicted", "log_probability": "predicted"}
    again = experiment(target={"kind": "margin"})
    assert gr.Experiment.model_validate(yaml.safe_load(again.to_yaml())) == again
    # A key holds what differs from the defaults only.
    assert "target" not in experiment(target={"kind": "logit"}).result_fields()


def test_external_scores_of_another_target_are_told(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).standard_normal((40, 12))
    for seed in range(2):
        np.save(tmp_path / f"seed-{seed}.npy", scores)
    section = {"path": str(tmp_path), "positive_raises": True, "unverified": True}

    def warnings(external: dict[str, Any], target: dict[str, Any]) -> str:
        fields: dict[str, Any] = {"options": {"num_classes": 3}, "methods": ["other"], "target": target}
        fields["external"] = {"other": {**section, **external}}
        path = experiment_file(tmp_path / "experiment.yaml", **fields)
        result = CliRunner().invoke(app, ["plan", str(path), "--store", str(tmp_path / "store")], catch_exceptions=False)
        assert result.exit_code == 0
        return " ".join(result.output.split())

    assert "of another number" not in warnings({}, {})
    assert "of another number" not in warnings({"target": {"kind": "loss"}}, {"kind": "loss", "group": "mean"})
    assert "other are declared to be of another number" in warnings({}, {"kind": "margin"})
    told = warnings({"target": {"kind": "loss"}}, {"kind": "margin"})
    assert "the loss of the test point" in told
    assert "the margin log(p / (1 - p)) of the test point's own label" in told
