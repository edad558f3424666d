"""Ensembles: means of the scores of several models, judged as methods of their own."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor, nn

import genrep_dist as gr
from genrep_dist.core.dropout_masks import MaskedDropout
from genrep_dist.core.methods import describe
from genrep_dist.errors import ConfigError, PlanError, ProblemError
from genrep_dist.runner.run import train_originals
from genrep_dist.seeds import derive_seed
from genrep_dist.store import Store
from genrep_dist.workflow.prepare import prepare
from tests.experiments import ROOT

BASES = {
    "curved": "ekfac",
    "dual": "trak",
    "summed": "tracincp",
    "shared": "last-layer-final/tracking",
    "scored": "gradcos",
    "near": "knn-shapley",
}
CASES: dict[str, dict[str, Any]] = {
    "one output": {},
    "three outputs": {"seeds": 1, "problem": {"name": "tests.toys:Blobs", "options": {"num_classes": 3}}, "target": {"output": 1}},
}


def declared(**fields: Any) -> gr.Experiment:
    about: dict[str, Any] = {
        "name": "ensembles",
        "problem": {"name": "tests.toys:Blobs"},
        "seeds": 2,
        "test_points": 3,
        "ensembles": {name: {"method": base, "size": 3} for name, base in BASES.items()},
        "methods": [*BASES, "random"],
        "influence": {"system": "dual"},
        "deletion": {"fractions": [0.0, 0.1]},
    }
    return gr.Experiment.model_validate({**about, **fields})


@pytest.mark.parametrize("case", CASES)
def test_scores_are_means_over_networks_of_other_seeds(case: str, tmp_path: Path) -> None:
    run = gr.run(declared(**CASES[case]), store=str(tmp_path), serial=True, search_path=[str(ROOT)])
    keys, methods = run.plan.keys, {method.name: method for method in run.plan.experiment.parsed_methods}
    seeds = {seed: [seed, *keys.ensemble_seeds(seed, methods["near"])] for seed in run.plan.experiment.seeds}
    networks = [one for own in seeds.values() for one in own]
    assert len(set(networks)) == 3 * len(seeds)  # no network serves two
    others = {
        "name": "apart",
        "seeds": networks,
        "methods": [*BASES.values(), "random"],
        "ensembles": {},
        "influence": {"system": "primal"},
    }
    apart = declared(**{**CASES[case], **others})
    plain = train_originals(apart, str(tmp_path), serial=True, search_path=[str(ROOT)])
    for seed, own in seeds.items():
        ids = run.test_ids(seed).tolist()
        for name, base in BASES.items():
            expected = np.mean([plain.explain(base, one, test_ids=ids) for one in own], axis=0)
            scale = np.abs(expected).max()
            # The dual system's gram has float32 entries; the networks apart have the primal one, which needs nothing stored.
            tolerance = 1e-3 if name == "dual" else 1e-5
            np.testing.assert_allclose(run.attributions(name, seed), expected, rtol=0, atol=tolerance * scale, err_msg=name)
            np.testing.assert_allclose(run.explain(name, seed, test_ids=ids), run.attributions(name, seed), rtol=0, atol=1e-5 * scale)
        for base in ("tracincp", "gradcos", "knn-shapley"):
            own_address = plain.plan.keys.attribution(seed, plain.plan.experiment.method(base))
            assert keys.attribution(seed, run.plan.experiment.method(base)) == own_address
    assert set(run.summary()["method"]) == {*BASES, "random"}
    assert run.training().height == len(seeds)
    (train,) = [stage for stage in run.plan.stages if stage.name == "train"]
    assert (train.units, f"{2 * len(seeds)} of them for ensembles alone" in train.what) == (3 * len(seeds), True)


def over_checkpoints(**fields: Any) -> gr.Experiment:
    """Three checkpoints of four epochs: 1, 3 and 4."""
    ensembles = {
        "mean": {"method": "ntk-final/target", "over": "checkpoints", "size": 3},
        "trak-mean": {"method": "trak", "over": "checkpoints", "size": 3},
    }
    return declared(**{"seeds": 1, "ensembles": ensembles, "methods": ["mean", "trak-mean", "ntk-final/target", "random"], **fields})


@pytest.mark.parametrize("num_classes", [2, 3])
def test_over_checkpoints_is_the_mean_of_plain_scores_at_each(num_classes: int, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"problem": {"name": "tests.toys:Blobs", "options": {"num_classes": num_classes}}}
    fields |= {"target": {"output": num_classes - 2}, "influence": {"system": "primal", "damping": 0.1, "damping_unit": "absolute"}}
    run = gr.run(over_checkpoints(**fields), store=str(tmp_path), serial=True, search_path=[str(ROOT)])
    test = {sample: row for row, sample in enumerate(run.test.ids.tolist())}
    points = run.test.inputs[[test[sample] for sample in run.test_ids(0).tolist()]].double()
    plain, trak = [], []
    for epoch in (1, 3, 4):
        model = deepcopy(run.problem(0).model).double()
        model.load_state_dict(run.checkpoint(0, epoch))
        explained = torch.stack([gradient(model, one, num_classes - 2) for one in points])
        rows, margins, slopes = [], [], []
        for sample, target in zip(run.train.inputs.double(), run.train.targets, strict=True):
            outputs = model(sample[None])[0].detach()
            jacobian = torch.stack([gradient(model, sample, output) for output in range(len(outputs))])
            if num_classes == 2:
                slope, margin = torch.sigmoid(outputs) - target, torch.ones(1, dtype=torch.float64)
            else:
                chosen = torch.nn.functional.one_hot(target, num_classes)
                slope = torch.softmax(outputs, 0) - chosen
                others = torch.where(chosen.bool(), -torch.inf, outputs)
                margin = chosen - torch.softmax(others, 0)
            rows.append(jacobian)
            slopes.append(slope)
            margins.append(margin @ jacobian)
        scores = torch.einsum("nc,ncp->np", -torch.stack(slopes), torch.stack(rows))
        system = torch.stack(margins).T @ torch.stack(margins) / len(rows) + 0.1 * torch.eye(scores.shape[1])
        plain.append(scores @ explained.T)
        trak.append(scores @ torch.linalg.solve(system, explained.T))
    for name, found in (("mean", plain), ("trak-mean", trak)):
        expected = torch.stack(found).mean(dim=0).numpy()
        scale = np.abs(expected).max()
        np.testing.assert_allclose(run.attributions(name, 0), expected, rtol=0, atol=1e-5 * scale, err_msg=name)
        again = run.explain(name, 0, test_ids=run.test_ids(0).tolist())
        np.testing.assert_allclose(again, run.attributions(name, 0), rtol=0, atol=1e-6 * scale)
    assert set(run.summary()["method"]) == {"mean", "trak-mean", "ntk-final/target", "random"}
    assert run.summary().filter(pl.col("method") == "mean")["checkpoint"].to_list() == ["all"]


def gradient(model: nn.Module, sample: Tensor, output: int) -> Tensor:
    """Of one output of one sample, (P,), by plain autograd."""
    found = torch.autograd.grad(model(sample[None])[0, output], list(model.parameters()))
    return torch.cat([one.flatten() for one in found])


def test_the_strongest_of_a_mean_over_checkpoints_are_those_of_all_its_scores(tmp_path: Path) -> None:
    whole = gr.run(over_checkpoints(), store=str(tmp_path), serial=True, search_path=[str(ROOT)])
    kept = gr.run(over_checkpoints(name="kept", attributions={"top": 5}), store=str(tmp_path), serial=True, search_path=[str(ROOT)])
    assert_strongest_are_those_of(whole, kept, ("mean", "trak-mean"))


MASKED = {"plain": "ntk-final/target", "shared": "last-layer-final/target", "curved": "ekfac", "dual": "trak", "scored": "gradcos"}


def over_dropout(num_classes: int, **fields: Any) -> gr.Experiment:
    ensembles = {name: {"method": base, "over": "dropout", "size": 3} for name, base in MASKED.items()}
    about: dict[str, Any] = {"problem": {"name": "tests.toys:Dropped", "options": {"num_classes": num_classes}}}
    about |= {"target": {"output": num_classes - 2}, "influence": {"system": "primal", "damping": 0.1, "damping_unit": "absolute"}}
    return declared(**{**about, "seeds": 1, "ensembles": ensembles, "methods": [*MASKED, "random"], **fields})


@pytest.mark.parametrize("num_classes", [2, 3])
def test_over_dropout_is_the_mean_of_plain_scores_of_subnetworks(num_classes: int, tmp_path: Path) -> None:
    run = gr.run(over_dropout(num_classes), store=str(tmp_path), serial=True, search_path=[str(ROOT)])
    test = {sample: row for row, sample in enumerate(run.test.ids.tolist())}
    points = run.test.inputs[[test[sample] for sample in run.test_ids(0).tolist()]].double()
    masks = [MaskedDropout(nn.Dropout(0.4), derive_seed(derive_seed(0, "dropout", m), "dropout mask", "2")) for m in range(3)]
    assert len({tuple(mask(torch.ones(1, 8))[0].tolist()) for mask in masks}) == 3
    plain, shared = [], []
    for mask in masks:
        model = deepcopy(run.problem(0).model).double()
        assert isinstance(model, nn.Sequential)
        first, last, kept = model[0], model[3], mask(torch.ones(1, 8).double())[0]

        def features(inputs: Tensor, first: nn.Module = first, kept: Tensor = kept) -> Tensor:
            return torch.tanh(first(inputs)) * kept

        subnetwork = Subnetwork(first, last, kept)
        explained = torch.stack([gradient(subnetwork, one, num_classes - 2) for one in points])
        scores, near = [], []
        for sample, target in zip(run.train.inputs.double(), run.train.targets, strict=True):
            outputs = last(features(sample)).detach()
            if num_classes == 2:
                slope = torch.sigmoid(outputs) - target
            else:
                slope = torch.softmax(outputs, 0) - torch.nn.functional.one_hot(target, num_classes)
            jacobian = torch.stack([gradient(subnetwork, sample, output) for output in range(len(outputs))])
            scores.append(-slope @ jacobian @ explained.T)
            near.append(-slope[num_classes - 2] * (features(points) @ features(sample) + 1))
        plain.append(torch.stack(scores))
        shared.append(torch.stack(near))
    for name, found in (("plain", plain), ("shared", shared)):
        expected = torch.stack(found).mean(dim=0).detach().numpy()
        np.testing.assert_allclose(run.attributions(name, 0), expected, rtol=0, atol=1e-5 * np.abs(expected).max(), err_msg=name)
    for name, base in MASKED.items():
        kept, again = run.attributions(name, 0), run.explain(name, 0, test_ids=run.test_ids(0).tolist())
        np.testing.assert_allclose(again, kept, rtol=0, atol=1e-6 * np.abs(kept).max())
        whole = run.explain(base, 0, test_ids=run.test_ids(0).tolist()) if num_classes == 2 else None
        assert whole is None or np.abs(whole - kept).max() > 1e-3 * np.abs(kept).max()
    assert set(run.summary()["method"]) == {*MASKED, "random"}
    (train,) = [stage for stage in run.plan.stages if stage.name == "train"]
    assert (train.units, run.plan.needs.features, run.plan.needs.derived) == (1, (), ())


class Subnetwork(nn.Module):
    """A hidden layer of which some units are off."""

    def __init__(self, first: nn.Module, last: nn.Module, kept: Tensor) -> None:
        super().__init__()
        self.first, self.last, self.kept = first, last, kept

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.last(torch.tanh(self.first(inputs)) * self.kept)
        return result


def test_a_model_without_dropout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match="needs a model with dropout layers, and this one has none"):
        prepare(over_dropout(2, problem={"name": "tests.toys:Blobs"}), Store(str(tmp_path)), [str(ROOT)])


def assert_strongest_are_those_of(whole: gr.Run, kept: gr.Run, methods: Sequence[str], tolerance: float = 0.0) -> None:
    """Ids, and scores to ``tolerance`` of the largest, of each seed's strongest scores of each sign."""
    for method, seed, sign in product(methods, whole.plan.experiment.seeds, ("negative", "positive")):
        ids, scores = kept.strongest(method, seed, sign)
        phi, order = whole.attributions(method, seed).T, {sample: row for row, sample in enumerate(whole.train_ids(seed).tolist())}
        expected = np.take_along_axis(phi, np.vectorize(order.get)(ids), axis=1)
        np.testing.assert_allclose(scores, expected, rtol=0, atol=tolerance * np.abs(phi).max(), err_msg=f"{method} {sign}")
        ranked = np.sort(phi, axis=1)[:, : ids.shape[1]] if sign == "negative" else -np.sort(-phi, axis=1)[:, : ids.shape[1]]
        np.testing.assert_allclose(scores, ranked, rtol=0, atol=tolerance * np.abs(phi).max(), err_msg=f"{method} {sign}")


