"""One training by a problem's own function: what it gets, what its hooks do, and what it may not leave behind."""

from __future__ import annotations

import random
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from genrep_dist.core.losses import get_loss
from genrep_dist.errors import NonFiniteError, ProblemError
from genrep_dist.training.function_trainer import FunctionTrainer, predict_with
from genrep_dist.training.loop import TrainingRun, train
from genrep_dist.training.observers import Checkpoints, TrackingImportance
from genrep_dist.training.randomness import Randomness
from genrep_dist.training.user_run import Record
from tests.own_training import Free, bce

KEPT = torch.tensor([True, False, True, True, True, True, False, True, True, True, True])


def trainer(function: Any, model: Any = None) -> FunctionTrainer:
    problem: Any = Free(function, model)
    return FunctionTrainer(problem, function, get_loss("logistic"), problem.recipe, problem.train_data(), epochs=2)


def trained(function: Any, model: Any = None, kept: torch.Tensor | None = KEPT, record: Record | None = None) -> Any:
    return trainer(function, model).train(TrainingRun(Randomness(5), kept), record)


def sgd(model: Any, data: Any, run: Any) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for epoch in range(run.epochs):
        for inputs, targets, ids in run.batches(4):
            outputs = model(inputs)
            run.step(ids, outputs, 0.5)
            optimizer.zero_grad()
            bce(outputs.squeeze(1), targets).backward()
            optimizer.step()
        run.checkpoint(epoch + 1, model)


def test_the_recipes_loop_is_repeated_bit_by_bit() -> None:
    record = Record(frozenset({0, 1}), TrackingImportance())
    found = trained(sgd, record=record)
    problem, tracking = Free(sgd), TrackingImportance()
    checkpoints = Checkpoints((0, 1), problem.train_data(), problem.recipe)
    model: Any = Randomness(5).build(problem.model)
    train(model, get_loss("logistic"), problem.recipe, problem.train_data(), Randomness(5), kept=KEPT, observers=(tracking, checkpoints))
    assert torch.allclose(found.weight, model.weight, rtol=0, atol=1e-6)
    assert tracking.alpha is not None
    assert record.tracking is not None
    assert record.tracking.alpha is not None
    assert torch.allclose(record.tracking.alpha, tracking.alpha, atol=1e-6)
    assert not record.tracking.alpha[~KEPT].any()
    for checkpoint in checkpoints.saved:
        assert torch.allclose(record.states[checkpoint.epoch]["weight"], checkpoint.state["weight"], atol=1e-6)
    assert record.rates == {1: 0.5} | {2: 0.5}


def test_steps_of_another_loss_are_given_by_their_derivative() -> None:
    def function(model: Any, data: Any, run: Any) -> None:
        for inputs, targets, ids in run.batches(4, epoch=1):
            outputs = model(inputs).squeeze(1)
            outputs.retain_grad()
            (3 * bce(outputs, targets)).backward()
            run.step(ids, None, 0.1, derivative=outputs.grad)

    def plain(model: nn.Module, data: Any, run: Any) -> None:
        for inputs, _, ids in run.batches(4, epoch=1):
            run.step(ids, model(inputs), 0.3)

    records = [Record(tracking=TrackingImportance()) for _ in range(2)]
    trained(function, record=records[0])
    trained(plain, record=records[1])
    one, other = (record.tracking.alpha for record in records if record.tracking is not None)
    assert one is not None
    assert other is not None
    assert torch.allclose(one, other, atol=1e-6)


def test_the_data_are_exactly_the_kept_rows_and_copies() -> None:
    seen: dict[str, Any] = {}

    def function(model: Any, data: Any, run: Any) -> None:
        seen.update(length=len(data), ids=data.ids.tolist(), items=[x for x, _ in data], batch=data[[0, 2]], inputs=data.inputs.clone())
        data[0][0].zero_()
        data.inputs.zero_()
        data.targets.zero_()
        for inputs, targets, _ in run.batches(4):
            inputs.zero_()
            targets.zero_()

    problem = Free(function)
    data, before = problem.train_data(), problem.train_data()
    for kept in (KEPT, None):
        FunctionTrainer(problem, function, get_loss("logistic"), problem.recipe, data, epochs=2).train(TrainingRun(Randomness(0), kept))
        rows = KEPT if kept is not None else torch.ones(11, dtype=torch.bool)
        assert seen["ids"] == before.ids[rows].tolist()
        assert seen["length"] == int(rows.sum())
        assert torch.equal(torch.stack(seen["items"]), before.inputs[rows])
        assert torch.equal(seen["inputs"], before.inputs[rows])
        assert torch.equal(seen["batch"][1], before.targets[rows][[0, 2]])
    assert torch.equal(data.inputs, before.inputs)
    assert torch.equal(data.targets, before.targets)


