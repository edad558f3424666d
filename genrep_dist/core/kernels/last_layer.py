"""The last-layer kernel: inner products of penultimate activations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from genrep_dist.core.kernels.base import FeatureKernel, KernelSizes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from genrep_dist.core.kernels.base import Rows


class LastLayerKernel(FeatureKernel):
    """k(x, z) = <Phi(x), Phi(z)> times the C x C identity, with Phi the last layer's inputs and the bias's constant 1 (Eq. 11)."""

    name = "last-layer"
    formula = "<Phi(x_i), Phi(x)>"
    source = "penultimate activations and a constant 1; Tsai et al. 2023, Eq. 11"
    needs = ("last linear layer",)
    settings = ("last_layer",)
    takes_weights = True

    def __init__(self, last_layer: str | None = None) -> None:
        self.layer = last_layer

    def sizes(self, model: nn.Module, inputs: Tensor) -> KernelSizes:
        width = self.features(model, inputs[:2]).shape[1]
        # A forward pass is a small part of the cost of gradients.
        return KernelSizes(held=width, products=width, stored_bytes=4 * width, gradient_passes=0.2)

    def num_parameters(self, model: nn.Module, inputs: Tensor) -> int:
        from genrep_dist.core.gradients.last_layer import find_last_layer

        layer = model.get_submodule(self.layer or find_last_layer(model, inputs))
        return sum(p.numel() for p in layer.parameters() if p.requires_grad)

    def features(self, model: nn.Module, inputs: Tensor, outputs: Tensor | None = None) -> Tensor:
        from genrep_dist.core.gradients.last_layer import find_last_layer, last_layer_features

        del outputs  # all outputs have the same features
        # Found on two rows: the search keeps what every linear layer receives and returns.
        return last_layer_features(model, inputs, self.layer or find_last_layer(model, inputs[:2])).float()

    def block(self, train: Rows, test: Any, outputs: Tensor, num_outputs: int) -> Tensor:
        from genrep_dist.core.kernels.blocks import last_layer_block

        return last_layer_block(train, test, outputs, num_outputs)  # type: ignore[arg-type]

    def diagonal(self, rows: Rows, outputs: Tensor, num_outputs: int) -> Tensor:
        from genrep_dist.core.self_influence import scalar_diagonal

        return scalar_diagonal(rows.double().square().sum(dim=1), outputs, num_outputs)  # type: ignore[union-attr]

    def reference(self, model: nn.Module, train: Tensor, test: Tensor, outputs: Tensor, num_outputs: int) -> tuple[Tensor, Tensor]:
        import torch

        from genrep_dist.core.gradients.last_layer import last_layer_features
        from genrep_dist.core.kernels.blocks import last_layer_block

        left, right = (torch.cat([last_layer_features(model, x[None], self.layer) for x in rows]).double() for rows in (train, test))
        block = last_layer_block(left, right, outputs, num_outputs)
        scale = (left.norm(dim=1)[:, None] * right.norm(dim=1)[None, :]).unsqueeze(1).expand_as(block)
        return block.cpu(), scale.cpu()