@pytest.mark.parametrize("num_classes", [2, 3])
def test_the_strongest_of_means_over_networks_are_those_of_all_scores(num_classes: int, tmp_path: Path) -> None:
    """Bit for bit in the same blocks; with another budget, of some points at a time and in several spans, to rounding."""
    problem = {"name": "tests.toys:Dropped", "options": {"num_classes": num_classes}}
    ensembles = {name: {"method": base, "size": 3} for name, base in BASES.items()}
    ensembles |= {
        "smaller": {"method": "ntk-final/target", "size": 2},
        "masked": {"method": "ntk-final/target", "over": "dropout", "size": 2},
    }
    fields: dict[str, Any] = {"seeds": 1, "problem": problem, "target": {"output": num_classes - 2}, "ensembles": ensembles}
    fields |= {"methods": [*ensembles, "ntk-final/target", "random"], "influence": {"system": "primal"}}
    store: dict[str, Any] = {"store": str(tmp_path), "serial": True, "search_path": [str(ROOT)]}
    whole = gr.run(declared(**fields), **store)
    kept = gr.run(declared(**fields, name="kept", attributions={"top": 5}), **store)
    assert_strongest_are_those_of(whole, kept, [*ensembles, "ntk-final/target"])
    narrow = {"name": "narrow", "attributions": {"top": 4}, "resources": {"memory_budget": "24KiB"}}
    small = gr.run(declared(**fields, **narrow), **store)
    assert_strongest_are_those_of(whole, small, [name for name in ensembles if name != "curved"], tolerance=1e-5)
    points = whole.test_ids(0).tolist()
    for name in ("summed", "curved"):
        ids, scores = kept.explain(name, 0, test_ids=points, top=5)["negative"]
        expected = kept.strongest(name, 0)
        np.testing.assert_array_equal(ids, expected[0])
        np.testing.assert_allclose(scores, expected[1], rtol=1e-6)


