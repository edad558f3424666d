"""Losses with their first and second derivatives in the model's outputs.

Outputs are always (N, C); a scalar-output model has C = 1. Targets are (N,), or the soft form that ``soft_targets`` returns.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from genrep_dist.errors import ProblemError


@runtime_checkable
class Loss(Protocol):
    """A loss L(f, y). The surrogate needs one that is convex in f.

    ``value`` -> (N,); ``derivative`` dL/df -> (N, C); ``second_derivative`` d2L/df2 -> (N, C, C), symmetric; ``soft_targets`` -> the
    model's own predictions in a form that ``targets`` may take (the projection target of Eq. 5).

    An attribute ``has_classes`` may say whether the outputs are those of classes (:func:`has_classes`).
    """

    name: str

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor: ...

    def derivative(self, outputs: Tensor, targets: Tensor) -> Tensor: ...

    def second_derivative(self, outputs: Tensor, targets: Tensor) -> Tensor: ...

    def soft_targets(self, outputs: Tensor) -> Tensor: ...


class SquaredLoss:
    """L = |f - y|^2 / 2, so that dL/df = f - y. Targets (N,) for C = 1, or (N, C)."""

    name = "squared"
    has_classes = False

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 0.5 * (outputs - _like(targets, outputs)).square().sum(dim=1)

    def derivative(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs - _like(targets, outputs)

    def second_derivative(self, outputs: Tensor, targets: Tensor) -> Tensor:
        n, c = outputs.shape
        return torch.eye(c, dtype=outputs.dtype, device=outputs.device).expand(n, c, c)

    def soft_targets(self, outputs: Tensor) -> Tensor:
        return outputs


class LogisticLoss:
    """Binary cross-entropy on one raw logit, L = y log(1 + exp(-f)) + (1 - y) log(1 + exp(f)).

    Targets (N,) or (N, 1) in [0, 1]: labels or soft predictions; outputs (N, 1), anything else is a ProblemError.
    """

    name = "logistic"
    has_classes = True

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        y = _like(targets, _one_logit(outputs))
        # Two positive terms: softplus(f) - y f would lose the small loss of a confident, correct prediction to cancellation.
        return (y * _softplus(-outputs) + (1 - y) * _softplus(outputs)).sum(dim=1)

    def derivative(self, outputs: Tensor, targets: Tensor) -> Tensor:
        y = _like(targets, _one_logit(outputs))
        # Equal to sigma(f) - y, without its cancellation: in float32 that is 0 beyond f = 17, and ranks of alpha become ties.
        return (1 - y) * torch.sigmoid(outputs) - y * torch.sigmoid(-outputs)

    def second_derivative(self, outputs: Tensor, targets: Tensor) -> Tensor:
        # sigma(f) sigma(-f) keeps its relative precision for large |f|, where sigma (1 - sigma) cancels.
        return (torch.sigmoid(outputs) * torch.sigmoid(-_one_logit(outputs))).unsqueeze(2)

    def soft_targets(self, outputs: Tensor) -> Tensor:
        return torch.sigmoid(_one_logit(outputs)).squeeze(1)


class SoftmaxLoss:
    """Cross-entropy on C raw logits. Targets: class numbers (N,) or distributions (N, C) that sum to one."""

    name = "softmax"
    has_classes = True

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return -(self._distribution(outputs, targets) * functional.log_softmax(outputs, dim=1)).sum(dim=1)

    def derivative(self, outputs: Tensor, targets: Tensor) -> Tensor:
        p = functional.softmax(outputs, dim=1)
        if targets.dim() == 1 and outputs.shape[1] > 1:
            # The same for a distribution that is one at a class: p elsewhere, and p - 1 there.
            label = targets.long().unsqueeze(1)
            return p.scatter(1, label, -_complement(p).gather(1, label))
        q = self._distribution(outputs, targets)
        # Equal to p - q, without its cancellation where p and q are both near one.
        return p * (1 - q) - q * _complement(p)

    def derivative_by_class(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """:meth:`derivative`, class by class instead of row by row: faster for few classes, with other last bits."""
        if targets.dim() != 1 or outputs.shape[1] < 2:
            return self.derivative(outputs, targets)
        p, label = functional.softmax(outputs.t().contiguous(), dim=0), targets.long().unsqueeze(0)  # (C, N), (1, N)
        own = p.gather(0, label)
        others = p.scatter(0, label, 0.0).sum(dim=0, keepdim=True)
        complement = torch.where(own > 0.5, others, 1 - own)
        return p.scatter(0, label, -complement).t().contiguous()

    def second_derivative(self, outputs: Tensor, targets: Tensor) -> Tensor:
        p = functional.softmax(outputs, dim=1)
        unequal = 1 - torch.eye(p.shape[1], dtype=p.dtype, device=p.device)
        return torch.diag_embed(p * _complement(p)) - unequal * p.unsqueeze(2) * p.unsqueeze(1)

    def soft_targets(self, outputs: Tensor) -> Tensor:
        return functional.softmax(outputs, dim=1)

    def _distribution(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.shape[1] < 2:
            raise ProblemError(
                "the softmax loss needs one logit per class",
                where="loss softmax",
                expected="outputs (N, C) with C of 2 or more",
                got=f"outputs {tuple(outputs.shape)}",
                remedy="use the loss 'logistic' for two classes on one logit",
            )
        if targets.dim() == 1:
            return functional.one_hot(targets.long(), outputs.shape[1]).to(outputs.dtype)
        return _like(targets, outputs)


class ModelLoss:
    """L = f: the model returns the loss of each sample itself, (N,) or (N, 1), as models of sequences do. Targets are not read.

    Training minimises its mean; what is explained is a test sample's loss.
    """

    name = "model"
    has_classes = False

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        del targets
        return self._losses(outputs).squeeze(1)

    def derivative(self, outputs: Tensor, targets: Tensor) -> Tensor:
        del targets
        return torch.ones_like(self._losses(outputs))

    def second_derivative(self, outputs: Tensor, targets: Tensor) -> Tensor:
        del targets
        return torch.zeros_like(self._losses(outputs)).unsqueeze(2)

    def soft_targets(self, outputs: Tensor) -> Tensor:
        return self._losses(outputs).squeeze(1)

    def _losses(self, outputs: Tensor) -> Tensor:
        if outputs.shape[1] != 1:
            raise ProblemError(
                "the model's output is no loss of each sample",
                where="loss model",
                expected="outputs (N,) or (N, 1): one loss of each sample",
                got=f"outputs {tuple(outputs.shape)}",
                remedy="return losses.mean(dim=1) of a sequence's tokens, or choose the loss of the model's logits",
            )
        return outputs


LOSSES: dict[str, Loss] = {loss.name: loss for loss in (SquaredLoss(), LogisticLoss(), SoftmaxLoss(), ModelLoss())}


def get_loss(loss: str | Loss) -> Loss:
    """The loss of that name, or the given loss itself. Raises ProblemError for an unknown name or an object that is none."""
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise ProblemError("unknown loss", where="problem.loss", expected=" or ".join(sorted(LOSSES)), got=repr(loss))
        return LOSSES[loss]
    if not isinstance(loss, Loss):
        raise ProblemError(
            "the problem's loss is not usable",
            where="problem.loss",
            expected="a name, or an object with name, value, derivative, second_derivative and soft_targets",
            got=type(loss).__name__,
        )
    return loss


def has_classes(loss: Loss, targets: Tensor, num_outputs: int) -> bool:
    """Whether the C = ``num_outputs`` outputs are those of classes, so that one of them is the predicted one.

    The loss's attribute ``has_classes`` says so. Without it, outputs are those of classes if ``targets`` are class numbers (N,) below C.
    """
    declared = getattr(loss, "has_classes", None)
    if declared is not None:
        return bool(declared)
    numbers = targets.numel() == len(targets) and not targets.is_floating_point()
    return numbers and bool(((targets >= 0) & (targets < num_outputs)).all())


def flat_share(curvature: Tensor) -> float:
    """Share of the samples whose second derivative, a row of ``curvature`` (N, C, C), is zero up to the rounding of the largest one."""
    sizes = curvature.detach().reshape(len(curvature), -1).abs().amax(dim=1)
    return float((sizes <= torch.finfo(curvature.dtype).eps * sizes.amax()).double().mean())


def is_linear(loss: Loss, outputs: Tensor, targets: Tensor) -> bool:
    """Whether the second derivative of a loss is zero at all outputs that are tried: ``outputs`` (N, C), these with noise, the targets.

    Zero at ``outputs`` alone says little: Huber's loss of an untrained model may be linear on all samples.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(outputs.shape, generator=generator).to(outputs)
    tried = [outputs, *(outputs + scale * noise for scale in (1e-2, 1.0, 1e2))]
    if targets.is_floating_point() and targets.numel() == outputs.numel():
        tried += [targets.reshape(outputs.shape).to(outputs) + scale * noise for scale in (0.0, 1e-2)]
    for some in tried:
        try:
            curvature = loss.second_derivative(some, targets)
        except Exception:  # noqa: S112 - a user's loss need not be defined for all of these outputs
            continue
        # NaN is not zero: what is not known is not refused.
        if not bool((curvature == 0).all()):
            return False
    return True


