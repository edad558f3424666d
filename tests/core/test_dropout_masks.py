"""Random subnetworks: one mask of each dropout layer for all samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from genrep_dist.core.dropout_masks import MaskedDropout, dropout_layers, mask_dropout
from genrep_dist.core.gradients.per_sample import per_sample_gradients
from genrep_dist.errors import ProblemError


class Shared(nn.Module):
    """One dropout layer in two places, and one that is off."""

    def __init__(self) -> None:
        super().__init__()
        dropout = nn.Dropout(0.4)
        self.layers = nn.Sequential(nn.Linear(6, 6), dropout, nn.Tanh(), nn.Linear(6, 6), dropout, nn.Dropout(0.0), nn.Linear(6, 2))

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.layers(inputs)
        return result


class Sequence(nn.Module):
    """A transformer encoder layer; ``first``: samples along the first axis of what it sees."""

    def __init__(self, *, first: bool = True) -> None:
        super().__init__()
        self.first = first
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=first)
        self.head = nn.Linear(8, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs if self.first else inputs.transpose(0, 1)
        seen = self.encoder(rows)
        result: Tensor = self.head(seen.mean(1 if self.first else 0))
        return result


def images() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 5, 3), nn.Dropout2d(0.5), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(80, 2))


CASES: dict[str, tuple[type[nn.Module] | object, tuple[int, ...]]] = {
    "shared": (Shared, (6,)),
    "transformer": (Sequence, (4, 8)),
    "images": (images, (2, 6, 6)),
}


@pytest.mark.parametrize("case", CASES)
def test_all_samples_have_one_mask_with_and_without_gradients(case: str) -> None:
    make, shape = CASES[case]
    torch.manual_seed(0)
    model, inputs = make().eval(), torch.randn(5, *shape)  # type: ignore[operator]
    plain = model(inputs)
    mask_dropout(model, 1, inputs)
    masked = model(inputs)
    assert not torch.allclose(masked, plain)
    with torch.no_grad():
        torch.testing.assert_close(model(inputs), masked.detach())
    torch.testing.assert_close(torch.cat([model(row[None]) for row in inputs]), masked)
    rows = per_sample_gradients(model, inputs)
    parameters = list(model.parameters())
    for sample, output in [(0, 0), (4, masked.shape[1] - 1)]:
        expected = torch.autograd.grad(model(inputs[sample][None])[0, output], parameters)
        torch.testing.assert_close(rows[sample, output], torch.cat([one.flatten() for one in expected]))


def test_masks_are_those_of_dropout_in_training() -> None:
    torch.manual_seed(0)
    inputs, layer = torch.randn(3, 4000), nn.Dropout(0.25)
    found = MaskedDropout(layer, 7)(inputs)
    kept = found[0] != 0
    torch.testing.assert_close(found, torch.where(kept, inputs / 0.75, 0.0))
    assert abs(float(kept.double().mean()) - 0.75) < 0.03
    assert torch.equal(found, MaskedDropout(layer, 7)(inputs))
    assert not torch.equal(found, MaskedDropout(layer, 8)(inputs))
    channels = MaskedDropout(nn.Dropout2d(0.5), 7)(torch.ones(2, 50, 3, 3)).flatten(2)
    assert torch.equal(channels.amin(2), channels.amax(2))
    assert set(channels.unique().tolist()) == {0.0, 2.0}
    assert not MaskedDropout(nn.Dropout(1.0), 7)(inputs).any()


def test_a_shared_layer_has_one_mask_and_layers_that_are_off_none() -> None:
    model = Shared().eval()
    assert dropout_layers(model) == ["layers.1", "layers.4"]
    mask_dropout(model, 1, torch.randn(2, 6))
    assert model.layers[1] is model.layers[4]


def test_what_has_no_fixed_mask_is_refused() -> None:
    with pytest.raises(ProblemError, match="a model with dropout layers, and this one has none"):
        mask_dropout(nn.Sequential(nn.Linear(2, 1), nn.Dropout(0.0)).eval(), 0, torch.randn(2, 2))
    with pytest.raises(ProblemError, match="depends on the other samples"):
        mask_dropout(Sequence(first=False).eval(), 0, torch.randn(2, 4, 8))