def test_more_checkpoints_than_epochs_are_refused(tmp_path: Path) -> None:
    ensembles = {"mean": {"method": "ntk-final/target", "over": "checkpoints", "size": 5}}
    with pytest.raises(PlanError, match=r"more models than epochs\n  where: ensembles.mean.size\n  expected: at most 4"):
        prepare(declared(ensembles=ensembles, methods=["mean", "random"]), Store(str(tmp_path)), [str(ROOT)])


@pytest.mark.parametrize(
    ("ensembles", "message"),
    [
        ({"many": {"method": "random"}}, "in many.method a method whose scores can be averaged over models[\\s\\S]*got random"),
        ({"many": {"method": "ntk-final/surrogate"}}, "got ntk-final/surrogate"),
        ({"many": {"method": "ekfac", "over": "checkpoints"}}, "got ekfac, which can be averaged over seeds"),
        ({"many": {"method": "ntk-middle/target", "over": "checkpoints"}}, "with over: checkpoints, a method at checkpoint final"),
        ({"many": {"method": "tracincp", "over": "checkpoints"}}, "with over: checkpoints, a method at checkpoint final"),
        ({"many": {"method": "gradcos", "over": "checkpoints"}}, "with over: checkpoints, a method at checkpoint final"),
        ({"many": {"method": "trakc"}}, "nearest: trak"),
        ({"many": {"method": "trak", "size": 1}}, "2"),
        ({"ekfac": {"method": "ekfac"}}, "another name: 'ekfac' is reserved"),
        ({"many": {"method": "more"}, "more": {"method": "trak"}}, "a method of one network, not more, which is an ensemble itself"),
    ],
)
def test_what_is_no_ensemble_is_refused(ensembles: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        declared(ensembles=ensembles, methods=["many", "random"])
    assert "unknown method 'many'" not in str(refused.value), "its own fault is told, and no other"


def test_its_name_and_its_address_are_its_own() -> None:
    method = declared().method("curved")
    assert (method.kernel, method.networks) == ("ekfac", 3)
    assert describe(method).formula.startswith("mean over 3 networks of ")
    assert not method.follows_labels
