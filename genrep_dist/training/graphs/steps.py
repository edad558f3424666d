"""The steps of a pack, replayed from captured ones where that is possible, and compared with plain steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor

from genrep_dist.core.generators import preserved_generators
from genrep_dist.core.tensors import OUT_OF_MEMORY
from genrep_dist.errors import ProblemError
from genrep_dist.training.batches import Step
from genrep_dist.training.graphs.base import StepGraph, StepGraphs
from genrep_dist.training.graphs.rules import Rules
from genrep_dist.training.packs.base import Pack
from genrep_dist.training.step import PackStep

ROUNDING = 2.0**-10
"""A first replay may differ from the plain step by this share of the step, in each tensor: a few times float32's root of rounding errors,
which add up in another order."""
WRONG = 0.1
"""Later ones by this share of the whole step: which of two almost equal inputs of a max pool is the larger one is a matter of rounding."""
FIRST_REPLAYS = 2
LAST_STEPS = 2
"""Of a training: the last batch of an epoch may be a smaller one, with a graph of its own."""


class StaticStep:
    """The memory from which a captured step reads its batch and its rate."""

    def __init__(self, step: Step, rate: float) -> None:
        rows, counted, divisor = (one.clone() for one in _tensors_of(step))
        # How many rows count is not read but to refuse or to draw, and such steps are not captured.
        self.step = Step(0, rows, counted, divisor, (), step.counts)
        self.rate = torch.full((), rate, dtype=torch.float64, device=rows.device)

    def load(self, step: Step, rate: float) -> list[Tensor]:
        """Copy a batch and a rate into this memory; the tensors of the batch from which they were copied."""
        sources = list(_tensors_of(step))
        for own, new in zip(_tensors_of(self.step), sources, strict=True):
            own.copy_(new)
        self.rate.fill_(rate)
        return sources


def _tensors_of(step: Step) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, which of them count, and divisors. Packs that are captured have all three."""
    return step.rows, cast("Tensor", step.counted), cast("Tensor", step.divisor)


class GraphedSteps:
    """Takes the steps of ``pack`` as ``plain`` does, by replaying captured ones.

    A shape is captured once. The first two replays must agree with plain steps from the same state up to rounding, and so must one at half
    the rate; else the pack goes on without graphs, with a note, from the plain step. Replays 4, 8, 16, ... are compared again, and the last
    two of the ``num_steps`` of the training: an error, because steps that were not compared may be wrong too.

    Batches in which a model has one row or none, and augmented rows, are never captured.
    """

    def __init__(self, plain: PackStep, pack: Pack, graphs: StepGraphs, num_steps: int) -> None:
        self._plain, self._pack, self._graphs, self._num_steps = plain, pack, graphs, num_steps
        self._title = type(pack).__name__
        self._seen: dict[object, int] = {}
        self._captured: dict[object, _Captured] = {}
        self._refuse(_why_not(pack, graphs))

    def take(self, step: Step, rate: float, inputs: Tensor | None = None) -> Tensor:
        """As :meth:`PackStep.take`. The result is overwritten by the next step of the shape.

        Raises ProblemError where a replay after the first ones gives other numbers than a plain step.
        """
        if self._title in self._graphs.notes or inputs is not None or step.idle_slots or 1 in step.counts:
            return self._plain.take(step, rate, inputs)
        shape = tuple((one.shape, one.dtype) for one in _tensors_of(step))
        captured = self._captured.get(shape)
        if captured is None:
            self._seen[shape] = self._seen.get(shape, 0) + 1
            if self._seen[shape] <= self._graphs.graph.plain_steps:
                return self._plain.take(step, rate)
            captured = self._capture(step, rate)
            if captured is None:
                return self._plain.take(step, rate)
            self._captured[shape] = captured
        return self._replay(captured, step, rate)

    def _refuse(self, reason: str | None) -> None:
        if reason is not None:
            self._graphs.notes.setdefault(self._title, reason)
            self._captured.clear()

    def _capture(self, step: Step, rate: float) -> _Captured | None:
        """The captured step; None, with a note, where there is none. The state is as it was."""
        static, before = StaticStep(step, rate), self._state()

        def function() -> Tensor:
            # A tensor in the place of a number: all rules of the optimizer say that they take it.
            return self._plain.take(static.step, cast("float", static.rate))

        rules = Rules(lambda: [*self._pack.changing_tensors(), *self._pack.scratch_tensors()])
        try:
            with self._preserved_generators():
                rules.watch(function)
            graph = self._graphs.graph(function, step.rows.device) if rules.reason is None else None
        except OUT_OF_MEMORY:
            raise
        except Exception as error:
            # Whatever a library or a model raises: if a plain step raises it too, it comes from there.
            self._refuse(f"{type(error).__name__}: {error}".partition("\n")[0])
            graph = None
        self._restore(before)
        self._refuse(rules.reason)
        if graph is None:
            return None
        self._graphs.captured += 1
        captured = _Captured(graph, static, list(rules.outside.values()))
        # At another rate than the captured one; nothing of it is kept.
        self._compare(captured, step, rate / 2)
        self._restore(before)
        return captured if self._title not in self._graphs.notes else None

    def _replay(self, captured: _Captured, step: Step, rate: float) -> Tensor:
        captured.replays += 1
        self._graphs.replayed += 1
        is_power_of_two = not captured.replays & (captured.replays - 1)
        if is_power_of_two or step.index >= self._num_steps - LAST_STEPS:
            return self._compare(captured, step, rate)
        captured.replay(step, rate)
        return captured.graph.result

    def _compare(self, captured: _Captured, step: Step, rate: float) -> Tensor:
        """A replay from the present state and a plain step from the same; the result of the one that the state is left at."""
        before = self._state()
        plain_result = self._plain.take(step, rate)
        expected = self._state()
        self._restore(before)
        captured.replay(step, rate)
        result, found = captured.graph.result, self._pack.changing_tensors()
        zero = torch.zeros_like(plain_result)
        parts = [([one], [other], [own]) for one, other, own in zip(before, expected, found, strict=True)]
        first = max(_share(*part) for part in [*parts, ([zero], [plain_result], [result])])
        if first <= ROUNDING:
            return result
        if captured.replays > FIRST_REPLAYS:
            count = len(self._pack.parameters)
            off = _share(before[:count], expected[:count], found[:count])
            if off <= WRONG:
                return result
            raise _other_numbers(off)
        self._restore(expected)
        self._refuse(f"a captured step differs from the plain one by {first:.1g} of the step")
        return plain_result

    @contextmanager
    def _preserved_generators(self) -> Iterator[None]:
        """Outside, the default generators and those of the pack are as they were before."""
        own = [(generator, generator.get_state()) for generator in self._pack.generators()]
        with preserved_generators():
            try:
                yield
            finally:
                for generator, state in own:
                    generator.set_state(state)

    def _state(self) -> list[Tensor]:
        return [tensor.detach().clone() for tensor in self._pack.changing_tensors()]

    @torch.no_grad()
    def _restore(self, state: Sequence[Tensor]) -> None:
        for own, saved in zip(self._pack.changing_tensors(), state, strict=True):
            own.copy_(saved)


