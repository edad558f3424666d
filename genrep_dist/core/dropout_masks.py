"""Random subnetworks: dropout layers with one fixed mask for all samples."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from genrep_dist.core.gradients.model import model_outputs
from genrep_dist.errors import ProblemError
from genrep_dist.seeds import derive_seed

ELEMENTWISE, CHANNELWISE = (nn.Dropout,), (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


class MaskedDropout(nn.Module):
    """A dropout layer whose mask is a function of ``seed`` and of the shape of one sample: the same for all samples and all calls.

    It replaces a ``layer`` of :data:`ELEMENTWISE` or :data:`CHANNELWISE` type, in training and in evaluation mode alike.
    """

    def __init__(self, layer: nn.Module, seed: int) -> None:
        super().__init__()
        assert isinstance(layer, (*ELEMENTWISE, *CHANNELWISE))
        self.p, self.by_channel, self.seed = layer.p, isinstance(layer, CHANNELWISE), seed
        self.masks: dict[tuple[tuple[int, ...], torch.dtype, torch.device], Tensor] = {}

    def forward(self, inputs: Tensor) -> Tensor:
        """``inputs`` (B, ...) times the mask (...), scaled as by dropout in training: kept values are divided by 1 - p."""
        shape = tuple(inputs.shape[1:])
        key = (shape, inputs.dtype, inputs.device)
        if key not in self.masks:
            self.masks[key] = self._mask(shape).to(inputs.device, inputs.dtype)
        return inputs * self.masks[key]

    def _mask(self, shape: tuple[int, ...]) -> Tensor:
        drawn = (shape[0], *(1 for _ in shape[1:])) if self.by_channel else shape
        # By numpy: torch.func allows no random numbers of torch inside.
        kept = np.random.Generator(np.random.Philox(self.seed)).random(drawn) >= self.p
        return torch.from_numpy(kept / (1 - self.p) if self.p < 1 else kept.astype(np.float64))


def dropout_layers(model: nn.Module) -> list[str]:
    """Names of the layers that :func:`mask_dropout` replaces: those of torch's types with a probability above 0."""
    return [name for name, layer in model.named_modules(remove_duplicate=False) if type(layer) in (*ELEMENTWISE, *CHANNELWISE) and layer.p]


def mask_dropout(model: nn.Module, seed: int, inputs: Tensor) -> None:
    """Replace the dropout layers of ``model``, which is in evaluation mode, by such with fixed masks: a random subnetwork.

    A layer's mask depends on ``seed``, its name and the shape of a sample. Dropout of attention weights and of functions stays inactive.
    ``inputs`` (B, ...): some samples, at least two. Raises ProblemError for a model without such layers, and for one whose layers do not
    see one sample in each row.
    """
    names = dropout_layers(model)
    if not names:
        raise no_dropout()
    replaced: dict[nn.Module, MaskedDropout] = {}
    for name in names:
        layer, (parent, _, own) = model.get_submodule(name), name.rpartition(".")
        replaced.setdefault(layer, MaskedDropout(layer, derive_seed(seed, "dropout mask", name)).train(layer.training))
        setattr(model.get_submodule(parent), own, replaced[layer])
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            # Without gradients torch computes such a layer in one call, past its dropout layers, unless its activation is unknown.
            module.activation_relu_or_gelu = 0
    with torch.no_grad():
        seen = []
        for rows in (inputs[:2], inputs[:1]):
            model_outputs(model, rows)
            seen.append([set(layer.masks) for layer in replaced.values()])
    if seen[0] != seen[1]:
        name = next(name for name, *shapes in zip(names, *seen, strict=False) if shapes[0] != shapes[1])
        raise ProblemError(
            "a dropout layer has no fixed mask, as what it sees depends on the other samples",
            where=f"ensembles over dropout; model layer {name}",
            expected="inputs (B, ...) with one sample in each row, of one shape however many rows there are",
            got="another shape of a row for another number of rows",
            remedy="average over seeds or checkpoints instead",
        )


def no_dropout() -> ProblemError:
    """The error for a model without dropout layers."""
    return ProblemError(
        "an ensemble over dropout needs a model with dropout layers, and this one has none",
        where="ensembles",
        expected="nn.Dropout, nn.Dropout1d, nn.Dropout2d or nn.Dropout3d with p > 0 in the model",
        got="no such layer",
        remedy="average over seeds or checkpoints instead",
    )
