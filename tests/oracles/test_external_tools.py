"""Other tools' scores, made by the recipes of docs/external-scores.md as they are printed there, against our own numbers.

Each test runs the real library, where it is installed: the tool scores an exported model, the scores are read as the document declares
them, and must be what the formula says. Models are float32, and so are the tools' sums: agreement is to 1e-4 of the largest score.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import yaml
from torch import Tensor

from genrep_dist.config.sections import ExternalSection
from genrep_dist.core.attribution import attribute, tracincp
from genrep_dist.core.gradients.model import model_outputs
from genrep_dist.core.gradients.per_sample import per_sample_gradients
from genrep_dist.core.importances.target import target_importance
from genrep_dist.core.kernels.blocks import ntk_block
from genrep_dist.external import SCORE_LAYOUTS, Exported, load_external, open_exported
from genrep_dist.results import Run
from genrep_dist.runner.export import export_problem
from genrep_dist.runner.run import train_originals
from tests.experiments import ROOT, experiment

DOCUMENT = (ROOT / "docs" / "external-scores.md").read_text()

# The libraries' own warnings are theirs to mend.
pytestmark = pytest.mark.filterwarnings("ignore")

Array = npt.NDArray[Any]
KRONFLUENCE = "kronfluence is not installed (it brings torchvision and accelerate)"


def recipe(tool: str) -> tuple[str, ExternalSection]:
    """The program and the declaration that stand under a tool's heading."""
    (text,) = re.findall(rf"^### {tool}\n(.*?)(?=^### |\Z)", DOCUMENT, flags=re.MULTILINE | re.DOTALL)
    (program,) = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    (declared,) = re.findall(r"^```yaml\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return program, ExternalSection.model_validate(yaml.safe_load(declared))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    asked = experiment(options={"num_classes": 3, "train_size": 24}, methods=["tracincp"], test_points=4)
    return train_originals(asked, str(tmp_path_factory.mktemp("store")), serial=True)


@pytest.fixture
def place(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder that holds the exported models, as the recipes expect it."""
    list(export_problem(run, tmp_path / "models"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def judged(run: Run, section: ExternalSection) -> dict[int, Array]:
    """Phi of both seeds, as an experiment reads it; verified to be of its models."""
    keys = run.plan.keys
    found = load_external(
        "theirs",
        section,
        [Path()],
        seeds=[0, 1],
        models={seed: keys.model(seed) for seed in (0, 1)},
        train_ids=run.train.ids.numpy(),
        test_ids=run.test.ids.numpy(),
        positions={seed: keys.test_positions(seed) for seed in (0, 1)},
    )
    assert all(scores.verified for scores in found.values())
    return {seed: scores.phi for seed, scores in found.items()}


def follow(run: Run, tool: str, program: str | None = None) -> dict[int, Array]:
    """Run a tool's recipe, or a variation of it, and read what it wrote."""
    printed, section = recipe(tool)
    exec(compile(program or printed, f"docs/external-scores.md: {tool}", "exec"), {"__name__": "recipe"})
    return judged(run, section)


def term(problem: Exported) -> tuple[Tensor, Tensor]:
    """Alpha (N, C) of the target derivative and the NTK (N, C, M), at the parameters that the model has now; float64."""
    train = problem.train
    alpha = target_importance(problem.loss, model_outputs(problem.model, train.inputs).detach(), train.targets).double()
    left = per_sample_gradients(problem.model, train.inputs)
    right = per_sample_gradients(problem.model, problem.test_points.inputs, problem.targets)
    return alpha, ntk_block(left, right).double()


def our_tracincp(problem: Exported) -> Array:
    def terms() -> Iterator[tuple[float, Tensor, Tensor]]:
        for checkpoint in problem.checkpoints:
            problem.model.load_state_dict(checkpoint.state)
            yield checkpoint.rate, *term(problem)

    return tracincp(terms()).numpy()


def our_target(problem: Exported) -> Array:
    """ntk-final/target: what one step on each training sample does to the logit, to first order and up to the rate."""
    return attribute(*term(problem)).numpy()


def agree(theirs: Array, ours: Array) -> None:
    assert np.abs(ours).max() > 0.01, "there is something to agree on"
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4 * np.abs(ours).max())


def same_sign(theirs: Array, ours: Array) -> None:
    """Positive correlation at every test point."""
    for column in range(ours.shape[1]):
        assert np.corrcoef(theirs[:, column], ours[:, column])[0, 1] > 0.3


def installed(package: str, at_least: tuple[int, int]) -> bool:
    try:
        found = version(package)
    except PackageNotFoundError:
        return False
    return tuple(int(part) for part in found.split(".")[:2]) >= at_least


def test_captums_tracincp_is_ours(run: Run, place: Path) -> None:
    pytest.importorskip("captum", reason="captum is not installed")
    for seed, phi in follow(run, "captum").items():
        agree(phi, our_tracincp(open_exported(place / "models", seed)))


def test_captums_recipe_for_one_logit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the two changes that the document names."""
    pytest.importorskip("captum", reason="captum is not installed")
    asked = experiment(options={"num_classes": 2, "train_size": 24}, methods=["tracincp"], test_points=4)
    binary = train_originals(asked, str(tmp_path / "store"), serial=True)
    list(export_problem(binary, tmp_path / "models"))
    monkeypatch.chdir(tmp_path)
    labels, loss = "problem.train.targets[:, None]", 'torch.nn.BCEWithLogitsLoss(reduction="sum")'
    assert f"the labels are `{labels}`" in DOCUMENT
    assert f"`{loss}`" in DOCUMENT
    program = recipe("captum")[0].replace("problem.train.targets)", f"{labels})")
    program = program.replace('torch.nn.CrossEntropyLoss(reduction="sum")', loss)
    assert labels in program
    assert loss in program
    for seed, phi in follow(binary, "captum", program).items():
        agree(phi, our_tracincp(open_exported(tmp_path / "models", seed)))


def test_dattris_tracin_is_our_tracincp(run: Run, place: Path) -> None:
    pytest.importorskip("dattri", reason="dattri is not installed")
    for seed, phi in follow(run, "dattri").items():
        agree(phi, our_tracincp(open_exported(place / "models", seed)))


def test_dattris_graddot_is_the_ntk_with_the_target_derivative(run: Run, place: Path) -> None:
    pytest.importorskip("dattri", reason="dattri is not installed")
    program = recipe("dattri")[0]
    graddot = program.replace("weight_list=rates", "weight_list=torch.ones(1)").replace(
        "in problem.checkpoints]", "in problem.checkpoints[-1:]]"
    )
    assert graddot.count("[-1:]") == 2
    for seed, phi in follow(run, "dattri", graddot).items():
        agree(phi, our_target(open_exported(place / "models", seed)))


def test_kronfluence_without_curvature_is_the_ntk_with_the_target_derivative(run: Run, place: Path) -> None:
    pytest.importorskip("kronfluence", reason=KRONFLUENCE)
    identity = (
        recipe("kronfluence")[0].replace("strategy='ekfac'", "strategy='identity'").replace('strategy="ekfac"', 'strategy="identity"')
    )
    assert "identity" in identity
    for seed, phi in follow(run, "kronfluence", identity).items():
        agree(phi, our_target(open_exported(place / "models", seed)))


def test_kronfluences_ekfac_under_heavy_damping_is_so_too(run: Run, place: Path) -> None:
    # (H + delta)^-1 tends to 1/delta: sign, direction and order are those of the product without curvature.
    pytest.importorskip("kronfluence", reason=KRONFLUENCE)
    program = recipe("kronfluence")[0]
    damped = program.replace("import Analyzer,", "import Analyzer, ScoreArguments,").replace(
        "64, 64, overwrite", "64, 64, score_args=ScoreArguments(damping_factor=1e6), overwrite"
    )
    assert damped.count("ScoreArguments") == 2
    light, heavy = follow(run, "kronfluence"), follow(run, "kronfluence", damped)
    for seed, phi in heavy.items():
        agree(phi * 1e6, our_target(open_exported(place / "models", seed)))
        assert np.abs(light[seed] - phi * 1e6).max() > 0.01


def test_trak_under_heavy_regularisation_is_the_ntk_of_margins(run: Run, place: Path) -> None:
    # (Phi^T Phi + lambda)^-1 tends to a multiple of one, which TRAK scales away. Without a projection phi is then the product of the
    # margins' gradients, times 1 - p.
    pytest.importorskip("trak", reason="traker is not installed")
    program = recipe("trak")[0]
    projector = 'BasicProjector(size, 512, seed=0, proj_type=ProjectionType.rademacher, device="cpu")'
    plain = program.replace(projector, 'NoOpProjector(device="cpu")').replace("BasicProjector", "NoOpProjector")
    plain = plain.replace("proj_dim=512", "proj_dim=size").replace("lambda_reg=1e-3", "lambda_reg=1e6")
    assert plain.count("NoOpProjector") == 2
    assert "proj_dim=size" in plain
    assert "1e6" in plain
    for seed, phi in follow(run, "trak", plain).items():
        problem = open_exported(place / "models", seed)
        agree(phi, margins(problem))
        same_sign(phi, our_target(problem))


def test_traks_recipe_as_printed(run: Run, place: Path) -> None:
    pytest.importorskip("trak", reason="traker is not installed")
    assert all(phi.shape == (24, 4) for phi in follow(run, "trak").values())


def margins(problem: Exported) -> Array:
    """(1 - p_i) <dm_i, dm_j>, m = log p/(1-p) of a sample's label in training, of the explained class in testing."""

    def margin(inputs: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        p = problem.model(inputs).softmax(dim=1).gather(1, classes[:, None])[:, 0]
        rows = [torch.autograd.grad(m, list(problem.model.parameters()), retain_graph=True) for m in torch.log(p / (1 - p))]
        return torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows]), p.detach()

    left, p = margin(problem.train.inputs, problem.train.targets)
    right, _ = margin(problem.test_points.inputs, problem.targets)
    return ((1 - p)[:, None] * (left @ right.T)).double().numpy()


