"""The doctor at the beginning of a run: what it must stop, what it must only tell, and when it is not run."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import genrep_dist as gr
from genrep_dist import cli
from genrep_dist.core.gradients import reference
from genrep_dist.core.gradients.factored import FactoredGradients
from genrep_dist.core.kernels import KERNELS
from genrep_dist.core.kernels.last_layer import LastLayerKernel
from genrep_dist.core.kernels.ntk import NeuralTangentKernel
from genrep_dist.diagnostics.checks import CHECKS, FIRST_SEED_CHECKS, gradients
from genrep_dist.diagnostics.context import CheckContext
from genrep_dist.diagnostics.finding import Finding
from genrep_dist.errors import DoctorError, FailureKind, UnitError
from genrep_dist.executors.base import Failure, Outcome
from genrep_dist.executors.serial import SerialExecutor
from genrep_dist.problems.protocol import Dataset
from genrep_dist.runner.progress import NoProgress
from genrep_dist.units import Unit
from genrep_dist.workflow.context import Job
from tests.diagnostics.runs import Learnable, SubtractBatchMean
from tests.experiments import ROOT, experiment, experiment_file

HERE = "tests.diagnostics.test_first_seed"
NTK = ["ntk-final/tracking"]


class Copied(Learnable):
    """Three test rows are training rows."""

    def test_data(self) -> Dataset:
        inputs, targets, ids = super().test_data()
        inputs[:3] = self.train_data().inputs[10:13]
        return Dataset(inputs, targets, ids)


class SameRows(Learnable):
    """A third of the test rows are training rows: the two sets were not split."""

    def test_data(self) -> Dataset:
        inputs, targets, ids = super().test_data()
        inputs[:12] = self.train_data().inputs[:12]
        return Dataset(inputs, targets, ids)


class Sigmoid(Learnable):
    """Returns probabilities where logits are expected; for several classes their logarithms if ``logarithm`` is 1."""

    def __init__(self, logarithm: int = 0, **options: int) -> None:
        super().__init__(**options)
        self.logarithm = logarithm

    def model(self) -> nn.Module:
        several = nn.LogSoftmax(dim=1) if self.logarithm else nn.Softmax(dim=1)
        return nn.Sequential(super().model(), nn.Sigmoid() if self.num_classes == 2 else several)


class Gain(nn.Module):
    """A factor that grows in training, and that the state dictionary does not have."""

    gain: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gain", torch.ones(1), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.gain *= 1.01
        return inputs * self.gain


class Forgetful(Learnable):
    def model(self) -> nn.Module:
        model = nn.Sequential(Gain(), super().model())
        model.trains_alone = True  # type: ignore[assignment]
        return model


class Comparing(Learnable):
    """A model whose outputs depend on the largest one of their batch."""

    def model(self) -> nn.Module:
        return nn.Sequential(super().model(), SubtractBatchMean())


class OneLayer(NeuralTangentKernel):
    """Forgets the gradients of one layer."""

    def features(self, model: nn.Module, inputs: Tensor, outputs: Tensor | None = None) -> FactoredGradients:
        assert isinstance(model, nn.Sequential)
        model[0].requires_grad_(False)
        try:
            return super().features(model, inputs, outputs)
        finally:
            model[0].requires_grad_(True)


class Scaled(NeuralTangentKernel):
    """Multiplies with a wrong factor."""

    def block(self, train: Any, test: Any, outputs: Tensor, num_outputs: int) -> Tensor:
        return 1.01 * super().block(train, test, outputs, num_outputs)


class Centred(LastLayerKernel):
    """Takes the mean of whatever rows come together."""

    def features(self, model: nn.Module, inputs: Tensor, outputs: Tensor | None = None) -> Any:
        rows: Tensor = super().features(model, inputs, outputs)
        return rows - rows.mean(dim=0)


class Asymmetric:
    """A function that is no kernel."""

    def __call__(self, model: nn.Module, left: Tensor, right: Tensor) -> Tensor:
        return left @ right.T + left[:, :1]


class Distance:
    """Symmetric, and not positive semi-definite."""

    def __call__(self, model: nn.Module, left: Tensor, right: Tensor) -> Tensor:
        return torch.cdist(left, right)


BROKEN = {"one-layer": OneLayer, "scaled": Scaled, "centred": Centred}


@pytest.fixture(autouse=True)
def _broken_kernels() -> Iterator[None]:
    for name, kernel in BROKEN.items():
        kernel.name = name
        KERNELS.register(name, kernel)
    yield
    for name in BROKEN:
        KERNELS.unregister(name)


@dataclass
class Ended:
    code: int
    output: str
    error: str


@pytest.fixture
def genrep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command line on an experiment of two seeds."""
    monkeypatch.chdir(ROOT)

    def call(command: str, problem: str, *options: str, **fields: Any) -> Ended:
        name = problem if ":" in problem else f"{HERE}:{problem}"
        few = {"methods": NTK, "deletion": {"fractions": [0.0, 0.1]}}
        file = experiment_file(tmp_path / "toy.yaml", name, {"epochs": 6, "test_size": 40}, **(few | fields))
        serial = ["--serial"] if command == "run" else []
        monkeypatch.setattr(sys, "argv", ["genrep", command, str(file), "--store", str(tmp_path / "store"), *serial, *options])
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = capsys.readouterr()
        return Ended(code, said.out, said.err)

    return call


