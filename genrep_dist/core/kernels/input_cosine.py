"""The cosine of the inputs themselves: a baseline that does not look at the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from genrep_dist.core.kernels.base import FeatureKernel, KernelSizes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from genrep_dist.core.kernels.base import Rows


class InputCosineKernel(FeatureKernel):
    """k(x, z) = cos(x, z) times the C x C identity, of the flattened inputs. 0 where an input is 0 everywhere."""

    name = "input-cosine"
    formula = "cos(x_i, x)"
    source = "cosine of the inputs"
    needs = ("one tensor of numbers as input",)
    takes_weights = True
    is_baseline = True

    def sizes(self, model: nn.Module, inputs: Tensor) -> KernelSizes:
        width = self.features(model, inputs[:2]).shape[1]
        return KernelSizes(held=width, products=width, stored_bytes=4 * width, gradient_passes=0.01)

    def num_parameters(self, model: nn.Module, inputs: Tensor) -> int:
        """One for each number of an input: those of a linear model."""
        del model
        return inputs[0].numel()

    def features(self, model: nn.Module, inputs: Tensor, outputs: Tensor | None = None) -> Tensor:
        import torch
        from torch.nn.functional import normalize

        from genrep_dist.core.inputs import PackedInputs
        from genrep_dist.errors import ProblemError

        del model, outputs
        if isinstance(inputs, PackedInputs) or inputs.dtype == torch.int64:
            raise ProblemError(
                f"kernel {self.name} is not defined for these inputs",
                where=f"kernel {self.name}",
                expected="one tensor of numbers for each sample",
                got="several tensors" if isinstance(inputs, PackedInputs) else "int64, as class or token numbers are",
                remedy="leave its methods out; activation-cosine compares what the model makes of the inputs",
            )
        return normalize(inputs.flatten(1).float(), dim=1)

    def block(self, train: Rows, test: Any, outputs: Tensor, num_outputs: int) -> Tensor:
        from genrep_dist.core.kernels.blocks import last_layer_block

        return last_layer_block(train, test, outputs, num_outputs)  # type: ignore[arg-type]

    def diagonal(self, rows: Rows, outputs: Tensor, num_outputs: int) -> Tensor:
        from genrep_dist.core.self_influence import scalar_diagonal

        return scalar_diagonal(rows.double().square().sum(dim=1), outputs, num_outputs)  # type: ignore[union-attr]

    def reference(self, model: nn.Module, train: Tensor, test: Tensor, outputs: Tensor, num_outputs: int) -> tuple[Tensor, Tensor]:
        import torch

        from genrep_dist.core.kernels.blocks import per_output

        del model
        left, right = (rows.flatten(1).double() for rows in (train, test))
        block = per_output(torch.stack([torch.cosine_similarity(x[None], right) for x in left]), outputs, num_outputs)
        return block.cpu(), torch.ones_like(block).cpu()
