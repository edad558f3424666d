"""TracInCP against captum's, in float64.

What must be said to captum for the two to mean the same (Eq. 14):
- Its default checkpoint loader returns a rate of 1 when the file holds none; ours loads the state and returns the checkpoint's eta.
- The loss is summed over a batch (or given per sample). With a mean, captum multiplies by the batch size again.
- ``test_loss_fn`` is the target f itself, the declared logit, not the test sample's loss. captum's score is then
  sum_t eta_t <dL_i/dtheta, df/dtheta>: positive says that training on sample i lowers f, as a step goes against dL_i. Ours says what raises
  f, hence the minus. (With the loss on both sides, captum's positive scores lower the test loss: its "proponents".)
- It leaves the model in the mode that it finds; eval() is the caller's.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from captum.influence import TracInCP, TracInCPFast
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from genrep_dist.core.attribution import tracincp
from genrep_dist.core.gradients.last_layer import find_last_layer, last_layer_features
from genrep_dist.core.gradients.model import model_outputs
from genrep_dist.core.gradients.per_sample import per_sample_gradients
from genrep_dist.core.importances.target import target_importance
from genrep_dist.core.kernels.blocks import last_layer_block, ntk_block
from genrep_dist.core.losses import LOSSES, Loss
from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.training.loop import train
from genrep_dist.training.observers import Checkpoint, Checkpoints
from genrep_dist.training.randomness import Randomness
from tests.core.models import Squeezed, initialise, rows, seeded
from tests.oracles.captum_losses import ASKS_FOR_GRADIENTS, DeclaredLogit, Reduction


class Run:
    """A small network, its training samples, its test samples with their declared outputs, and its checkpoints under a falling rate."""

    def __init__(self, num_outputs: int) -> None:
        self.loss: Loss = LOSSES["logistic" if num_outputs == 1 else "softmax"]
        body = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, num_outputs))
        self.model: nn.Module = initialise(Squeezed(body) if num_outputs == 1 else body, 3)
        self.train, self.test = rows(17, 4), rows(6, 4, seed=2)
        self.last_layer = find_last_layer(self.model, self.train)
        labels = torch.randint(max(2, num_outputs), (17,), generator=seeded(4))
        self.targets = labels.double() if num_outputs == 1 else labels
        self.index = torch.arange(6) % num_outputs
        recipe = Recipe(epochs=6, batch_size=5, learning_rate=0.5, schedule="cosine")
        data = Dataset(self.train, self.targets, torch.arange(17))
        observer = Checkpoints([0, 2, 3, 6], data, recipe)
        train(self.model, self.loss, recipe, data, Randomness(1), observers=[observer])
        self.checkpoints = observer.saved
        self.model.eval()

    def load(self, checkpoint: Checkpoint) -> float:
        self.model.load_state_dict(checkpoint.state)
        return checkpoint.rate

    def terms(self) -> Iterator[tuple[float, Tensor, Tensor]]:
        for checkpoint in self.checkpoints:
            rate = self.load(checkpoint)
            alpha = target_importance(self.loss, model_outputs(self.model, self.train).detach(), self.targets)
            test_gradient = per_sample_gradients(self.model, self.test, self.index)
            yield rate, alpha, ntk_block(per_sample_gradients(self.model, self.train), test_gradient)

    def last_layer_terms(self, *, bias: bool) -> Iterator[tuple[float, Tensor, Tensor]]:
        for checkpoint in self.checkpoints:
            rate = self.load(checkpoint)
            logits = model_outputs(self.model, self.train).detach()
            # The bias is the last column, of ones.
            train, test = (last_layer_features(self.model, x)[:, : None if bias else -1] for x in (self.train, self.test))
            yield rate, target_importance(self.loss, logits, self.targets), last_layer_block(train, test, self.index, logits.shape[1])

    def captums(self, reduction: Reduction, layers: list[str] | None = None) -> Tensor:
        """captum's scores (M, N), with the parameters of all layers or of those named."""
        criterion = nn.BCEWithLogitsLoss if self.loss.name == "logistic" else nn.CrossEntropyLoss
        explainer = TracInCP(
            self.model,
            TensorDataset(self.train, self.targets),
            self.checkpoints,
            checkpoints_load_func=lambda _model, checkpoint: self.load(checkpoint),
            layers=layers,
            loss_fn=criterion(reduction=reduction),
            test_loss_fn=DeclaredLogit(reduction),
            batch_size=5,
            sample_wise_grads_per_batch=reduction == "sum",
        )
        scores: Tensor = explainer.influence((self.test, self.index))
        return scores


@pytest.mark.filterwarnings(ASKS_FOR_GRADIENTS)
@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("num_outputs", [1, 3])
def test_tracincp_agrees_with_captum(num_outputs: int, reduction: Reduction) -> None:
    run = Run(num_outputs)
    theirs = -run.captums(reduction).T
    ours = tracincp(run.terms())
    assert ours.dtype == theirs.dtype == torch.float64
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10 * float(theirs.abs().max()))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=0)


@pytest.mark.filterwarnings(ASKS_FOR_GRADIENTS)
@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("num_outputs", [1, 3])
def test_the_last_layers_parameters_alone_agree_with_captum(num_outputs: int, reduction: Reduction) -> None:
    run = Run(num_outputs)
    theirs = -run.captums(reduction, layers=[run.last_layer]).T
    torch.testing.assert_close(tracincp(run.last_layer_terms(bias=True)), theirs, rtol=1e-8, atol=0)


def test_captums_fast_form_is_the_last_layers_weights_without_its_bias() -> None:
    run = Run(3)
    explainer = TracInCPFast(
        run.model,
        run.model.get_submodule(run.last_layer),
        TensorDataset(run.train, run.targets),
        run.checkpoints,
        checkpoints_load_func=lambda _model, checkpoint: run.load(checkpoint),
        loss_fn=nn.CrossEntropyLoss(reduction="sum"),
        test_loss_fn=DeclaredLogit("sum"),
        batch_size=5,
    )
    theirs: Tensor = -explainer.influence((run.test, run.index)).T
    torch.testing.assert_close(tracincp(run.last_layer_terms(bias=False)), theirs, rtol=1e-8, atol=0)
    assert float((tracincp(run.last_layer_terms(bias=True)) - theirs).abs().max()) > 0.1


@pytest.mark.parametrize("num_outputs", [1, 3])
def test_the_agreement_is_not_for_want_of_differences(num_outputs: int) -> None:
    # Rates and parameters change between checkpoints, so that neither a wrong rate nor a state that is not loaded could pass above.
    run = Run(num_outputs)
    assert [checkpoint.epoch for checkpoint in run.checkpoints] == [0, 2, 3, 6]
    assert len({checkpoint.rate for checkpoint in run.checkpoints}) == 4
    terms = list(run.terms())
    whole, size = tracincp(terms), float(tracincp(terms).abs().max())
    assert float((tracincp((1.0, alpha, kernel) for _, alpha, kernel in terms) - whole).abs().max()) > 0.1 * size
    last = terms[-1]
    assert float((tracincp((rate, last[1], last[2]) for rate, _, _ in terms) - whole).abs().max()) > 0.1 * size
