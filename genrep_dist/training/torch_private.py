"""The private interfaces of torch that training uses, all of them, each with a public fallback for a torch that no longer has it."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from genrep_dist.core.inputs import call_model

COUNTED = ("aten::conv2d", "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
"""Operations that the profiler counts, and that are matrix products."""


def forward_product_flop(model: nn.Module, inputs: Tensor) -> int:
    """Floating-point operations of all matrix products and convolutions of one forward pass; whatever the model's own code raises.

    The legacy profiler costs milliseconds. Its public successor writes to stderr; ``FlopCounterMode``, the fallback, imports sympy and the
    compiler, which takes longer than the rest of a plan.
    """
    try:
        profile = importlib.import_module("torch.autograd.profiler_legacy").profile
    except (ImportError, AttributeError):
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            call_model(model, inputs)
        return int(counter.get_total_flops())
    others = 0

    def count(module: nn.Module, _inputs: object, result: Tensor) -> None:
        nonlocal others
        others += 2 * result.numel() * cast("Tensor", module.weight)[0].numel()

    # The profiler counts convolutions in two dimensions only.
    hooks = [module.register_forward_hook(count) for module in model.modules() if isinstance(module, nn.Conv1d | nn.Conv3d)]
    try:
        with warnings.catch_warnings():
            # Such as of convolutions whose padding is a word.
            warnings.filterwarnings("ignore", "Failed to compute flops")
            with profile(with_flops=True) as seen:
                call_model(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return others + sum(event.flops or 0 for event in seen.function_events if event.name in COUNTED)


def vector_jacobian_product(
    outputs: Tensor, parameters: Sequence[Tensor], vector: Tensor, *, allow_unused: bool = False
) -> tuple[Tensor, ...]:
    """``torch.autograd.grad(outputs, parameters, vector)``, the same bits, and None for what is not used.

    That function checks shapes with sympy, which takes a third of a second to import.
    """
    run = _engine()
    if run is None or outputs.shape != vector.shape or outputs.dtype != vector.dtype:
        return torch.autograd.grad(outputs, list(parameters), vector, allow_unused=allow_unused)
    return run((outputs,), (vector,), False, False, tuple(parameters), allow_unused, accumulate_grad=False)


@cache
def _engine() -> Callable[..., tuple[Tensor, ...]] | None:
    """What ``torch.autograd.grad`` calls, with outputs, their gradients, retain_graph, create_graph, inputs, allow_unused; None if a trial
    of it in this version of torch fails.
    """
    run: Callable[..., tuple[Tensor, ...]] | None = getattr(torch.autograd.graph, "_engine_run_backward", None)
    if run is None:
        return None
    with torch.enable_grad():
        x, other = (torch.tensor([value], requires_grad=True) for value in (3.0, 1.0))
        try:
            found = run((x * x,), (torch.ones(1),), False, False, (x, other), True, accumulate_grad=False)
        except (TypeError, RuntimeError):
            return None
    fits = [None if one is None else float(one) for one in found] == [6.0, None] and x.grad is None
    return run if fits else None


@contextmanager
def without_onednn() -> Iterator[None]:
    """Inside, torch does not use oneDNN, whose fused layers (LSTM among them) are not counted."""
    try:
        enabled, set_enabled = torch._C._get_mkldnn_enabled(), torch._C._set_mkldnn_enabled
    except AttributeError:
        with warnings.catch_warnings():
            # The public flags also set TF32, and warn where there is none.
            warnings.simplefilter("ignore")
            with torch.backends.mkldnn.flags(enabled=False):
                yield
        return
    set_enabled(False)
    try:
        yield
    finally:
        set_enabled(enabled)


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has forward or backward hooks. Without the private dictionaries: False, and the trial of a pack decides."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    hooks: list[Any] = [getattr(module, name, None) for name in names]
    return any(hooks)


def peak_tensor_bytes(work: Callable[[], object]) -> int | None:
    """The most bytes that ``work`` holds at once in tensors of its own; whatever ``work`` raises. None without torch's dispatch modes.

    Convolutions count their arguments and results once more: libraries rearrange them.
    """
    try:
        dispatch = importlib.import_module("torch.utils._python_dispatch")
        reductions = importlib.import_module("torch.multiprocessing.reductions")
        mode, weak_reference, leaves = dispatch.TorchDispatchMode, reductions.StorageWeakRef, torch.utils._pytree.tree_leaves
    except (ImportError, AttributeError):
        return None
    rearranging = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)
    live: dict[int, tuple[Any, int]] = {}
    most = 0

    def storages(values: object) -> dict[int, Any]:
        tensors = [leaf for leaf in leaves(values) if isinstance(leaf, Tensor) and leaf.layout == torch.strided]
        return {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in tensors}

    class Counter(mode):  # type: ignore[misc, valid-type]
        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            # Otherwise torch imports its compiler, which takes a second, to keep it away from the method below.
            return False

        def __torch_dispatch__(self, function: Any, types: object, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal most
            result = function(*args, **(kwargs or {}))
            given, made = storages((args, kwargs)), storages(result)
            for key in [key for key, (reference, _) in live.items() if reference.expired()]:
                del live[key]
            # A result in the storage of a tensor from outside, such as a parameter, is a view of it.
            live.update({key: (weak_reference(one), one.nbytes()) for key, one in made.items() if key not in live and key not in given})
            arrays = leaves((args, result)) if function in rearranging else ()
            again = sum(one.nbytes for one in arrays if isinstance(one, Tensor))
            most = max(most, sum(count for _, count in live.values()) + again)
            return result

    with Counter():
        work()
    return most


@dataclass(frozen=True)
class Operation:
    """A call below autograd: which operation, with what, and what it returned. Its tensors are detached, in the same memory."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any

    @property
    def name(self) -> str:
        return str(self.function)

    @property
    def given(self) -> list[Tensor]:
        return _tensors((self.args, self.kwargs))

    @property
    def made(self) -> list[Tensor]:
        """Results with memory of their own, which are no views of what was given."""
        given = {storage_id(tensor) for tensor in self.given}
        return [tensor for tensor in self.returned if storage_id(tensor) not in given]

    @property
    def returned(self) -> list[Tensor]:
        return _tensors(self.result)

    @property
    def written(self) -> list[Tensor]:
        """The arguments that it writes to."""
        declared = self.function._schema.arguments
        named = {**dict(zip((one.name for one in declared), self.args, strict=False)), **self.kwargs}
        changed = [one.name for one in declared if one.alias_info is not None and one.alias_info.is_write]
        return _tensors([named.get(name) for name in changed])

    @property
    def waits(self) -> bool:
        """Whether shapes or choices follow from numbers of its arguments, for which the host of a GPU has to wait."""
        tags = self.function.tags
        if "index" in self.name:
            # Tagged for the sake of masks.
            return any(tensor.dtype in (torch.bool, torch.uint8) for tensor in self.given[1:])
        return torch.Tag.data_dependent_output in tags or torch.Tag.dynamic_output_shape in tags

    @property
    def draws(self) -> bool:
        """Whether it draws random numbers."""
        return torch.Tag.nondeterministic_seeded in self.function.tags

    def again(self) -> list[Tensor]:
        """What it returns if it is called once more."""
        return _tensors(self.function(*self.args, **self.kwargs))


def observe_operations(work: Callable[[], object], seen: Callable[[Operation], None]) -> None:
    """Call ``work``; ``seen`` gets each operation after it is done. Raises NotImplementedError without torch's dispatch modes."""
    try:
        mode = importlib.import_module("torch.utils._python_dispatch").TorchDispatchMode
        tree_map = torch.utils._pytree.tree_map
    except (ImportError, AttributeError) as error:
        raise NotImplementedError("this version of torch shows no operations") from error

    def detached(value: Any) -> Any:
        return value.detach() if isinstance(value, Tensor) else value

    class Observer(mode):  # type: ignore[misc, valid-type]
        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            # As above.
            return False

        def __torch_dispatch__(self, function: Any, types: object, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            seen(Operation(function, *(tree_map(detached, one) for one in (args, kwargs or {}, result))))
            return result

    with Observer():
        work()


def storage_id(tensor: Tensor) -> int:
    """The same number for two tensors that live if they share memory."""
    return int(tensor.untyped_storage()._cdata)


def _tensors(values: object) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(values) if isinstance(leaf, Tensor)]