def _like(targets: Tensor, outputs: Tensor) -> Tensor:
    """Targets (N,), for C = 1, or (N, C) as a tensor of the outputs' shape (N, C) and dtype; ProblemError where they do not fit."""
    shaped = targets.unsqueeze(1) if targets.dim() == 1 else targets
    # Broadcasting (N, 1) against (N, C) would pass silently and mean something else.
    if shaped.shape != outputs.shape:
        raise ProblemError(
            "targets do not fit the model's outputs",
            where="loss",
            expected=f"{tuple(outputs.shape)}" + (f" or {(outputs.shape[0],)}" if outputs.shape[1] == 1 else ""),
            got=f"{tuple(targets.shape)}",
        )
    return shaped.to(outputs.dtype)


def _one_logit(outputs: Tensor) -> Tensor:
    if outputs.shape[1] != 1:
        raise ProblemError(
            "the logistic loss is for one logit",
            where="loss logistic",
            expected="outputs (N, 1)",
            got=f"outputs {tuple(outputs.shape)}",
            remedy="use the loss 'softmax' for several logits",
        )
    return outputs


def _softplus(outputs: Tensor) -> Tensor:
    # torch becomes linear at 20 by default, which is a jump of 2e-9: visible in float64. Past 40 it is below rounding.
    return functional.softplus(outputs, threshold=40.0)


def _complement(p: Tensor) -> Tensor:
    """1 - p (N, C) of distributions p, where p is near one summed from the other entries."""
    top = p.argmax(dim=1, keepdim=True)
    others = p.scatter(1, top, 0.0).sum(dim=1, keepdim=True)
    return (1 - p).scatter(1, top, others)