def test_pydvls_direct_influence_is_the_explicit_inverse(run: Run, place: Path) -> None:
    if not installed("pyDVL", (0, 10)):
        pytest.skip("pyDVL 0.10 is not installed (it brings cvxpy and dask, and asks for numpy 1)")
    for seed, phi in follow(run, "pydvl").items():
        problem = open_exported(place / "models", seed)
        agree(phi, explicit_influence(problem, damping=0.1))
        same_sign(phi, our_target(problem))


def explicit_influence(problem: Exported, damping: float) -> Array:
    """g_i^T (H + damping)^-1 g_j, g the gradients of the losses and H the Hessian of their mean over the training samples."""
    names = [name for name, _ in problem.model.named_parameters()]
    parameters = [parameter.detach() for parameter in problem.model.parameters()]
    flat = torch.cat([parameter.reshape(-1) for parameter in parameters])

    def losses(numbers: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
        pieces = torch.split(numbers, [parameter.numel() for parameter in parameters])
        state = {name: piece.reshape(like.shape) for name, piece, like in zip(names, pieces, parameters, strict=True)}
        logits = torch.func.functional_call(problem.model, state, inputs)
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none")

    train, points = problem.train, problem.test_points
    hessian = torch.func.hessian(lambda p: losses(p, train.inputs, train.targets).mean())(flat).double()
    left = torch.func.jacrev(lambda p: losses(p, train.inputs, train.targets))(flat).double()
    right = torch.func.jacrev(lambda p: losses(p, points.inputs, problem.targets))(flat).double()
    scores: Array = (left @ torch.linalg.solve(hessian + damping * torch.eye(len(flat)), right.T)).numpy()
    return scores


def test_quandas_explainers_wrap_captum(run: Run, place: Path) -> None:
    if not installed("quanda", (0, 5)):
        pytest.skip("quanda 0.5 is not installed (it asks for captum 0.8)")
    for seed, phi in follow(run, "quanda").items():
        same_sign(phi, our_target(open_exported(place / "models", seed)))


def test_every_layout_has_its_recipe() -> None:
    for tool in set(SCORE_LAYOUTS) - {"plain"}:
        program, section = recipe(tool)
        compile(program, tool, "exec")
        assert section.layout in ("plain", tool)
        assert not section.unverified
