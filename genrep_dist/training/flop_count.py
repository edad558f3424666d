"""What a network's passes cost, from its own layers: operations of a forward pass, and memory of a training step."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.autograd.profiler_legacy import profile
from torch.nn.attention import SDPBackend, sdpa_kernel

from genrep_dist.errors import ProblemError

CODE_FAILS = (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError, NotImplementedError, ProblemError)
"""What a model's own code raises when it is handed something that it was not written for."""


COUNTED = ("aten::conv2d", "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")


def forward_flop(model: nn.Module, inputs: Tensor) -> int:
    """Floating-point operations of the products of one row's forward pass, from ``inputs`` (2, ...); 0 where they cannot be counted.

    What a library fuses, as it does some recurrent layers and attention, is counted as it would be without that.
    """
    # (torch.utils.flop_counter brings the compiler with it, which takes longer than all else that a plan does.)
    was_training, fusing = model.training, torch._C._get_mkldnn_enabled()
    others = 0

    def count(module: nn.Module, _inputs: object, result: Tensor) -> None:
        nonlocal others
        others += 2 * result.numel() * cast("Tensor", module.weight)[0].numel()

    # The profiler counts convolutions of images, and no others.
    hooks = [module.register_forward_hook(count) for module in model.modules() if isinstance(module, nn.Conv1d | nn.Conv3d)]
    try:
        torch._C._set_mkldnn_enabled(False)  # (the public way warns of what is not touched here)
        # Evaluation has fused ways of its own, and batch normalisation wants two rows in training.
        with torch.no_grad(), torch.random.fork_rng(devices=[]), sdpa_kernel(SDPBackend.MATH), profile(with_flops=True) as seen:  # type: ignore[no-untyped-call]
            model.train()(inputs)
    except CODE_FAILS:
        return 0
    finally:
        torch._C._set_mkldnn_enabled(fusing)
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    products = sum(event.flops or 0 for event in seen.function_events if event.name in COUNTED)
    return (int(products) + others) // len(inputs)


def step_bytes(model: nn.Module, inputs: Tensor) -> int:
    """About what a training step on ``inputs`` (B, ...) takes beside parameters: what is kept for the way back, its gradients, and the
    windows of convolutions, as they are spelled out where models share steps. 0 where it cannot be seen.
    """
    kept: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    windows = 0

    def keep(tensor: Tensor) -> Tensor:
        if tensor.layout == torch.strided and tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def unfold(module: nn.Module, _inputs: object, result: Tensor) -> None:
        nonlocal windows
        weight = cast("Tensor", module.weight)
        windows += result.numel() // len(weight) * weight[0].numel() * result.element_size()

    hooks = [module.register_forward_hook(unfold) for module in model.modules() if isinstance(module, nn.Conv1d | nn.Conv2d)]
    try:
        with torch.random.fork_rng(devices=[]), saved_tensors_hooks(keep, lambda tensor: tensor):
            model(inputs)
    except CODE_FAILS:
        return 0
    finally:
        for hook in hooks:
            hook.remove()
    return 2 * (sum(kept.values()) + windows)
