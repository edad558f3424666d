"""What captum is told about the explained quantity."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

Reduction = Literal["sum", "none"]

# captum lets gradients reach the inputs, to hook into the layers, and says so about every batch.
ASKS_FOR_GRADIENTS = "ignore:Input Tensor 0 did not already require gradients, required_grads has been set automatically:UserWarning"


class DeclaredLogit(nn.Module):
    """The output that ``index`` (M,) declares for each test sample, in the form of a "loss". A scalar model has only one to declare."""

    def __init__(self, reduction: Reduction) -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, logits: Tensor, index: Tensor) -> Tensor:
        declared = logits if logits.dim() == 1 else logits.gather(1, index.unsqueeze(1))[:, 0]
        return declared.sum() if self.reduction == "sum" else declared