class _Captured:
    """A graph, the memory it reads, and what must live as long as it does."""

    def __init__(self, graph: StepGraph, static: StaticStep, outside: Sequence[Tensor]) -> None:
        self.graph, self._static, self._outside = graph, static, outside
        self.replays = 0

    def replay(self, step: Step, rate: float) -> None:
        self.graph.replay(self._static.load(step, rate))


def _why_not(pack: Pack, graphs: StepGraphs) -> str | None:
    """Why no step of a pack is captured, as far as can be seen without one."""
    if not pack.may_be_captured:
        return "models that train alone may do more in a step than compute"
    if not pack.optimized.takes_rate_tensors:
        return "the optimizer does not declare that it takes rates as tensors (takes_rate_tensors)"
    devices = {tensor.device.type for tensor in pack.parameters}
    return None if devices == {graphs.graph.device_type} else f"models on {', '.join(sorted(devices))}"


def _share(before: Sequence[Tensor], expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The difference of two steps, relative to the length of the expected one, plus the last bits of its result.

    Numbers that are not finite in both, as those of a model that diverges, do not count. Infinity if they are in one only.
    """
    difference = length = size = rounding = 0.0
    for tensors in zip(before, expected, found, strict=True):
        kind = tensors[1].dtype
        if kind.is_floating_point or kind.is_complex:
            rounding = max(rounding, torch.finfo(kind).eps)
        start, one, other = (tensor.detach().to(torch.complex128 if kind.is_complex else torch.float64) for tensor in tensors)
        counts = torch.isfinite(one)
        if not torch.equal(counts, torch.isfinite(other)):
            return float("inf")
        difference += float((one - other)[counts].abs().square().sum())
        length += float((one - start)[counts & torch.isfinite(start)].abs().square().sum())
        size += float(one[counts].abs().square().sum())
    allowed = length**0.5 + 8 * rounding / ROUNDING * size**0.5
    return 0.0 if not difference else difference**0.5 / allowed if allowed else float("inf")


def _other_numbers(share: float) -> ProblemError:
    return ProblemError(
        "a captured training step no longer gives the numbers of the plain step",
        where="resources.cuda_graphs",
        expected="equal steps up to rounding",
        got=f"steps that differ by {share:.2g} of their length",
        remedy="set resources.cuda_graphs: false, and look in the model and the loss for what changes from step to step in Python alone",
    )
