"""A few test points with the training samples that have the strongest scores for them, as plain data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from genrep_dist.errors import ProblemError
from genrep_dist.problems.protocol import Dataset
from genrep_dist.report.pixels import PixelRange, are_images, png

NUM_POINTS = 2
NUM_SAMPLES = 5
MAX_TEXT = 300
"""Longer sentences are cut."""

Texts = Callable[[Tensor], Sequence[str]]


@dataclass(frozen=True)
class Sample:
    """``picture`` is a PNG, ``text`` a sentence; both None where a sample is neither. ``phi`` is None for a test point."""

    id: int
    label: str
    phi: float | None = None
    flipped: bool = False
    picture: bytes | None = None
    text: str | None = None


@dataclass(frozen=True)
class SelectedSamples:
    """The samples with the strongest scores for a test point: those that raise the explained output, and those that lower it."""

    method: str
    raising: tuple[Sample, ...]
    lowering: tuple[Sample, ...]


@dataclass(frozen=True)
class Example:
    """``prediction`` is the output of the original model of ``seed`` for the test point, as text."""

    seed: int
    point: Sample
    prediction: str
    methods: tuple[SelectedSamples, ...]


class ExamplesSource(Protocol):
    """The part of :class:`genrep_dist.results.Run` that examples read."""

    @property
    def train(self) -> Dataset: ...
    @property
    def test(self) -> Dataset: ...
    def attributions(self, method: str, seed: int) -> npt.NDArray[Any]: ...
    def test_ids(self, seed: int) -> npt.NDArray[np.int64]: ...
    def train_ids(self, seed: int) -> npt.NDArray[np.int64]: ...
    def test_outputs(self, seed: int) -> npt.NDArray[Any]: ...
    @property
    def loss_name(self) -> str: ...
    def flipped_ids(self) -> Collection[int]: ...


def examples(
    run: ExamplesSource,
    methods: Sequence[str],
    *,
    seed: int,
    texts: Texts | None = None,
    num_points: int = NUM_POINTS,
    num_samples: int = NUM_SAMPLES,
) -> tuple[Example, ...]:
    """The first ``num_points`` test points of ``seed`` (so that they are not hand-picked), each with the strongest samples of ``methods``.

    ``texts``: the problem's function from ids of samples to their sentences; without it, samples with the shape of images become
    pictures. Of equal scores the lowest id comes first. ProblemError if ``texts`` returns anything but one string for each id, or if a
    test point and a training sample share an id, so that their texts cannot be told apart.
    """
    reader = _SampleReader(run.train, run.test, texts, frozenset(run.flipped_ids()))
    outputs = run.test_outputs(seed)
    train_ids, test_ids = run.train_ids(seed), run.test_ids(seed)[:num_points]
    # Copies: a view would keep the scores of all methods for all points in memory.
    phis = {method: run.attributions(method, seed)[:, : len(test_ids)].copy() for method in methods}
    found = []
    for column, test_id in enumerate(test_ids.tolist()):
        named = []
        for method, phi in phis.items():
            raising, lowering = strongest(phi[:, column], train_ids, num_samples)
            shown = [tuple(reader.training(int(row), float(phi[row, column])) for row in rows) for rows in (raising, lowering)]
            named.append(SelectedSamples(method, *shown))
        point, row = reader.test(test_id)
        found.append(Example(seed, point, _prediction(outputs[row], run.loss_name), tuple(named)))
    return tuple(found)


def strongest(phi: npt.NDArray[Any], ids: npt.NDArray[np.int64], count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows of the ``count`` most positive and of the ``count`` most negative of ``phi`` (N,), strongest first, none of them zero."""
    falling, rising = np.lexsort((ids, -phi))[:count], np.lexsort((ids, phi))[:count]
    return falling[phi[falling] > 0], rising[phi[rising] < 0]


class _SampleReader:
    """Reads rows of the datasets as samples for the report."""

    def __init__(self, train: Dataset, test: Dataset, texts: Texts | None, flipped: frozenset[int]) -> None:
        self.train_data, self.test_data, self.texts, self.flipped = train, test, texts, flipped
        self.bounds = PixelRange.from_images(train.inputs) if texts is None and are_images(train.inputs) else None

    def training(self, row: int, phi: float) -> Sample:
        return self._sample(self.train_data, row, phi, int(self.train_data.ids[row]) in self.flipped)

    def test(self, test_id: int) -> tuple[Sample, int]:
        """The test point and its row."""
        if self.texts is not None and bool((self.train_data.ids == test_id).any()):
            raise ProblemError(
                "a sentence cannot be looked up by its id",
                where=f"problem.texts, id {test_id}",
                expected="ids that differ between training and test set",
                got="a training sample and a test point of this id",
                remedy="number the test samples on from the training samples, or leave out texts()",
            )
        row = int((self.test_data.ids == test_id).nonzero()[0, 0])
        return self._sample(self.test_data, row, None, flipped=False), row

    def _sample(self, data: Dataset, row: int, phi: float | None, flipped: bool) -> Sample:
        picture = None if self.bounds is None else png(data.inputs[row], self.bounds)
        text = None if self.texts is None else self._text(self.texts, data.ids[row : row + 1])
        return Sample(int(data.ids[row]), _label(data.targets[row]), phi, flipped, picture, text)

    def _text(self, texts: Texts, ids: Tensor) -> str:
        found: object = texts(ids)
        if isinstance(found, str) or not isinstance(found, Sequence) or [type(text) for text in found] != [str]:
            raise ProblemError(
                "the problem's texts() returned something else",
                where="problem.texts",
                expected="one string for each id",
                got=repr(found)[:80],
            )
        text = " ".join(str(found[0]).split())
        return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def _label(target: Tensor) -> str:
    values = target.reshape(-1).tolist()
    text = ", ".join(f"{value:g}" for value in values)
    return text if len(text) <= 40 else text[:39] + "…"


def _prediction(logits: npt.NDArray[Any], loss: str) -> str:
    if len(logits) > 1:
        chosen = int(logits.argmax())
        return f"class {chosen}, logit {float(logits[chosen]):.3g}"
    value = f"{float(logits[0]):.3g}"
    return f"class {int(logits[0] > 0)}, logit {value}" if loss == "logistic" else value
