"""Private interfaces of torch: what stands in for each when it is gone."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn

from genrep_dist.core.losses import get_loss
from genrep_dist.problems.datasets.image_models import SmallCNN
from genrep_dist.problems.datasets.text_models import TextCNN
from genrep_dist.training import torch_private
from genrep_dist.training.flop_count import forward_flop
from genrep_dist.training.packs.compatibility import why_not_packed
from genrep_dist.training.torch_private import has_hooks, vector_jacobian_product, without_onednn
from tests.training.reference import RECIPES
from tests.training.test_flop_count import Lstm
from tests.training.test_stacked_packs import blob_data, multilayer


def test_operations_are_counted_without_the_legacy_profiler(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = ((SmallCNN(), torch.zeros(2, 1, 8, 8)), (TextCNN(), torch.ones(2, 9, dtype=torch.int64)), (Lstm(), torch.zeros(2, 6, 3)))
    expected = [forward_flop(model, inputs) for model, inputs in cases]

    there = importlib.import_module

    def missing(name: str, package: str | None = None) -> object:
        if name == "torch.autograd.profiler_legacy":
            raise ImportError(name)
        return there(name, package)

    monkeypatch.setattr(importlib, "import_module", missing)
    assert [forward_flop(model, inputs) for model, inputs in cases] == expected
    assert min(expected) > 0


def test_onednn_is_left_out_without_the_private_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch._C._get_mkldnn_enabled()
    with without_onednn():
        assert not torch._C._get_mkldnn_enabled()
    assert torch._C._get_mkldnn_enabled() == before
    seen: list[bool | None] = []

    class Flags:
        def __init__(self, enabled: bool) -> None:
            self.enabled = enabled

        def __enter__(self) -> None:
            seen.append(self.enabled)

        def __exit__(self, *args: object) -> None:
            seen.append(None)

    monkeypatch.setattr(torch.backends.mkldnn, "flags", Flags)
    monkeypatch.delattr(torch._C, "_set_mkldnn_enabled")
    with without_onednn():
        assert seen == [False]
    assert seen == [False, None]


def test_hooks_are_seen_and_their_absence_is_no_error() -> None:
    model = multilayer()
    assert not has_hooks(model)
    model.register_forward_hook(lambda module, inputs, result: None)
    assert has_hooks(model)
    assert "has hooks" in str(why_not_packed(lambda: model, get_loss("logistic"), RECIPES["plain"], blob_data()))
    bare = nn.Identity()
    del bare._forward_hooks, bare._backward_hooks
    assert not has_hooks(bare)


@pytest.mark.parametrize("private", ["there", "gone", "of another form"])
def test_products_with_the_jacobian_are_those_of_grad(private: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch_private._engine.cache_clear()
    if private == "gone":
        monkeypatch.delattr(torch.autograd.graph, "_engine_run_backward", raising=False)
    if private == "of another form":
        monkeypatch.setattr(torch.autograd.graph, "_engine_run_backward", lambda outputs, vectors: None)
    torch.manual_seed(0)
    model, unused = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), nn.Parameter(torch.zeros(1))
    parameters, inputs, vector = [*model.parameters(), unused], torch.randn(5, 3), torch.randn(5, 2)
    found = vector_jacobian_product(model(inputs), parameters, vector, allow_unused=True)
    model(inputs).backward(vector)
    assert [one is None for one in found] == [False] * 4 + [True]
    for one, parameter in zip(found, model.parameters(), strict=False):
        assert parameter.grad is not None
        assert torch.equal(one, parameter.grad)
    with pytest.raises(RuntimeError, match=r"[Ss]hape|size"):
        vector_jacobian_product(model(inputs), parameters, inputs, allow_unused=True)
    torch_private._engine.cache_clear()
