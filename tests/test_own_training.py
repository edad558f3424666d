"""Problems with their own training function, judged end to end."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch.utils.data import TensorDataset

import genrep_dist as gr
from genrep_dist.diagnostics.run_checks import diagnose
from genrep_dist.errors import ProblemError, TimeLimitError, UnitError
from genrep_dist.seeds import derive_seed
from genrep_dist.store import Store
from genrep_dist.training.threads import one_thread
from genrep_dist.workflow.prepare import prepare
from genrep_dist.workflow.time_limit import time_limit
from tests.experiments import ROOT, experiment
from tests.own_training import Script, script

METHODS = ["ntk-final/target", "cosine", "random"]


def write_scores(folder: Path) -> None:
    """Scores of another tool: the cosine of the inputs."""
    problem = Script()
    train, test = problem.train_data(), problem.test_data()
    scores = torch.nn.functional.cosine_similarity(train.inputs[:, None], test.inputs[None], dim=2)
    for seed in range(2):
        np.savez(folder / f"cosine-{seed}.npz", scores=scores.numpy(), train_ids=train.ids.numpy(), test_ids=test.ids.numpy())


def run(store: Path, problem: str, methods: list[str], serial: bool = True, **fields: Any) -> gr.Run:
    external: Any = {"cosine": {"path": str(store.parent / "cosine-{seed}.npz"), "positive_raises": True, "unverified": True}}
    if "cosine" in methods:
        write_scores(store.parent)
        fields["external"] = external
    defaults: dict[str, Any] = {"deletion": {"fractions": [0.0, 0.1]}, "resources": {"workers": 2, "unit_timeout": 60}}
    declared = experiment(f"tests.own_training:{problem}", methods=methods, **(defaults | fields))
    return gr.run(declared, store=str(store), serial=serial, search_path=[str(ROOT)])


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> gr.Run:
    return run(tmp_path_factory.mktemp("script") / "store", "Script", METHODS)


def test_the_ledger_has_the_predictions_of_a_plain_script(judged: gr.Run) -> None:
    problem = Script()
    train, test = problem.train_data(), problem.test_data()
    rows = judged.store.ledger(judged.plan.keys.training).scan().collect()
    assert rows.height > 8
    for seed, removed, outputs in rows.select("seed", "removed", "outputs").iter_rows():
        kept = ~torch.isin(train.ids, torch.tensor(removed, dtype=torch.int64))
        torch.manual_seed(derive_seed(seed, "init"))
        model = problem.model()
        torch.manual_seed(derive_seed(seed, "train"))
        with one_thread():
            script(model, TensorDataset(train.inputs[kept], train.targets[kept]))
        with torch.no_grad():
            assert np.array_equal(model(test.inputs).double().numpy().ravel(), outputs)


def test_determinism_is_checked_and_reported(judged: gr.Run) -> None:
    assert judged.choices["repeat"]["difference"] == 0
    assert judged.plan.experiment.deletion.retrain == "same"
    assert "trained twice" in (judged.store.objects.get("results/toy/report.html")).decode()
    assert [found for found in diagnose(judged) if found.colour == "red"] == []


@pytest.mark.ray
def test_ray_gives_the_same_tables(judged: gr.Run, tmp_path: Path) -> None:
    found = run(tmp_path / "store", "Script", METHODS, serial=False)
    for name in ("deletion", "points"):
        assert found.store.objects.get(f"results/toy/{name}.parquet") == judged.store.objects.get(f"results/toy/{name}.parquet")


TWO_CLASSES = """
from tests.own_training import Script


class Slow(Script):
    rate = 0.01

    def train(self, model, data, run):
        import torch

        inputs, targets = data.inputs, data.targets
        for _ in range(4):
            model.zero_grad()
            torch.nn.functional.binary_cross_entropy_with_logits(model(inputs).flatten(), targets).backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= self.rate * parameter.grad


class Fast(Slow):
    rate = 3.0


