"""CUDA graphs: the kernels of a step are launched by one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

WARM_UP = 3
"""Runs before the capture, as torch recommends: libraries choose their algorithms and take their workspaces."""


class CudaGraph:
    """A :class:`~genrep_dist.training.graphs.base.StepGraph` by ``torch.cuda.graph``. Its intermediate results have memory of their own."""

    device_type: ClassVar[str] = "cuda"
    plain_steps: ClassVar[int] = 20

    def __init__(self, function: Callable[[], Tensor], device: torch.device) -> None:
        with torch.cuda.device(device):
            current, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(current)
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    function()
            current.wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self.result = function()

    def replay(self, hidden: Sequence[Tensor]) -> None:
        del hidden
        self._graph.replay()
