"""A few test points with the training samples that have the strongest scores for them, as plain data.

The first example of a report is a test point whose strongest training samples were really left out (:func:`removal_example`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl
from torch import Tensor

from genrep_dist.core.inputs import form_of
from genrep_dist.errors import ProblemError
from genrep_dist.problems.checks import user_code_error
from genrep_dist.problems.protocol import Dataset
from genrep_dist.report.pixels import PixelRange, are_images, png

NUM_POINTS = 2
NUM_SAMPLES = 5
MAX_TEXT = 300
"""Longer sentences are cut."""

MAX_FEATURES = 8
"""Values that are shown of a sample that is neither an image nor a text."""
MAX_ROWS = 10_000
"""Training samples of which the mean and the deviation of an input are taken."""

Texts = Callable[[Tensor], Sequence[str]]
Describe = Callable[[Tensor], Sequence[Mapping[str, object]]]
"""From ids of samples to their values by name."""


@dataclass(frozen=True)
class Sample:
    """``picture`` is a PNG, ``text`` a sentence; both None where a sample is neither. ``phi`` is None for a test point.

    ``features``: names and values of a sample that is neither.
    """

    id: int
    label: str
    phi: float | None = None
    flipped: bool = False
    picture: bytes | None = None
    text: str | None = None
    features: tuple[tuple[str, str], ...] = ()


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


@dataclass(frozen=True)
class Removal:
    """One method's removal: the explained number ``before`` it, and ``after`` retraining without ``num_removed`` training samples.

    ``samples``: the strongest of them, at most :data:`NUM_SAMPLES`. ``more``: larger removals of the same order, and the explained number
    after each. ``is_random``: whether it removed samples at random.
    """

    method: str
    samples: tuple[Sample, ...]
    num_removed: int
    before: float
    after: float
    more: tuple[tuple[int, float], ...] = ()
    is_random: bool = False

    @property
    def change(self) -> float:
        return self.after - self.before


@dataclass(frozen=True)
class RemovalExample:
    """A test point of ``seed``, and what really happened without the training samples that each of ``removals`` selects for it.

    ``sign`` "negative": the samples that lower the explained number most; "positive": those that raise it most. ``num_points``: the test
    points of all ``num_networks`` networks, among which this one has the median change. ``meaning``: what the explained logit says, a
    sentence.
    """

    seed: int
    point: Sample
    prediction: str
    sign: str
    num_points: int
    num_networks: int
    num_train: int
    replicates: int
    removals: tuple[Removal, ...]
    meaning: str = ""


class ExamplesSource(Protocol):
    """The part of :class:`genrep_dist.results.Run` that examples read."""

    @property
    def train(self) -> Dataset: ...
    @property
    def test(self) -> Dataset: ...
    def strongest(
        self, method: str, seed: int, sign: str = "negative", count: int | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]: ...
    def test_ids(self, seed: int) -> npt.NDArray[np.int64]: ...
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
    describe: Describe | None = None,
    class_names: Sequence[str] = (),
    num_points: int = NUM_POINTS,
    num_samples: int = NUM_SAMPLES,
) -> tuple[Example, ...]:
    """The first ``num_points`` test points of ``seed`` (so that they are not hand-picked), each with the strongest samples of ``methods``.

    ``texts``: the problem's function from ids of samples to their sentences; without it, samples with the shape of images become
    pictures. ``describe``: the problem's function from ids to values by name. ``class_names``: the names of its classes.
    Of equal scores the lowest id comes first. ProblemError if ``texts`` returns anything but one string for each id, or if a
    test point and a training sample share an id, so that their texts cannot be told apart.
    """
    reader = SampleReader(run, texts, describe, class_names)
    outputs = run.test_outputs(seed)
    test_ids = run.test_ids(seed)[:num_points]
    selected = {method: selected_scores(run, method, seed, num_samples, len(test_ids)) for method in methods}
    found = []
    for column, test_id in enumerate(test_ids.tolist()):
        point, row = reader.test(test_id)
        named = []
        for method, by_point in selected.items():
            shown = [tuple(reader.training(reader.row(sample), score) for sample, score in scores) for scores in by_point[column]]
            named.append(SelectedSamples(method, *shown))
        found.append(Example(seed, point, reader.prediction(outputs[row]), tuple(named)))
    return tuple(found)


def removal_example(
    run: ExamplesSource,
    deletion: pl.DataFrame,
    methods: Sequence[str],
    *,
    random: str,
    texts: Texts | None = None,
    describe: Describe | None = None,
    class_names: Sequence[str] = (),
    replicates: int = 1,
    num_samples: int = NUM_SAMPLES,
) -> RemovalExample | None:
    """The test point that has the median change under the first of ``methods``, of all networks, with the removals of all methods.

    ``deletion`` is the published table. The removal is the one of ``num_samples`` samples, or else the smallest one that was made, of the
    samples with the most negative scores where they were removed. None if nothing was removed, or if the first method was not measured.
    """
    rows = deletion.filter(pl.col("method").is_in(list(methods)) & (pl.col("num_removed") > 0))
    sign = "negative" if "negative" in rows["sign"] else "positive"
    rows = rows.filter(sign=sign)
    sizes = rows["num_removed"].unique().sort().to_list()
    if not sizes or not methods:
        return None
    size = num_samples if num_samples in sizes else sizes[0]
    first = rows.filter(method=methods[0], num_removed=size).unique(["seed", "test_id"]).sort("delta", "seed", "test_id")
    if not first.height:
        return None
    chosen = first.row((first.height - 1) // 2, named=True)
    seed = chosen["seed"]
    reader = SampleReader(run, texts, describe, class_names)
    point, at = reader.test(chosen["test_id"])
    column = run.test_ids(seed).tolist().index(chosen["test_id"])
    removals = []
    for method in methods:
        is_random, mine = method == random, rows.filter(method=method, seed=seed, test_id=chosen["test_id"])
        after = dict(mine.select("num_removed", "score_retrained").iter_rows())
        more = tuple((count, value) for count, value in sorted(after.items()) if count > size)
        for row in mine.filter(num_removed=size).head(1).iter_rows(named=True):
            ids, scores = (values[column].tolist() for values in run.strongest(method, seed, sign, min(num_samples, size)))
            # The scores of random removal only make its order.
            samples = tuple(reader.training(reader.row(one), None if is_random else score) for one, score in zip(ids, scores, strict=True))
            removals.append(Removal(method, samples, size, row["score_original"], row["score_retrained"], more, is_random))
    prediction = reader.prediction(run.test_outputs(seed)[at])
    num_networks = first["seed"].n_unique()
    return RemovalExample(
        seed, point, prediction, sign, first.height, num_networks, len(run.train.ids), replicates, tuple(removals), reader.meaning
    )


Scores = list[tuple[int, float]]
"""Ids of training samples with their scores."""


def selected_scores(run: ExamplesSource, method: str, seed: int, count: int, num_points: int) -> list[tuple[Scores, Scores]]:
    """Of each of the first ``num_points`` test points the ``count`` most positive and most negative scores, strongest first, none zero."""
    found: list[list[Scores]] = []
    for sign, direction in (("positive", 1), ("negative", -1)):
        kept = [values[:num_points].tolist() for values in run.strongest(method, seed, sign, count)]
        pairs = [zip(ids, scores, strict=True) for ids, scores in zip(*kept, strict=True)]
        found.append([[(sample, score) for sample, score in point if direction * score > 0] for point in pairs])
    return list(zip(*found, strict=True))


class SampleReader:
    """Reads rows of the datasets as samples for the report. The arguments are those of :func:`examples`."""

    def __init__(self, run: ExamplesSource, texts: Texts | None, describe: Describe | None = None, class_names: Sequence[str] = ()) -> None:
        self.train_data, self.test_data, self.loss_name = run.train, run.test, run.loss_name
        self.texts, self.describe, self.class_names = texts, describe, class_names
        self.flipped = frozenset(run.flipped_ids())
        inputs = run.train.inputs
        self.bounds = PixelRange.from_images(inputs) if texts is None and are_images(inputs) else None
        self.is_table = texts is None and form_of(inputs) is None and inputs.dim() == 2 and inputs.is_floating_point()
        self.shown_features: list[int] = []
        self._by_id: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None

    def row(self, sample: int) -> int:
        """The row of a training sample."""
        if self._by_id is None:
            order = np.argsort(self.train_data.ids.numpy())
            self._by_id = order, self.train_data.ids.numpy()[order]
        order, ids = self._by_id
        return int(order[np.searchsorted(ids, sample)])

    def training(self, row: int, phi: float | None) -> Sample:
        return self._sample(self.train_data, row, phi, int(self.train_data.ids[row]) in self.flipped)

    def test(self, test_id: int) -> tuple[Sample, int]:
        """The test point and its row."""
        looked_up = "texts" if self.texts is not None else "describe"
        if (self.texts is not None or self.describe is not None) and bool((self.train_data.ids == test_id).any()):
            raise ProblemError(
                f"a {'sentence' if looked_up == 'texts' else 'description'} cannot be looked up by its id",
                where=f"problem.{looked_up}, id {test_id}",
                expected="ids that differ between training and test set",
                got="a training sample and a test point of this id",
                remedy=f"number the test samples on from the training samples, or leave out {looked_up}()",
            )
        row = int((self.test_data.ids == test_id).nonzero()[0, 0])
        return self._sample(self.test_data, row, None, flipped=False), row

    @property
    def meaning(self) -> str:
        """What the sign of the only logit says, if its classes have names."""
        if self.loss_name != "logistic" or len(self.class_names) != 2:
            return ""
        return f"Above 0 the network predicts “{self.class_names[1]}”, below 0 “{self.class_names[0]}”."

    def prediction(self, outputs: npt.NDArray[Any]) -> str:
        """The original model's outputs (C,) for one sample, in words."""
        if self.loss_name not in ("logistic", "softmax"):
            return _cut(", ".join(f"{float(value):.3g}" for value in outputs), 40)
        chosen = int(outputs.argmax()) if len(outputs) > 1 else int(outputs[0] > 0)
        name = self.class_names[chosen] if chosen < len(self.class_names) else f"class {chosen}"
        return f"{name}, logit {float(outputs[chosen if len(outputs) > 1 else 0]):.3g}"

    def _sample(self, data: Dataset, row: int, phi: float | None, flipped: bool) -> Sample:
        picture = None if self.bounds is None else png(data.inputs[row], self.bounds)
        text = None if self.texts is None else self._text(self.texts, data.ids[row : row + 1])
        return Sample(int(data.ids[row]), self._label(data.targets[row]), phi, flipped, picture, text, self._features(data, row))

    def _label(self, target: Tensor) -> str:
        values = target.reshape(-1).tolist()
        if len(values) == 1 and float(values[0]).is_integer() and 0 <= values[0] < len(self.class_names):
            return self.class_names[int(values[0])]
        return _cut(", ".join(f"{value:g}" for value in values), 40)

    def _features(self, data: Dataset, row: int) -> tuple[tuple[str, str], ...]:
        """What the problem says of a sample; else the values in which the first sample read is farthest from the training mean."""
        if self.describe is not None:
            found = _called(self.describe, data.ids[row : row + 1], "problem.describe")
            if isinstance(found, str) or not isinstance(found, Sequence) or len(found) != 1 or not isinstance(found[0], Mapping):
                raise ProblemError(
                    "the problem's describe() returned something else",
                    where="problem.describe",
                    expected="one dictionary of values by name for each id",
                    got=repr(found)[:80],
                )
            return tuple((_cut(str(name), 40), _cut(_value(value), 40)) for name, value in found[0].items())[:MAX_FEATURES]
        if not self.is_table:
            return ()
        if not self.shown_features:
            inputs = self.train_data.inputs[:MAX_ROWS].double()
            distance = ((data.inputs[row].double() - inputs.mean(dim=0)) / inputs.std(dim=0).clamp_min(1e-12)).abs()
            self.shown_features = sorted(distance.nan_to_num().argsort(descending=True, stable=True)[:MAX_FEATURES].tolist())
        return tuple((f"input {place}", _value(float(data.inputs[row, place]))) for place in self.shown_features)

    def _text(self, texts: Texts, ids: Tensor) -> str:
        found = _called(texts, ids, "problem.texts")
        if isinstance(found, str) or not isinstance(found, Sequence) or [type(text) for text in found] != [str]:
            raise ProblemError(
                "the problem's texts() returned something else",
                where="problem.texts",
                expected="one string for each id",
                got=repr(found)[:80],
            )
        return _cut(str(found[0]), MAX_TEXT)


def _called(function: Callable[[Tensor], object], ids: Tensor, where: str) -> object:
    """What a function of the problem returns. ProblemError if it fails."""
    try:
        return function(ids)
    except Exception as error:
        raise user_code_error(f"{where}() failed", where, error) from error


def _cut(text: str, length: int) -> str:
    """``text`` on one line, at most ``length`` characters."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"


def _value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