def models(folder: Path) -> int:
    """How many models are in the store's ledger."""
    run = gr.open_run(str(folder / "store"), "toy")
    return int(run.store.ledger(run.plan.keys.training).scan().collect().height)


LEARNABLE = "tests.diagnostics.runs:Learnable"
OWN = {"methods": ["mine-final/target"]}


@pytest.mark.parametrize(
    ("problem", "fields", "check", "words"),
    [
        (LEARNABLE, {"recipe": {"learning_rate": 1e6}}, "divergence", "learning_rate"),
        ("tests.diagnostics.runs:Regression", {"recipe": {"learning_rate": 4.0, "epochs": 2}}, "divergence", "learning_rate"),
        ("SameRows", {"methods": ["random"]}, "overlap", "different samples"),
        ("Sigmoid", {"methods": ["random"], "recipe": {"epochs": 40, "learning_rate": 1.0}}, "logits", "without a sigmoid or softmax"),
        ("Comparing", {"methods": ["random"]}, "batch size", "dimension 0"),
        ("Forgetful", {"methods": ["random"]}, "reproduction", "delete the folder"),
        (LEARNABLE, {"methods": ["one-layer-final/target"]}, "kernel rows", "correct its class"),
        (LEARNABLE, {"methods": ["scaled-final/target"]}, "kernel rows", "correct its class"),
        (LEARNABLE, {"methods": ["centred-final/target"]}, "batch size", "dimension 0"),
        (LEARNABLE, {"kernels": {"mine": {"class": f"{HERE}:Asymmetric"}}, **OWN}, "kernel rows", "not symmetric"),
        (LEARNABLE, {"kernels": {"mine": {"class": f"{HERE}:Distance"}}, "methods": ["mine-final/surrogate"]}, "kernel minor", "Mercer"),
    ],
)
def test_faults_that_stop_a_run(genrep: Any, tmp_path: Path, problem: str, fields: dict[str, Any], check: str, words: str) -> None:
    ended = genrep("run", problem, **fields)
    assert ended.code == 1
    assert "Traceback" not in ended.error
    for part in (f"error: the doctor's findings about the first seed are red ({check}", "experiment toy, seed 0", words, "--force"):
        assert part in ended.error
    assert f"doctor: red, {check}" in ended.output
    assert models(tmp_path) == 1, "the first seed's original model is kept, and nothing else is begun"


def test_what_is_only_told(genrep: Any) -> None:
    ended = genrep("run", "Copied", recipe={"momentum": 0.3})
    assert ended.code == 0, ended.error
    told = [line for line in ended.output.splitlines() if line.startswith("doctor: ")]
    assert told[0].startswith("doctor: seed 0, before the retrainings: ")
    assert "2 amber, 0 red" in told[0]
    assert [line.split(":")[1] for line in told[1:]] == [" amber, optimizer", " amber, overlap"]
    assert "overlap: 3, not within 0" in told[2]


@pytest.mark.parametrize(("logarithm", "colour"), [(0, "red"), (1, "amber")])
def test_probabilities_of_several_classes(tmp_path: Path, logarithm: int, colour: str) -> None:
    messages = Messages()
    options = {"num_classes": 3, "logarithm": logarithm, "epochs": 2}
    asked = experiment(f"{HERE}:Sigmoid", options, methods=["random"], deletion={"fractions": [0.0]}, seeds=1)
    gr.run(asked, store=str(tmp_path), serial=True, progress=messages, search_path=[str(ROOT)], force=True)
    assert any(text.startswith(f"doctor: {colour}, logits: ") for text in messages.texts)


def test_green_is_one_line_and_a_finished_run_has_none(genrep: Any, tmp_path: Path) -> None:
    planned = genrep("plan", LEARNABLE, "--no-probe")
    assert "doctor" not in planned.output
    assert not (tmp_path / "store/experiments").exists()
    ended = genrep("run", LEARNABLE)
    assert ended.code == 0, ended.error
    lines = ended.output.splitlines()
    (told,) = (line for line in lines if "doctor" in line)
    assert "findings are green" in told
    # It comes after the first of the two originals, and before all other stages.
    assert lines.index(told) < next(number for number, line in enumerate(lines) if line.startswith("kernels"))
    again = genrep("run", LEARNABLE)
    assert "everything is done already" in again.output
    assert "doctor" not in again.output


def test_force_goes_on_and_says_so(genrep: Any, tmp_path: Path) -> None:
    assert genrep("run", "Comparing").code == genrep("run", "Comparing").code == 1
    ended = genrep("run", "Comparing", "--force")
    assert ended.code == 0, ended.error
    assert "doctor: red, batch size" in ended.output
    assert "doctor: the run goes on, as --force (force=True) was given" in ended.output
    assert models(tmp_path) > 2


