"""Ensembles over seeds: means of the scores of the explained network and of others, judged as methods of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import genrep_dist as gr
from genrep_dist.core.methods import describe
from genrep_dist.errors import ConfigError
from genrep_dist.runner.run import train_originals
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


@pytest.mark.parametrize(
    ("ensembles", "message"),
    [
        ({"many": {"method": "random"}}, "computed of one trained network, by no solved importance, not random"),
        ({"many": {"method": "ntk-final/surrogate"}}, "by no solved importance, not ntk-final/surrogate"),
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
