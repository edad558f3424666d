"""Ensembles over seeds: means of the scores of the explained network and of others, judged as methods of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import genrep_dist as gr
from genrep_dist.core.methods import describe
from genrep_dist.errors import ConfigError, PlanError
from genrep_dist.runner.run import train_originals
from genrep_dist.workflow.planning import make_plan
from tests.experiments import ROOT

BASES = {"curved": "ekfac", "summed": "tracincp", "shared": "last-layer-final/tracking", "scored": "gradcos", "near": "knn-shapley"}
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
    others = {"name": "apart", "seeds": networks, "methods": [*BASES.values(), "random"], "ensembles": {}}
    apart = declared(**{**CASES[case], **others})
    plain = train_originals(apart, str(tmp_path), serial=True, search_path=[str(ROOT)])
    for seed, own in seeds.items():
        ids = run.test_ids(seed).tolist()
        for name, base in BASES.items():
            expected = np.mean([plain.explain(base, one, test_ids=ids) for one in own], axis=0)
            scale = np.abs(expected).max()
            np.testing.assert_allclose(run.attributions(name, seed), expected, rtol=0, atol=1e-5 * scale, err_msg=name)
            np.testing.assert_allclose(run.explain(name, seed, test_ids=ids), run.attributions(name, seed), rtol=0, atol=1e-5 * scale)
            assert keys.attribution(seed, run.plan.experiment.method(base)) == plain.plan.keys.attribution(seed, methods_of(plain)[base])
    assert set(run.summary()["method"]) == {*BASES, "random"}
    assert run.training().height == len(seeds)
    (train,) = [stage for stage in run.plan.stages if stage.name == "train"]
    assert (train.units, f"{2 * len(seeds)} of them for ensembles alone" in train.what) == (3 * len(seeds), True)


def methods_of(run: gr.Run) -> dict[str, Any]:
    return {method.name: method for method in run.plan.experiment.parsed_methods}


@pytest.mark.parametrize(
    ("ensembles", "message"),
    [
        ({"many": {"method": "random"}}, "computed of one trained network without a gram, not random"),
        ({"many": {"method": "ntk-final/surrogate"}}, "without a gram, not ntk-final/surrogate"),
        ({"many": {"method": "trakc"}}, "nearest: trak"),
        ({"many": {"method": "trak", "size": 1}}, "2"),
        ({"ekfac": {"method": "ekfac"}}, "another name: 'ekfac' is reserved"),
        ({"many": {"method": "more"}, "more": {"method": "trak"}}, "unknown method 'more'"),
    ],
)
def test_what_is_no_ensemble_is_refused(ensembles: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        declared(ensembles=ensembles, methods=["random"])


def test_an_ensemble_of_a_gram_is_refused_with_a_way_out(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"ensembles": {"many": {"method": "trak", "size": 2}}, "methods": ["many", "random"]}
    dual = declared(**fields, influence={"system": "dual"})
    with pytest.raises(PlanError, match=r"ensembles.many.method: trak[\s\S]*influence.system: primal"):
        gr.run(dual, store=str(tmp_path), serial=True, search_path=[str(ROOT)])
    primal = declared(**fields, influence={"system": "primal"}, projection={"dim": 16}, seeds=1)
    run = gr.run(primal, store=str(tmp_path), serial=True, search_path=[str(ROOT)])
    one = replace(run.plan.experiment.method("many"), networks=1)
    assert run.plan.keys.attribution(0, one) != run.plan.keys.attribution(0, run.plan.experiment.method("many"))
    assert describe(run.plan.experiment.method("many")).formula.startswith("mean over 2 networks of ")
    larger = run.plan.experiment.model_copy(update={"ensembles": declared(**fields).ensembles})
    assert make_plan(replace(run.plan.keys, experiment=larger), run.plan.shape).stages[0].units == 2