def test_generators_and_settings_are_set_and_restored() -> None:
    drawn = []

    def function(model: Any, data: Any, run: Any) -> None:
        drawn.append((random.random(), float(np.random.rand()), float(torch.rand(())), run.seed))  # noqa: NPY002
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        torch.use_deterministic_algorithms(True)
        torch.set_default_device("meta")

    random.seed(1)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    trained(function)
    assert torch.equal(torch.rand(3), expected)
    trained(function)
    trainer(function).train(TrainingRun(Randomness(6), KEPT))
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.empty(1).device.type == "cpu"


def test_a_returned_model_and_one_that_is_trained_in_place_are_the_same() -> None:
    def fill(model: Any, data: Any, run: Any) -> Any:
        del data, run
        nn.init.constant_(model.weight, 3.0)

    def other(model: nn.Module, data: Any, run: Any) -> Any:
        found = nn.Linear(3, 1)
        found.load_state_dict(model.state_dict())
        fill(found, data, run)
        return found

    assert torch.equal(trained(fill).weight, trained(other).weight)
    assert trained(other).weight.eq(3.0).all()


FAULTS: dict[str, tuple[Any, str]] = {
    "raises": (lambda m, d, r: d.no_such_thing, "AttributeError"),
    "exits": (lambda m, d, r: sys.exit(), "SystemExit"),
    "returns metrics": (lambda m, d, r: {"loss": 0.1}, "got: dict"),
    "returns a wrapper": (lambda m, d, r: nn.Sequential(m), "averaged.module"),
    "changes dtype": (lambda m, d, r: m.double(), "torch.float64"),
    "freezes": (lambda m, d, r: m.requires_grad_(False), "frozen"),
    "adds a layer": (lambda m, d, r: m.register_buffer("extra", torch.zeros(2)), "'extra'"),
    "counts epochs from 0": (lambda m, d, r: (m.weight.data.add_(1), r.checkpoint(0, m)), "run.checkpoint(epoch + 1, model)"),
    "saves no module": (lambda m, d, r: r.checkpoint(1, m.state_dict()), "the module that is trained"),
    "reports removed ids": (lambda m, d, r: r.step(torch.tensor([107]), torch.zeros(1, 1), 0.1), "ids [107]"),
    "reports positions": (lambda m, d, r: r.step(torch.tensor([0]), torch.zeros(1, 1), 0.1), "ids [0]"),
    "reports a wrong rate": (lambda m, d, r: r.step(d.ids[:1], torch.zeros(1, 1), float("nan")), "param_groups"),
    "reports nothing": (lambda m, d, r: r.step(d.ids[:1], None, 0.1), "derivative"),
    "asks for no batch size": (lambda m, d, r: list(r.batches(0)), "at least 1"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_function_does_wrong_is_said(fault: str) -> None:
    function, expected = FAULTS[fault]
    with pytest.raises(ProblemError) as found:
        trained(function, record=Record(tracking=TrackingImportance()))
    assert expected in str(found.value)
    assert found.value.remedy


def test_an_error_names_its_line_and_the_removed_ids() -> None:
    def function(model: Any, data: Any, run: Any) -> None:
        raise RuntimeError("out of luck")

    with pytest.raises(ProblemError) as found:
        trained(function)
    text = str(found.value)
    assert "out of luck" in text
    assert "removed ids: 107, 142" in text
    assert f'{__file__}", line' in text
    assert "genrep_dist/training" not in text


def test_a_model_that_diverges_is_one_failed_model() -> None:
    def function(model: Any, data: Any, run: Any) -> None:
        if len(data) < 11:
            nn.init.constant_(model.weight, float("inf"))

    runs = [TrainingRun(Randomness(0), KEPT, "the first"), TrainingRun(Randomness(0))]
    error, model = trainer(function).train_all(runs)
    assert isinstance(error, NonFiniteError)
    assert "the first" in str(error)
    assert isinstance(model, nn.Linear)


@pytest.mark.parametrize("form", [lambda x: x[:, 0].numpy(), lambda x: x[:, :1].numpy(), lambda x: x[:, 0].tolist(), lambda x: x[:, :2]])
def test_predictions_may_have_any_form(form: Any) -> None:
    inputs = torch.randn(7, 3)
    found = predict_with(lambda model, some: form(some), None, inputs, batch_size=3)
    assert torch.allclose(found.float(), inputs[:, : found.shape[1]])


@pytest.mark.parametrize("wrong", [lambda m, x: np.zeros(2), lambda m, x: x.no, lambda m, x: None, lambda m, x: ["a"] * len(x)])
def test_predictions_of_another_form_are_refused(wrong: Any) -> None:
    with pytest.raises(ProblemError):
        predict_with(wrong, None, torch.randn(7, 3), batch_size=4)