class Nothing(Slow):
    def train(self, model, data, run):
        pass


class Named(Slow):
    def predict(self, model, inputs):
        return 2 * model(inputs)
"""


def test_classes_of_one_file_share_no_models(tmp_path: Path) -> None:
    """They differ in the training function, in a constant that it reads, or in the predictions; the file is one."""
    (tmp_path / "two_classes.py").write_text(TWO_CLASSES)
    fields: dict[str, Any] = {"methods": ["ntk-final/target", "random"], "seeds": 1, "deletion": {"fractions": [0.0, 0.1]}}
    seen = {}
    for name in ("Slow", "Fast", "Nothing", "Named"):
        declared = experiment(f"two_classes:{name}", name=name.lower(), **fields)
        search = [str(tmp_path), str(ROOT)]
        together = gr.run(declared, store=str(tmp_path / "store"), serial=True, search_path=search)
        alone = gr.run(declared, store=str(tmp_path / name), serial=True, search_path=search)
        assert together.deletion().collect().equals(alone.deletion().collect()), name
        seen[name] = together.plan.keys.training
    assert len(set(seen.values())) == len(seen)


def test_hooks_serve_the_methods_that_follow_training(tmp_path: Path) -> None:
    methods = ["ntk-final/tracking", "ntk-middle/target", "tracincp", "random"]
    own = run(tmp_path / "own", "AsRecipe", methods, seeds=1)
    plain = gr.run(experiment(methods=methods, seeds=1, deletion={"fractions": [0.0, 0.1]}), store=str(tmp_path / "plain"), serial=True)
    for method in methods:
        assert np.allclose(own.attributions(method, 0), plain.attributions(method, 0), atol=1e-5), method
    assert np.allclose(own.deletion().collect()["delta"].to_numpy(), plain.deletion().collect()["delta"].to_numpy(), atol=1e-5)
    assert any("own function" in warning for warning in own.plan.warnings)


@pytest.mark.parametrize(
    ("methods", "recipe", "expected"),
    [
        (["ntk-final/tracking", "random"], {}, ["ntk-final/tracking", "`run.step(ids, outputs, rate)`"]),
        (["ntk-middle/target", "last-layer-epoch3/target"], {"epochs": 4}, ["ntk-middle/target", "epochs 2, 3", "run.checkpoint(epoch"]),
        (["tracincp", "ntk-final/target"], {"epochs": 4}, ["tracincp", "run.checkpoint(epoch"]),
        (["tracincp", "ntk-middle/target"], {}, ["tracincp, ntk-middle/target", "Recipe(epochs="]),
        (["last-layer-final/descent"], {}, ["last-layer-final/descent", "Recipe(epochs="]),
    ],
)
def test_what_a_method_lacks_is_refused_before_training(
    methods: list[str], recipe: dict[str, int], expected: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ProblemError) as found:
        prepare(experiment("tests.own_training:Script", methods=methods, recipe=recipe), Store(str(tmp_path)), [str(ROOT)])
    assert all(text in str(found.value) for text in expected), found.value
    assert "ntk-final/target" not in found.value.where


@pytest.mark.parametrize("how", ["system", "calls"])
def test_same_random_numbers_mean_nothing_to_a_random_training(how: str, tmp_path: Path) -> None:
    options = {"how": how}
    found = run(tmp_path / "store", "Drawing", ["ntk-final/target", "random"], seeds=1, test_points=1, options=options)
    assert found.choices["repeat"]["difference"] > 0
    assert found.plan.experiment.deletion.retrain == "fresh"
    report = found.store.objects.get("results/toy/report.html").decode()
    assert f"{found.choices['repeat']['difference']:.3g}" in report
    assert "replicates" in report
    keys = found.store.ledger(found.plan.keys.training).keys()
    run(tmp_path / "store", "Drawing", ["ntk-final/target", "random"], seeds=1, test_points=1, options=options)
    assert found.store.ledger(found.plan.keys.training).keys() == keys


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("raise", "no first sample here"),
        ("diverge", "diverged"),
        ("hang", "resources.unit_timeout"),
        ("memory", "no memory for the first sample"),
    ],
)
def test_a_training_that_fails_is_one_failed_model(how: str, expected: str, tmp_path: Path) -> None:
    loo = {"samples": 40}
    with pytest.raises((ProblemError, TimeLimitError, UnitError)) as found:
        run(
            tmp_path / "store",
            "Failing",
            ["random"],
            options={"how": how},
            seeds=1,
            test_points=1,
            loo=loo,
            deletion={"counts": [1]},
            resources={"unit_timeout": 1.5, "retries": 1},
        )
    first = int(Script().train_data().ids[0])
    assert expected in str(found.value)
    assert f"removed ids: {first}" in str(found.value)
    plan = prepare(
        experiment(
            "tests.own_training:Failing",
            {"how": how},
            methods=["random"],
            seeds=1,
            test_points=1,
            loo=loo,
            deletion={"counts": [1]},
        ),
        Store(str(tmp_path / "store")),
        [str(ROOT)],
    ).plan
    removed = Store(str(tmp_path / "store")).ledger(plan.keys.training).scan().select(pl.col("removed").list.first()).collect()
    assert removed["removed"].n_unique() == 40, "the original, and all but one of the others"
    assert first not in removed["removed"]


def test_a_model_that_is_no_module_is_judged_by_its_predictions(tmp_path: Path) -> None:
    found = run(tmp_path / "store", "NoModule", ["cosine", "random"])
    rows = found.store.ledger(found.plan.keys.training).scan().collect()
    train, test = found.train, found.test
    for removed, outputs in rows.select("removed", "outputs").iter_rows():
        kept = ~torch.isin(train.ids, torch.tensor(removed, dtype=torch.int64))
        centres = [train.inputs[kept & (train.targets == label)].numpy().mean(axis=0) for label in (0, 1)]
        distances = [((test.inputs.numpy() - centre) ** 2).sum(axis=1) for centre in centres]
        assert np.allclose(distances[0] - distances[1], outputs, atol=1e-5)
    assert [finding for finding in diagnose(found) if finding.colour == "red"] == []
    with pytest.raises(ProblemError, match="ntk-final/target"):
        prepare(experiment("tests.own_training:NoModule", methods=["ntk-final/target"]), Store(str(tmp_path)), [str(ROOT)])


def test_an_edit_of_a_file_that_train_imports_is_another_training(tmp_path: Path) -> None:
    (tmp_path / "own_steps.py").write_text("RATE = 0.1\n")
    (tmp_path / "own_import.py").write_text(
        "from own_steps import RATE\nfrom tests.own_training import Script, script\n\n\nclass Importing(Script):\n"
        "    def train(self, model, data, run):\n        assert RATE\n        return script(model, data)\n"
    )
    declared = experiment("own_import:Importing", methods=["random"])
    before = prepare(declared, Store(str(tmp_path / "store")), [str(tmp_path), str(ROOT)]).plan.keys.training
    (tmp_path / "own_steps.py").write_text("RATE = 0.2\n")
    with pytest.raises(ProblemError, match="own_steps"):  # edited since it was imported
        prepare(declared, Store(str(tmp_path / "store")), [str(tmp_path), str(ROOT)])
    assert before


def test_limits_may_be_nested_and_are_lifted() -> None:
    before = signal.getitimer(signal.ITIMER_REAL)[0]  # pytest may have a limit of its own
    with time_limit(30.0, "outer"):
        with pytest.raises(TimeLimitError, match="inner"), time_limit(0.05, "inner"):
            time.sleep(5)
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 30

    def work() -> None:
        with time_limit(5, "inner"):
            time.sleep(0.2)
        time.sleep(5)

    with pytest.raises(TimeLimitError, match="outer"), time_limit(0.1, "outer"):
        work()
    left = signal.getitimer(signal.ITIMER_REAL)[0]
    assert before - 10 < left <= before
