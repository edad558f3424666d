"""The layers whose curvature has Kronecker factors: linear layers and convolutions without groups, with their biases."""

from __future__ import annotations

from dataclasses import dataclass

from genrep_dist.core.gradients.factored_weight import FactoredWeight
from genrep_dist.core.gradients.inspection import ModelInspection

COPIES_OF_INPUTS, COPIES_OF_GRADIENTS = 4, 3
"""Float64 copies of a layer's inputs and output gradients at work, and of the gradients of its weight."""


@dataclass(frozen=True)
class KroneckerLayer:
    """A layer with O outputs and K inputs, the constant 1 of a bias included.

    ``position`` of its weight among the factored ones; ``bias``: the full name of its trained bias, None if there is none.
    """

    position: int
    weight: FactoredWeight
    bias: str | None

    @property
    def num_outputs(self) -> int:
        return self.weight.shape[0]

    @property
    def num_inputs(self) -> int:
        return self.weight.patch_numel + (self.bias is not None)

    @property
    def parameters(self) -> tuple[str, ...]:
        return (self.weight.name,) if self.bias is None else (self.weight.name, self.bias)

    @property
    def parameter_shape(self) -> tuple[int, ...]:
        """The shape in which the weight's parameter is kept."""
        return tuple(reversed(self.weight.shape)) if self.weight.transposed else self.weight.shape

    def rows(self, num_outputs: int) -> int:
        """Samples whose inputs and gradients, of a model of ``num_outputs``, are at work at once."""
        return self.weight.gradient_rows(num_outputs)

    def rotates_factors(self, num_gradients: int) -> bool:
        """Whether turning the factors of a sample takes fewer multiply-adds than turning its ``num_gradients`` gradients."""
        positions, wide, deep = self.weight.num_positions, self.num_outputs, self.num_inputs
        factors = positions * (num_gradients * wide**2 + deep**2)
        return factors <= num_gradients * wide * deep * (wide + deep)


@dataclass(frozen=True)
class KroneckerSizes:
    """``factor_numel``: numbers of all covariances; ``work_numel``: numbers at work in the part of a layer with the most, both float64."""

    factor_numel: int = 0
    work_numel: int = 0


def kronecker_layers(inspection: ModelInspection) -> tuple[KroneckerLayer, ...]:
    """Those of a model. All other parameters, embeddings and grouped convolutions among them, are in none of them."""
    weights, layers = inspection.weights, []
    for hooked in inspection.hooked:
        weight = hooked.weight
        if weight is not None and weight.kind == "product" and weight.groups == 1:
            bias = next((full for local, full in hooked.dense.items() if local.endswith("bias")), None)
            layers.append(KroneckerLayer(weights.index(weight), weight, bias))
    return tuple(layers)


def kronecker_sizes(inspection: ModelInspection) -> KroneckerSizes:
    """What :class:`~genrep_dist.core.solvers.kronecker.KroneckerCurvature` holds for a model."""
    layers, outputs = kronecker_layers(inspection), inspection.num_outputs
    work = 0
    for layer in layers:
        positions = layer.weight.num_positions
        factors = positions * (layer.num_inputs + outputs * layer.num_outputs)
        each = COPIES_OF_INPUTS * factors + COPIES_OF_GRADIENTS * outputs * layer.num_outputs * layer.num_inputs
        work = max(work, min(layer.rows(outputs), inspection.batch_size) * each)
    return KroneckerSizes(sum(layer.num_outputs**2 + layer.num_inputs**2 for layer in layers), work)