class Watched(SerialExecutor):
    """Notes the stages and seeds of all units; those of the stage ``broken`` end with ``failure``."""

    def __init__(self, broken: str = "", failure: Failure | None = None) -> None:
        super().__init__()
        self.broken, self.failure = broken, failure
        self.ran: list[tuple[str, int]] = []

    def run(self, job: Job, units: Iterable[Unit], *, actors: bool = False) -> Generator[Outcome, None, None]:
        for unit in units:
            self.ran.append((unit.stage, unit.seed))
            if unit.stage == self.broken:
                yield Outcome.failed(unit, 1, self.failure or RuntimeError("broken"))
            else:
                yield from super().run(job, [unit], actors=actors)


class Messages(NoProgress):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def message(self, text: str) -> None:
        self.texts.append(text)


def gr_run(folder: Path, executor: Watched, messages: Messages | None = None, problem: str = LEARNABLE, **fields: Any) -> gr.Run:
    asked = experiment(problem, {"epochs": 2}, **({"methods": ["random"], "deletion": {"fractions": [0.0, 0.1]}} | fields))
    return gr.run(asked, store=str(folder), executor=executor, progress=messages, search_path=[str(ROOT)])


def test_it_runs_once_and_directly_after_the_first_original(tmp_path: Path) -> None:
    first = Watched("retrain")
    with pytest.raises(UnitError):
        gr_run(tmp_path, first, seeds=[3, 1])
    assert first.ran[:3] == [("train", 3), ("doctor", 3), ("train", 1)]
    record = json.loads((tmp_path / "experiments/toy/doctor.json").read_text())
    assert {"mode", "batch size", "reproduction", "divergence"} <= {found["name"] for found in record["findings"]}
    second = Watched()
    gr_run(tmp_path, second, seeds=[3, 1])
    assert {stage for stage, _ in second.ran} == {"retrain"}, "a run that was checked is not checked when it is resumed"
    other = Watched()
    gr_run(tmp_path, other, seeds=[3, 1], name="other", recipe={"epochs": 3})
    assert ("doctor", 3) in other.ran


def test_it_runs_once_where_parameters_are_tuned(tmp_path: Path) -> None:
    watched = Watched()
    tune = {"parameter": "deletion.retrain", "values": ["same", "fresh"], "seeds": [7], "metric": "auc_del_negative"}
    try:
        gr_run(tmp_path, watched, tune=tune, methods=[*NTK, "random"])
    except gr.GenRepError:
        tune |= {"parameter": "surrogate.lambda", "values": [0.1, 1.0]}
        gr_run(tmp_path, watched, tune=tune, methods=["ntk-final/surrogate", "random"])
    assert [seed for stage, seed in watched.ran if stage == "doctor"] == [7]


def test_a_doctor_that_dies_does_not_stop_the_run(tmp_path: Path) -> None:
    messages = Messages()
    gr_run(tmp_path, Watched("doctor", Failure(RuntimeError("gone"), FailureKind.CRASHED)), messages)
    assert any("doctor: seed 0 was not checked" in text for text in messages.texts)


def test_in_python_it_is_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(DoctorError, match=r"batch size[\s\S]*seed 0[\s\S]*no red finding[\s\S]*force=True"):
        gr_run(tmp_path, Watched(), problem=f"{HERE}:Comparing")


def test_a_check_that_fails_or_takes_long_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_context: CheckContext) -> Iterable[Finding]:
        raise RuntimeError("broken")

    messages = Messages()
    monkeypatch.setitem(FIRST_SEED_CHECKS, "mode", broken)
    gr_run(tmp_path / "a", Watched(), messages)
    assert any(text.startswith("doctor: amber, mode: not checked: ") for text in messages.texts)
    monkeypatch.setattr("genrep_dist.diagnostics.run_checks.MOST_SECONDS", -1.0)
    gr_run(tmp_path / "b", Watched(), messages)
    assert any(text.startswith("doctor: amber, time: not checked") for text in messages.texts)


def test_no_check_of_the_beginning_reads_what_is_not_there_yet() -> None:
    assert set(FIRST_SEED_CHECKS) < set(CHECKS)
    assert not {"ledger", "retraining", "published results", "scores", "finite", "power"} & set(FIRST_SEED_CHECKS)


def test_rounding_that_a_model_amplifies_is_amber(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A difference that is there in float32 alone, of the gradients of one layer; one that is there in float64, too, is red."""
    right, factor = reference.one_by_one, {torch.float32: 1.01, torch.float64: 1.0}
    monkeypatch.setattr(gradients, "one_by_one", lambda model, *more: factor[model[0].weight.dtype] * right(model, *more))
    messages = Messages()
    gr_run(tmp_path, Watched(), messages, methods=NTK)
    (told,) = (text for text in messages.texts if text.startswith("doctor: amber, gradients"))
    assert "in float64 it is" in told
    factor[torch.float64] = 1.01
    with pytest.raises(DoctorError, match="gradients"):
        gr_run(tmp_path, Watched(), methods=NTK, recipe={"epochs": 3})
