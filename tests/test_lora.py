"""Parameter-efficient tuning of a pretrained model, judged end to end: rows of a Hugging Face data set, a mask, weights from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import genrep_dist as gr
from genrep_dist.core.gradients.factored import inner_products
from genrep_dist.core.gradients.per_sample import factored_gradients
from genrep_dist.core.inputs import pack_inputs
from genrep_dist.store import Store
from genrep_dist.workflow.prepare import prepare
from tests import lora_problem
from tests.experiments import ROOT, experiment

for package in ("transformers", "peft", "datasets"):
    pytest.importorskip(package, reason=f"the package {package} is optional")

METHODS = ["ntk-final/target", "last-layer-final/target", "influence-final/target", "random"]


def declared(weights: Path) -> gr.Experiment:
    return experiment(
        "tests.lora_problem:LoraBert",
        {"weights": str(weights)},
        seeds=1,
        methods=METHODS,
        influence={"damping": 0.1},
        deletion={"fractions": [0.0, 0.1], "signs": ["negative"]},
    )


def write_weights(path: Path, seed: int) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.save(lora_problem.base().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> gr.Run:
    folder = tmp_path_factory.mktemp("lora")
    return gr.run(declared(write_weights(folder / "base.pt", 0)), store=str(folder / "store"), serial=True, search_path=[str(ROOT)])


def test_scores_are_of_the_trained_parameters(judged: gr.Run) -> None:
    problem: Any = judged.problem(0)
    trained = {name for name, parameter in problem.model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name or "classifier" in name for name in trained)
    train = factored_gradients(problem.model, pack_inputs(problem.train.inputs))
    assert {name for name, _ in train.parameters} == trained
    assert not judged.plan.shape.kernels["ntk"].slow_layers
    with torch.no_grad():
        outputs, targets = problem.model(**problem.train.inputs).logits.double(), problem.train.targets
    alpha = torch.nn.functional.one_hot(targets, 2) - outputs.softmax(1)
    at = [problem.test.ids.tolist().index(sample) for sample in judged.test_ids(0).tolist()]
    with torch.no_grad():
        chosen = problem.model(**{name: leaf[at] for name, leaf in problem.test.inputs.items()}).logits.argmax(1)
    test = factored_gradients(problem.model, pack_inputs({name: leaf[at] for name, leaf in problem.test.inputs.items()}), chosen)
    kernel = inner_products(train, test).double().reshape(24, 2, 2)
    expected = torch.einsum("nc,ncm->nm", alpha, kernel).numpy()
    np.testing.assert_allclose(judged.attributions("ntk-final/target", 0), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_training_moves_the_trained_parameters_alone(judged: gr.Run) -> None:
    first, last = judged.checkpoint(0, "initial"), judged.checkpoint(0, "final")
    trained = {name for name, parameter in judged.problem(0).model.named_parameters() if parameter.requires_grad}
    changed = {name for name in first if not torch.equal(first[name], last[name])}
    assert {name for name in trained if "value" in name or "classifier" in name} <= changed <= trained
    assert judged.deletion().collect().height > 0


def test_other_weights_are_another_experiment(judged: gr.Run, tmp_path: Path) -> None:
    keys = [
        prepare(declared(write_weights(tmp_path / f"{seed}.pt", seed)), Store(str(tmp_path / "store")), [str(ROOT)]).plan.keys.model(0)
        for seed in (0, 1)
    ]
    assert keys[0] == judged.plan.keys.model(0), "the place of the file does not count"
    assert keys[1] != keys[0]
