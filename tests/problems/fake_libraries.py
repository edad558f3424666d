"""Stand-ins for optional libraries that reach a network: what they would return, or the error that they raise offline."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import pytest


def put_datasets(monkeypatch: pytest.MonkeyPatch, splits: Mapping[tuple[str, str], Mapping[str, Any]]) -> None:
    """A library ``datasets`` that knows these (dataset, split) alone; any other is not reached."""

    def load_dataset(name: str, split: str) -> Mapping[str, Any]:
        if (name, split) not in splits:
            raise ConnectionError("no network here")
        return splits[name, split]

    module = ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)


def put_torchvision(monkeypatch: pytest.MonkeyPatch, name: str, build: Callable[..., Any]) -> None:
    """A library ``torchvision`` with one data set's class."""
    module = ModuleType("torchvision")
    module.datasets = ModuleType("torchvision.datasets")  # type: ignore[attr-defined]
    setattr(module.datasets, name, build)
    monkeypatch.setitem(sys.modules, "torchvision", module)


def take_away(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As if a library were not installed."""
    monkeypatch.setitem(sys.modules, name, None)
