"""What a user adds from outside the package: each is one class and one registration, and takes part in a whole run."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import genrep_dist as gr
from genrep_dist.cli.main import app
from genrep_dist.config.keys import Keys
from genrep_dist.core.importances import IMPORTANCES
from genrep_dist.core.importances.base import OutputImportance
from genrep_dist.core.kernels import KERNELS
from genrep_dist.core.kernels.base import DerivedKernel, FeatureKernel, KernelSizes, PairwiseKernel, Work
from genrep_dist.core.losses import Loss
from genrep_dist.core.targets import TARGETS, Target
from genrep_dist.errors import ConfigError, MethodError, PlanError, ProblemError, StoreError
from genrep_dist.plan import Plan, StagePlan
from genrep_dist.problems.protocol import Recipe
from genrep_dist.registry import Registry
from genrep_dist.testing.kernels import FeatureKernelTests
from genrep_dist.training.optimizers import OPTIMIZERS
from genrep_dist.training.optimizers.sgd import SGD
from genrep_dist.units import Unit
from genrep_dist.workflow.base import ArtifactSpec, Stage
from genrep_dist.workflow.context import WorkerContext, load_kernels
from genrep_dist.workflow.extensions import extension_identities
from genrep_dist.workflow.stages import STAGES
from tests.experiments import ROOT, experiment


@contextmanager
def registered(registry: Registry[Any], name: str, value: Any) -> Iterator[None]:
    """What one line at the end of the extension's file does, taken back afterwards; also for what an earlier test has left there."""
    registry.unregister(name)
    registry.register(name, value)
    try:
        yield
    finally:
        registry.unregister(name)


def run(folder: Path, **fields: Any) -> gr.Run:
    return gr.run(experiment(**fields), store=str(folder), serial=True, search_path=[str(ROOT)])


class InputKernel(FeatureKernel):
    """Inner products of the inputs themselves, the same for each output."""

    name = "inputs"
    formula, source = "<x_i, x>", "linear kernel"

    def sizes(self, model: nn.Module, inputs: Tensor) -> KernelSizes:
        width = inputs[0].numel()
        return KernelSizes(held=width, products=width, stored_bytes=4 * width, gradient_passes=0.0)

    def num_parameters(self, model: nn.Module, inputs: Tensor) -> int:
        return inputs[0].numel()

    def features(self, model: nn.Module, inputs: Tensor, outputs: Tensor | None = None) -> Tensor:
        return inputs.flatten(1).float()

    def block(self, train: Any, test: Any, outputs: Tensor, num_outputs: int) -> Tensor:
        block = torch.zeros(len(train), num_outputs, len(test))
        block[:, outputs, torch.arange(len(test))] = train @ test.T
        return block

    def diagonal(self, rows: Any, outputs: Tensor, num_outputs: int) -> Tensor:
        diagonal = torch.zeros(len(rows), num_outputs)
        diagonal[torch.arange(len(rows)), outputs] = rows.square().sum(dim=1)
        return diagonal

    def reference(self, model: nn.Module, train: Tensor, test: Tensor, outputs: Tensor, num_outputs: int) -> tuple[Tensor, Tensor]:
        block = torch.zeros(len(train), num_outputs, len(test), dtype=torch.float64)
        for row, left in enumerate(train):
            for column, right in enumerate(test):
                block[row, outputs[column], column] = (left.double() * right.double()).sum()
        scale = train.flatten(1).norm(dim=1)[:, None, None] * test.flatten(1).norm(dim=1)[None, None, :]
        return block, scale.double().expand_as(block)


class TestInputKernel(FeatureKernelTests):
    """The conformance suite, as a package of kernels would run it."""

    def make_kernel(self) -> InputKernel:
        return InputKernel()


