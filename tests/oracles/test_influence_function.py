"""The influence function (Eq. 15, 16) against captum's explicit inverse of the whole Hessian.

The models are linear, where the generalized Gauss-Newton is the Hessian. What must be said to captum for the two to mean the same:
- 1/n: its H is the sum over the samples, ours the mean. So n delta is its ``hessian_reg``, and its scores are 1/n of ours.
- Damping: it adds ``hessian_reg`` times an identity in float32, so n delta must be a number that float32 holds (a power of two here).
  Then it drops eigenvalues up to ``hessian_inverse_tol`` and all but the ``projection_dim`` largest: none may be dropped here.
- Sign: with f itself as ``test_loss_fn``, its score <dL_i/dtheta, (H + delta I)^-1 df/dtheta> is positive where raising the weight of
  sample i lowers f. Ours says what raises f, hence the minus.
"""

from __future__ import annotations

import pytest
import torch
from captum.influence import NaiveInfluenceFunction
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from genrep_dist.core.attribution import attribute
from genrep_dist.core.gradients.model import model_outputs
from genrep_dist.core.gradients.per_sample import per_sample_gradients
from genrep_dist.core.importances.target import target_importance
from genrep_dist.core.kernels.blocks import ntk_block
from genrep_dist.core.losses import LOSSES, Loss
from genrep_dist.core.solvers.gauss_newton import influence_kernel
from tests.core.models import Squeezed, initialise, rows, seeded
from tests.oracles.captum_losses import ASKS_FOR_GRADIENTS, DeclaredLogit, Reduction

N = 24


class Regression:
    """A linear model on 5 features with a bias, N training samples with their targets, 7 test samples with their declared outputs."""

    def __init__(self, num_outputs: int) -> None:
        self.loss: Loss = LOSSES["logistic" if num_outputs == 1 else "softmax"]
        layer = nn.Linear(5, num_outputs)
        self.model: nn.Module = initialise(Squeezed(layer) if num_outputs == 1 else layer, 3)
        self.train, self.test = rows(N, 5), rows(7, 5, seed=2)
        labels = torch.randint(max(2, num_outputs), (N,), generator=seeded(4))
        self.targets = labels.double() if num_outputs == 1 else labels
        self.index = torch.arange(7) % num_outputs

    def ours(self, damping: float) -> Tensor:
        """phi (N, M)."""
        jacobian, test_gradient = per_sample_gradients(self.model, self.train), per_sample_gradients(self.model, self.test, self.index)
        flat, logits = jacobian.flatten(0, 1), model_outputs(self.model, self.train).detach()
        kernel, _ = influence_kernel(
            flat @ flat.T,
            ntk_block(jacobian, test_gradient),
            self.loss.second_derivative(logits, self.targets),
            damping=damping,
            relative=False,
            num_parameters=flat.shape[1],
        )
        return attribute(target_importance(self.loss, logits, self.targets), kernel)

    def captums(self, damping: float, reduction: Reduction) -> Tensor:
        """captum's scores (M, N)."""
        criterion = nn.BCEWithLogitsLoss if self.loss.name == "logistic" else nn.CrossEntropyLoss
        # It seeds torch's global generator.
        with torch.random.fork_rng(devices=[]):
            explainer = NaiveInfluenceFunction(
                self.model,
                TensorDataset(self.train, self.targets),
                self.model.state_dict(),
                # The model is at its checkpoint already, and the rate that a loader returns plays no part here.
                checkpoints_load_func=lambda _model, _state: 1.0,
                loss_fn=criterion(reduction=reduction),
                test_loss_fn=DeclaredLogit(reduction),
                batch_size=7,
                sample_wise_grads_per_batch=reduction == "sum",
                projection_dim=1000,
                hessian_reg=N * damping,
                hessian_inverse_tol=0.0,
            )
        scores: Tensor = explainer.influence((self.test, self.index))
        return scores


@pytest.mark.filterwarnings(ASKS_FOR_GRADIENTS)
@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("sum_damping", [2.0**-7, 1.0, 64.0])
@pytest.mark.parametrize("num_outputs", [1, 3])
def test_influence_agrees_with_captum(num_outputs: int, sum_damping: float, reduction: Reduction) -> None:
    regression = Regression(num_outputs)
    theirs = -N * regression.captums(sum_damping / N, reduction).T
    ours = regression.ours(sum_damping / N)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10 * float(theirs.abs().max()))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=0)


@pytest.mark.parametrize("num_outputs", [1, 3])
def test_the_agreement_is_not_for_want_of_curvature(num_outputs: int) -> None:
    # At the dampings above neither the curvature nor the damping is negligible: scaling as if there were none would be far off.
    regression = Regression(num_outputs)
    weak, middle, strong = (regression.ours(damping / N) * damping for damping in (2.0**-7, 1.0, 64.0))
    size = float(strong.abs().max())
    assert float((weak - middle).abs().max()) > 0.1 * size
    assert float((middle - strong).abs().max()) > 0.1 * size
