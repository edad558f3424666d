"""Baselines that hardly look at the model: cosines of inputs and of activations, with the vote of the label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import genrep_dist as gr
from genrep_dist.errors import ProblemError
from tests.experiments import ROOT, experiment

METHODS = ["input-cosine-final/same-label", "activation-cosine-final/same-label", "random"]


def judged(store: Path, problem: str, methods: list[str], options: dict[str, Any] | None = None) -> gr.Run:
    declared = experiment(problem, options, methods=methods, seeds=1, deletion={"fractions": [0.0, 0.1]})
    return gr.run(declared, store=str(store), serial=True, search_path=[str(ROOT)])


def cosines(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cosine_similarity(left.double()[:, None], right.double()[None], dim=2)


@pytest.mark.parametrize("classes", [2, 10])
def test_neighbours_of_the_same_label_support_a_prediction(classes: int, tmp_path: Path) -> None:
    if classes == 2:
        run = judged(tmp_path, "tests.toys:Blobs", METHODS)
    else:
        run = judged(tmp_path, "digits", METHODS, {"classes": None, "train_size": 60})
    own = run.problem(0)
    points = [own.test.ids.tolist().index(sample) for sample in run.test_ids(0).tolist()]
    train, test = own.train.inputs, own.test.inputs[points]
    with torch.no_grad():
        outputs = own.model(test)
    if outputs.shape[1] == 1:
        votes = own.train.targets.reshape(-1, 1).double() - 0.5
        explained = torch.zeros(len(points), dtype=torch.int64)
    else:
        votes = torch.nn.functional.one_hot(own.train.targets, outputs.shape[1]).double() - 1 / outputs.shape[1]
        explained = outputs.argmax(dim=1)
    expected = votes[:, explained] * cosines(train.flatten(1), test.flatten(1))
    np.testing.assert_allclose(run.attributions(METHODS[0], 0), expected, atol=1e-6)

    seen: list[torch.Tensor] = []
    last = [layer for layer in own.model.modules() if isinstance(layer, torch.nn.Linear)][-1]
    hook = last.register_forward_hook(lambda _layer, inputs, _result: seen.append(inputs[0].detach()))
    with torch.no_grad():
        own.model(train)
        own.model(test)
    hook.remove()
    np.testing.assert_allclose(run.attributions(METHODS[1], 0), votes[:, explained] * cosines(seen[0], seen[1]), atol=1e-6)


def test_inputs_of_several_tensors_have_no_cosine(tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match=r"input-cosine[\s\S]*several tensors[\s\S]*activation-cosine"):
        judged(tmp_path, "tests.structured_inputs:AsDict", ["input-cosine-final/same-label", "random"])