@pytest.mark.parametrize("features", ["store", "stream"])
def test_a_kernel(tmp_path: Path, features: str) -> None:
    methods = ["inputs-final/target", "inputs-final/surrogate", "ntk-final/target", "random"]
    with registered(KERNELS, "inputs", InputKernel):
        done = run(tmp_path, methods=methods, resources={"features": features})
        inputs, problem = done.problem(0).train.inputs, done.problem(0)
        points = problem.test.inputs[done.plan.keys.test_positions(0)]
        np.testing.assert_allclose(done.kernel("inputs", "final", 0), (inputs @ points.T).numpy(), rtol=1e-5, atol=1e-5)
        phi = done.importance("target", 0)[:, None] * done.kernel("inputs", "final", 0)
        np.testing.assert_allclose(done.attributions("inputs-final/target", 0), phi, rtol=1e-5, atol=1e-6)
        again = done.explain("inputs-final/surrogate", 0, test_ids=done.test_ids(0).tolist())
        np.testing.assert_allclose(again, done.attributions("inputs-final/surrogate", 0), rtol=1e-5, atol=1e-8)
    with pytest.raises(ValueError, match="unknown method 'inputs-final/target'"):
        experiment(methods=methods)


class SignImportance(OutputImportance):
    """Only the sign of the target derivative."""

    name = "sign"
    formula, source = "sign(-dL/df(f(x_i), y_i))", "this test"

    def compute(self, loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
        return -loss.derivative(outputs, targets).sign()


def test_an_importance(tmp_path: Path) -> None:
    with registered(IMPORTANCES, "sign", SignImportance):
        done = run(tmp_path, methods=["ntk-final/sign", "last-layer-middle/sign", "ntk-final/target", "random"])
        sign = np.sign(done.importance("target", 1))
        np.testing.assert_array_equal(done.importance("sign", 1), sign)
        np.testing.assert_allclose(done.attributions("ntk-final/sign", 1), sign[:, None] * done.kernel("ntk", "final", 1), rtol=1e-6)
        assert set(done.summary()["method"]) == {"ntk-final/sign", "last-layer-middle/sign", "ntk-final/target", "random"}


class RunnerUp(Target):
    """The logit of the class that comes second."""

    name = "runner-up"

    def choose(self, outputs: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.int64]:
        return np.argsort(outputs, axis=1)[:, -2].astype(np.int64)

    def check(self, num_outputs: int) -> None:
        if num_outputs < 2:
            raise PlanError("no output comes second", where="target.kind", expected="at least 2 outputs", got=str(num_outputs))


def test_a_target(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"options": {"num_classes": 3}, "methods": ["ntk-final/target", "random"], "seeds": 1}
    with registered(TARGETS, "runner-up", RunnerUp):
        done = run(tmp_path, target={"kind": "runner-up"}, **fields)
        outputs = done.store.artifact("train", done.plan.keys.train(0)).read("outputs_test")[done.plan.keys.test_positions(0)]
        second = np.sort(outputs, axis=1)[:, -2]
        table = done.deletion().collect().unique(["test_id"]).sort("test_id")
        order = np.argsort(done.test_ids(0))
        np.testing.assert_allclose(table["score_original"].to_numpy(), second[order], rtol=1e-6)
        plain = run(tmp_path, name="plain", **fields)
        assert plain.plan.keys.train(0) == done.plan.keys.train(0), "another target trains other models"
        assert plain.plan.keys.kernel(0, "ntk", 4) != done.plan.keys.kernel(0, "ntk", 4)


@dataclass(frozen=True)
class NormUnit(Unit):
    """Norm of one seed's final parameters."""

    stage: ClassVar[str] = "norms"


class NormStage(Stage[NormUnit]):
    """Writes the norm of each original model's final parameters."""

    name = "norms"

    def artifacts(self, plan: Plan) -> Iterator[ArtifactSpec]:
        return (ArtifactSpec("norm", plan.keys.train(seed), seed, (NormUnit(seed),)) for seed in plan.experiment.seeds)

    def run(self, unit: NormUnit, context: WorkerContext) -> dict[str, float]:
        parameters = context.model(unit.seed, context.keys.epochs).parameters()
        norm = float(torch.cat([p.detach().flatten() for p in parameters]).norm())
        artifact = context.store.artifact("norm", context.keys.train(unit.seed))
        artifact.write("norm", np.array([norm]), ("value",))
        artifact.commit({"seed": unit.seed})
        return {"norm": norm}

    def plan(self, plan: Plan) -> StagePlan | None:
        seeds = len(plan.experiment.seeds)
        return StagePlan(self.name, f"{seeds} norms", seeds, 8 * seeds, 8)


def test_a_stage(tmp_path: Path) -> None:
    with registered(STAGES, "norms", NormStage()):
        done = run(tmp_path, methods=["random"])
        assert [line.units for line in done.plan.stages if line.name == "norms"] == [2]
        state = done.checkpoint(1, "final")
        expected = float(torch.cat([value.flatten() for value in state.values()]).norm())
        assert done.store.artifact("norm", done.plan.keys.train(1)).read("norm")[0] == pytest.approx(expected)


def test_a_stage_that_is_registered_after_a_run_has_finished_runs(tmp_path: Path) -> None:
    before = run(tmp_path, methods=["random"])
    with registered(STAGES, "norms", NormStage()):
        done = run(tmp_path, methods=["random"])
        keys = done.plan.keys
        assert keys.results != before.plan.keys.results
        assert keys.training == before.plan.keys.training
        assert done.store.artifact("norm", keys.train(0)).is_committed()


SCRIPT = """
import sys

import genrep_dist as gr
from genrep_dist.core.importances import IMPORTANCES
from genrep_dist.core.importances.base import OutputImportance
from genrep_dist.core.kernels import KERNELS
from genrep_dist.core.kernels.base import PairwiseKernel
from genrep_dist.training.optimizers import OPTIMIZERS
from genrep_dist.training.optimizers.sgd import SGD
from tests.experiments import ROOT, experiment


class Laplace(PairwiseKernel):
    name, formula, source = "laplace", "exp(-|x - z|)", "this script"

    def pairs(self, model, left, right):
        return (-(left.flatten(1)[:, None] - right.flatten(1)[None, :]).norm(dim=2)).exp()


class Sign(OutputImportance):
    name, formula, source = "sign", "sign(-dL/df)", "this script"

    def compute(self, loss, outputs, targets):
        return -loss.derivative(outputs, targets).sign()


class SlowSGD(SGD):
    def update(self, parameters, gradients, state, rate):
        super().update(parameters, gradients, state, rate / 2)


KERNELS.register("laplace", Laplace)
IMPORTANCES.register("sign", Sign)
OPTIMIZERS.register("slow-sgd", SlowSGD)

if __name__ == "__main__":
    asked = experiment(methods=["laplace-final/sign", "random"], recipe={"optimizer": "slow-sgd"})
    runs = [gr.run(asked, store=f"{sys.argv[1]}/{name}", executor=name, search_path=[str(ROOT)]) for name in ("serial", "ray")]
    assert runs[0].deletion().collect().equals(runs[1].deletion().collect())
    print("equal")
"""


def test_extensions_of_a_script_are_known_to_the_workers_of_ray(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "equal"


THEIRS = """
from genrep_dist.core.importances.base import OutputImportance


class Theirs(OutputImportance):
    name, formula, source = "theirs", "-{factor} dL/df", "this test"

    def compute(self, loss, outputs, targets):
        return -{factor} * loss.derivative(outputs, targets)
"""


def test_the_code_of_an_extension_is_a_part_of_its_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "their_importances.py"
    module.write_text(THEIRS.format(factor=1))
    monkeypatch.syspath_prepend(str(tmp_path))
    found = []
    for factor in (1, 2):
        module.write_text(THEIRS.format(factor=factor))
        sys.modules.pop("their_importances", None)
        importlib.invalidate_caches()
        with registered(IMPORTANCES, "theirs", "their_importances:Theirs"):
            done = run(tmp_path / "store", methods=["ntk-final/theirs", "random"])
            found.append((done.plan.keys, done.attributions("ntk-final/theirs", 0)))
    (first, scores), (second, doubled) = found
    assert first.training == second.training
    assert first.results != second.results
    np.testing.assert_allclose(doubled, 2 * scores, rtol=1e-6)


class Doubled(DerivedKernel):
    """Twice the kernel of the inputs."""

    name = "doubled"
    formula, source = "2 <x_i, x>", "this test"
    base = "inputs"

    def columns(self, inputs: Any, own_outputs: Tensor | None = None) -> tuple[Tensor, dict[str, Any]]:
        return 2 * inputs.cross("inputs").double(), {"residual": 0.0}

    def diagonal(self, inputs: Any, own_outputs: Tensor) -> Tensor:
        raise AssertionError("no metric reads it")

    def peak_bytes(self, *sizes: int, diagonal: bool) -> int:
        return 8 * sum(sizes)

    def work(self, num_train: int, num_outputs: int, num_test: int) -> Work:
        return Work()

    def summary(self) -> str:
        return "doubled"


def test_the_base_of_a_derived_kernel_is_a_part_of_its_keys() -> None:
    with registered(KERNELS, "inputs", InputKernel), registered(KERNELS, "doubled", Doubled):
        asked = experiment(methods=["doubled-final/target", "random"])
        sources = {"kernel doubled": "a", "kernel inputs": "b"}
        first = Keys(asked, "data", "problem", {"epochs": 4}, {}, 10, extensions=sources)
        second = replace(first, extensions={**sources, "kernel inputs": "c"})
        assert set(extension_identities(asked, Recipe(epochs=1, batch_size=1, learning_rate=0.1), load_kernels(asked, ()))) == set(sources)
        assert first.kernel(0, "doubled", 4) != second.kernel(0, "doubled", 4)


def test_a_metric_and_a_stage_count_by_their_files_where_they_are_used() -> None:
    recipe = Recipe(epochs=1, batch_size=1, learning_rate=0.1)
    asked = experiment(methods=["random"], metrics={"self_removal": {"class": "tests.outside_metrics:SelfRemoval"}})
    with registered(STAGES, "norms", NormStage()):
        found = extension_identities(asked, recipe, load_kernels(asked, ()))
        assert set(found) == {"metric self_removal", "stage norms"}
        assert "tests.outside_metrics" in found["metric self_removal"].files
        assert set(extension_identities(asked, recipe, load_kernels(asked, ()), on_worker=True)) == {"stage norms"}
    assert extension_identities(experiment(methods=["random"]), recipe, {}) == {}


class Scaled(InputKernel):
    """``factor`` times the kernel of the inputs, with a setting of the experiment that changes nothing."""

    name = "scaled"
    settings = ("projection",)

    def __init__(self, projection: Any, factor: float = 1.0) -> None:
        self.factor = factor

    def block(self, *arguments: Any) -> Tensor:
        return self.factor * super().block(*arguments)

    def reference(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        block, scale = super().reference(*arguments)
        return self.factor * block, self.factor * scale


class OfMine(Doubled):
    """Twice the user's own kernel ``mine``."""

    base = "mine"

    def columns(self, inputs: Any, own_outputs: Tensor | None = None) -> tuple[Tensor, dict[str, Any]]:
        return 2 * inputs.cross("mine").double(), {"residual": 0.0}


def test_classes_of_kernels_named_in_the_experiment_work_as_registered_ones(tmp_path: Path) -> None:
    def own(factor: float) -> dict[str, Any]:
        names = {"mine": "Scaled", "derived": "OfMine"}
        classes = {name: {"class": f"tests.test_extensions:{kind}"} for name, kind in names.items()}
        return {**classes, "mine": {**classes["mine"], "options": {"factor": factor}}}

    methods = ["mine-final/target", "mine-final/surrogate", "derived-final/target", "random"]
    three = run(tmp_path, kernels=own(3.0), methods=methods, seeds=1)
    with registered(KERNELS, "scaled", Scaled):
        plain = run(tmp_path, name="plain", methods=["scaled-final/target", "scaled-final/surrogate"], seeds=1)
        np.testing.assert_allclose(three.kernel("mine", "final", 0), 3 * plain.kernel("scaled", "final", 0), rtol=1e-6)
    np.testing.assert_allclose(three.kernel("derived", "final", 0), 2 * three.kernel("mine", "final", 0), rtol=1e-6)
    again = three.explain("derived-final/target", 0, test_ids=three.test_ids(0).tolist())
    np.testing.assert_allclose(again, three.attributions("derived-final/target", 0), rtol=1e-6)
    keys = gr.open_run(str(tmp_path), "toy").plan.keys
    assert keys == three.plan.keys
    for changed in (
        replace(keys, experiment=experiment(kernels=own(2.0), methods=methods, seeds=1)),
        replace(keys, experiment=experiment(kernels=own(3.0), methods=methods, seeds=1, projection={"dim": 8})),
        replace(keys, extensions={**keys.extensions, "kernel mine": "another source"}),
    ):
        for kernel in ("mine", "derived"):
            assert changed.kernel(0, kernel, 4) != keys.kernel(0, kernel, 4)


@pytest.mark.parametrize(
    ("kernels", "says"),
    [
        ({"mine": {"class": "tests.test_extensions:Scaled", "options": {"width": 1.0}}}, r"arguments of the kernel's class[\s\S]*width"),
        ({"mine": {"class": "tests.test_extensions:SIXTY"}}, "no such class"),
        ({"mine": {"class": "tests.test_extensions:NormUnit", "options": {"seed": 1}}}, r"is no kernel[\s\S]*NormUnit"),
        ({"mine": {"class": "tests.test_extensions:OfMine"}}, r"OfMine\.base[\s\S]*feature kernel"),
        ({"mine": {"class": "tests.toys:Nothing"}}, r"no such class[\s\S]*Nothing"),
        ({"mine": {"class": "tests.nowhere:Nothing"}}, "no such module"),
    ],
)
def test_classes_of_kernels_that_cannot_be_used_are_refused(tmp_path: Path, kernels: dict[str, Any], says: str) -> None:
    with pytest.raises(ProblemError, match=says):
        run(tmp_path, kernels=kernels, methods=["mine-final/target"])


def test_a_derived_kernel_has_no_gram(tmp_path: Path) -> None:
    kernels = {name: {"class": f"tests.test_extensions:{kind}"} for name, kind in (("mine", "Scaled"), ("derived", "OfMine"))}
    with pytest.raises(ProblemError, match="not defined for this method"):
        run(tmp_path, kernels=kernels, methods=["derived-final/surrogate"])
    with registered(KERNELS, "doubled", Doubled), pytest.raises(ValueError, match="unknown method 'doubled-final/surrogate'"):
        experiment(methods=["doubled-final/surrogate"])


@pytest.mark.parametrize("registry", [KERNELS, IMPORTANCES])
@pytest.mark.parametrize("name", ["external", "random", "final", "tracincp"])
def test_words_of_method_names_are_refused(registry: Registry[Any], name: str) -> None:
    with pytest.raises(ConfigError, match=f"is reserved[\\s\\S]*'{name}'"):
        registry.register(name, InputKernel)


@pytest.mark.parametrize("registry", [KERNELS, IMPORTANCES, TARGETS, OPTIMIZERS])
@pytest.mark.parametrize("value", [3, torch.optim.Adam, PairwiseKernel])
def test_what_is_no_class_of_the_kind_is_refused(registry: Registry[Any], value: Any) -> None:
    with registered(registry, "wrong", value), pytest.raises(ConfigError, match="'wrong' cannot be loaded"):
        registry.get("wrong")


def test_a_rule_that_is_not_declared_elementwise_trains_models_one_by_one(tmp_path: Path) -> None:
    class Clipped(SGD):
        is_elementwise = False

    with registered(OPTIMIZERS, "clipped", Clipped):
        plan = run(tmp_path, methods=["random"], recipe={"optimizer": "clipped"}).plan
    assert plan.shape.pack_kind == "solo"


def test_a_run_without_its_extensions_is_shown_and_refused_by_name_where_they_are_needed(tmp_path: Path) -> None:
    with registered(IMPORTANCES, "sign", SignImportance):
        done = run(tmp_path, methods=["ntk-final/sign", "random"])
        scores, ids = done.attributions("ntk-final/sign", 0), done.test_ids(0)
        stages = json.loads(CliRunner().invoke(app, ["status", "toy", "--store", str(tmp_path), "--json"]).output)["stages"]
    opened = gr.open_run(str(tmp_path), "toy")
    assert opened.metrics().equals(done.metrics())
    status = CliRunner().invoke(app, ["status", "toy", "--store", str(tmp_path), "--json"])
    assert json.loads(status.output)["stages"] == [{**stage, "exact": True} for stage in stages]
    assert json.loads(status.output)["finished"]
    report = CliRunner().invoke(app, ["report", "toy", "--store", str(tmp_path)])
    assert report.exit_code == 0
    assert "ntk-final/sign" in report.output
    assert "not written again" in report.output
    assert np.array_equal(opened.attributions("ntk-final/sign", 0), scores)
    assert np.array_equal(opened.test_ids(0), ids)
    assert opened.checkpoint(0, "middle").keys() == opened.checkpoint(0, "final").keys()
    with pytest.raises(MethodError, match=r"not a method[\s\S]*ntk-final/sign, random"):
        opened.attributions("ntk-final/other", 0)
    with pytest.raises(StoreError, match=r"cannot be read here[\s\S]*ntk-final/sign[\s\S]*import or install"):
        opened.importance("sign", 0)
