"""Our EK-FAC against kronfluence's on a small network of a convolution and linear layers, all in float64.

What must be said to kronfluence for the two to mean the same: its factors are those of the empirical Fisher matrix (labels of the data),
its loss is the sum over a batch, and the measurement is the logit that is explained. Its score <g_test, (H + delta)^-1 dL_i/dtheta> is
positive where raising the weight of sample i lowers the logit: the minus of ours. Its own damping is a tenth of the mean of each layer's
eigenvalues, ours with `damping: 0.1`, `damping_unit: mean-eigenvalue`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from genrep_dist.core.attribution import attribute
from genrep_dist.core.importances.target import target_importance
from genrep_dist.testing.kernels import DenseInputs
from tests.core.test_ekfac import kernel

# The library's own warnings are its to mend.
pytestmark = pytest.mark.filterwarnings("ignore")
NUM_TRAIN, NUM_TEST, NUM_CLASSES = 60, 7, 3


def network() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(1, 4, 3, padding=1, stride=2), nn.ReLU(), nn.Conv2d(4, 5, 3, bias=False), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(20, 6), nn.Tanh(), nn.Linear(6, NUM_CLASSES)).double().eval()


def kronfluences(given: DenseInputs, explained: Tensor, test: Tensor, damping: float | None, folder: Path) -> Tensor:
    """Its scores (M, N) with the empirical Fisher matrix."""
    from kronfluence import Analyzer, FactorArguments, ScoreArguments, Task, prepare_model

    class Logits(Task):  # type: ignore[misc]
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            assert not sample
            return functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            total: Tensor = model(batch[0]).gather(1, batch[1][:, None]).sum()
            return total

    names = ("activation_covariance", "gradient_covariance", "eigendecomposition", "lambda", "per_sample_gradient")
    factors = FactorArguments(strategy="ekfac", use_empirical_fisher=True, **{f"{name}_dtype": torch.float64 for name in names})
    scores = ScoreArguments(
        damping_factor=damping,
        score_dtype=torch.float64,
        per_sample_gradient_dtype=torch.float64,
        precondition_dtype=torch.float64,
    )
    task, train = Logits(), TensorDataset(given.train_inputs, given.targets)
    analyzer = Analyzer("scores", prepare_model(network(), task), task, cpu=True, output_dir=str(folder), disable_tqdm=True)
    analyzer.fit_all_factors("ekfac", train, per_device_batch_size=16, factor_args=factors)
    points = TensorDataset(test, explained)
    analyzer.compute_pairwise_scores("scores", "ekfac", points, train, len(points), 16, score_args=scores)
    found: Tensor = analyzer.load_pairwise_scores("scores")["all_modules"]
    return found


@pytest.mark.parametrize("damping", [1e-3, None])
def test_the_scores_are_kronfluences(damping: float | None, tmp_path: Path) -> None:
    pytest.importorskip("kronfluence", reason="kronfluence is not installed (it brings torchvision and accelerate)")
    generator = torch.Generator().manual_seed(1)
    train, test = (torch.randn(count, 1, 8, 8, generator=generator, dtype=torch.float64) for count in (NUM_TRAIN, NUM_TEST))
    explained = torch.arange(NUM_TEST) % NUM_CLASSES
    given = DenseInputs(network(), train, test, explained)
    declared: dict[str, Any] = (
        {"damping": 0.1, "damping_unit": "mean-eigenvalue"} if damping is None else {"damping": damping, "damping_unit": "absolute"}
    )
    block, _ = kernel("empirical", **declared).columns(given)
    ours = attribute(target_importance(given.loss, given.outputs(), given.targets), block)
    theirs = -kronfluences(given, explained, test, damping, tmp_path).T.double()
    correlation = float(torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1])
    difference = float((ours - theirs).abs().max() / ours.abs().max())
    print(f"damping {damping}: correlation 1 - {1 - correlation:.1e}, largest difference {difference:.1e}")
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8 * float(theirs.abs().max()))
