"""The cosine of penultimate activations: a baseline for kernels of gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

from genrep_dist.core.kernels.last_layer import LastLayerKernel

if TYPE_CHECKING:
    from torch import Tensor, nn


class ActivationCosineKernel(LastLayerKernel):
    """k(x, z) = cos(Phi(x), Phi(z)) times the C x C identity, with Phi the last layer's inputs. 0 where all of them are 0."""

    name = "activation-cosine"
    formula = "cos(Phi(x_i), Phi(x))"
    source = "cosine of penultimate activations; Hanawa et al. 2021, 'Evaluation of Similarity-based Explanations'"
    is_baseline = True

    def features(self, model: nn.Module, inputs: Tensor, outputs: Tensor | None = None) -> Tensor:
        from torch.nn.functional import normalize

        from genrep_dist.core.gradients.last_layer import find_last_layer, last_layer_features

        del outputs  # all outputs have the same features
        name = self.layer or find_last_layer(model, inputs[:2])
        features = last_layer_features(model, inputs, name).float()
        # Without the constant 1, which last_layer_features appends for a bias.
        return normalize(features if model.get_submodule(name).bias is None else features[:, :-1], dim=1)

    def reference(self, model: nn.Module, train: Tensor, test: Tensor, outputs: Tensor, num_outputs: int) -> tuple[Tensor, Tensor]:
        import torch

        from genrep_dist.core.kernels.blocks import per_output

        left, right = (torch.cat([self.features(model, x[None]) for x in rows]).double() for rows in (train, test))
        block = per_output(torch.stack([torch.cosine_similarity(x[None], right) for x in left]), outputs, num_outputs)
        return block.cpu(), torch.ones_like(block).cpu()
