"""The damping where none is declared: relative, under other addresses; a declared one keeps meaning and addresses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import genrep_dist as gr
from genrep_dist.config import Experiment
from genrep_dist.config.sections import InfluenceSection
from genrep_dist.results.reporting import facts
from tests.experiments import ROOT

FIELDS: dict[str, Any] = {
    "name": "toy",
    "problem": {"name": "tests.toys:Blobs"},
    "seeds": 1,
    "test_points": 2,
    "methods": ["influence-final/target"],
    "deletion": {"counts": [0]},
}
ABSOLUTE = {"damping": 0.1, "damping_unit": "absolute"}
RELATIVE = {"damping": 0.1, "damping_unit": "mean-eigenvalue"}


def declared(**fields: Any) -> Experiment:
    return Experiment.model_validate(FIELDS | fields)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, RELATIVE),
        ({"influence": {}}, RELATIVE),
        ({"influence": {"curvature": "last-layer", "system": "primal"}}, RELATIVE),
        ({"influence": {"damping_unit": "mean-eigenvalue"}}, RELATIVE),
        ({"influence": {"damping": 0.1}}, ABSOLUTE),
        ({"influence": {"damping_unit": "absolute"}}, ABSOLUTE),
        ({"influence": {"curvature": "hessian"}}, ABSOLUTE),
        ({"influence": {"allow_zero_curvature": True}}, ABSOLUTE),
        ({"tune": {"parameter": "damping", "values": [0.1, 1], "seeds": 2}}, ABSOLUTE),
        ({"tune": {"grid": {"influence.damping": [0.1, 1]}, "seeds": 2}}, ABSOLUTE),
        ({"tune": {"grid": {"surrogate.lambda": [0.1, 1]}, "seeds": 2}}, RELATIVE),
    ],
)
def test_what_an_experiment_means(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    found = declared(**fields)
    assert found.influence.model_dump(include={"damping", "damping_unit"}) == expected
    again = Experiment.model_validate(found.resolved())
    assert again == found
    assert again.result_fields() == found.result_fields()


def test_addresses() -> None:
    """A declared absolute damping of 0.1 is left out of the addresses, as it always was; the relative default is in them, if it is used."""
    assert "influence" not in declared(influence={"damping": 0.1}).result_fields()
    assert declared().result_fields()["influence"] == {"damping_unit": "mean-eigenvalue"}
    for methods in (["ntk-final/target", "tracincp"], ["random"]):
        assert "influence" not in declared(methods=methods).result_fields()
        assert declared(methods=methods, influence={"damping": 3}).result_fields()["influence"] == {"damping": 3.0}
    assert InfluenceSection.model_validate({}).damping_unit == "absolute"


def test_experiments_that_ship_declare_it() -> None:
    for path in sorted((ROOT / "jobs/experiments").rglob("*.yaml")):
        found = gr.load_experiment(str(path), profile="cpu" if "profiles:" in path.read_text() else None)
        assert not found.uses("influence") or found.influence.damping_unit == "absolute" or "damping" in path.read_text(), path


def test_the_report_shows_the_absolute_value(tmp_path: Path) -> None:
    run = gr.run(declared(), store=str(tmp_path), serial=True)
    (certificate,) = run.certificates().to_dicts()
    model, data = run.context.model(0, run.plan.keys.epochs), run.train
    gradients = torch.func.vmap(torch.func.grad(lambda p, x: torch.func.functional_call(model, p, (x[None],)).squeeze()), (None, 0))(
        {name: value.detach() for name, value in model.named_parameters()}, data.inputs
    )
    flat = torch.cat([part.flatten(1) for part in gradients.values()], dim=1).double()
    p = torch.sigmoid(torch.as_tensor(run.context.train_outputs(0, run.plan.keys.epochs)).double()).squeeze(1)
    mean = float(((p * (1 - p)) * flat.square().sum(dim=1)).mean()) / flat.shape[1]
    assert certificate["damping"] == pytest.approx(0.1 * mean, rel=1e-4)
    text = facts(run, run.judge())["Damping of H"]
    assert text == f"0.1 times the mean eigenvalue of H: {certificate['damping']:.3g}; not tuned"
