from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import matplotlib.image
import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from genrep_dist.errors import ProblemError
from genrep_dist.evaluation.tables import table_specs
from genrep_dist.problems.protocol import Dataset
from genrep_dist.report.examples import MAX_FEATURES, MAX_TEXT, Texts, examples, removal_example, selected_scores
from genrep_dist.report.pixels import LARGEST_SIDE, PixelRange, are_images, png

pytestmark = pytest.mark.publishes


@dataclass
class FakeRun:
    """As much of a run as examples read: 8 training samples, 3 test points of which the seed has the last two.

    Output c is the sum of the inputs plus c.
    """

    shape: tuple[int, ...] = (1, 4, 4)
    outputs: int = 1
    loss: str = "logistic"
    flipped: frozenset[int] = field(default_factory=frozenset)
    test_start: int = 100

    def __post_init__(self) -> None:
        draw = torch.Generator().manual_seed(1)
        self.train = Dataset(torch.rand(8, *self.shape, generator=draw), torch.tensor([0.0, 1.0] * 4), torch.arange(10, 18))
        self.test = Dataset(
            torch.rand(3, *self.shape, generator=draw), torch.tensor([1.0, 0.0, 1.0]), torch.arange(self.test_start, self.test_start + 3)
        )

    def attributions(self, method: str, seed: int) -> np.ndarray[Any, Any]:
        column = np.array([0.1, -0.2, 0.3, -0.4, 0.3, 0.0, -0.5, 0.2])
        return np.stack([column, -column], axis=1) * (1 if method == "good" else 10)

    def test_ids(self, seed: int) -> np.ndarray[Any, Any]:
        return self.test.ids.numpy()[[2, 1]]

    def train_ids(self, seed: int) -> np.ndarray[Any, Any]:
        return self.train.ids.numpy()

    def test_outputs(self, seed: int) -> np.ndarray[Any, Any]:
        return (self.test.inputs.reshape(3, -1).sum(1, keepdim=True) + torch.arange(self.outputs)).numpy()

    @property
    def loss_name(self) -> str:
        return self.loss

    def flipped_ids(self) -> frozenset[int]:
        return self.flipped

    def strongest(
        self, method: str, seed: int, sign: str = "negative", count: int | None = None
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        phi, ids = self.attributions(method, seed).T, self.train_ids(seed)
        order = np.array([np.lexsort((ids, column)) for column in phi * (1 if sign == "negative" else -1)])[:, :count]
        return ids[order], np.take_along_axis(phi, order, axis=1)


def deletions(sizes: Sequence[int] = (0, 3, 5), sign: str = "negative") -> pl.DataFrame:
    """Two seeds with the points 101 and 102; the change of "good" is 1, 2, 3 and 4 at the first removal."""
    rows = [
        (seed, method, point, sign, size / 8, size, -2.0, -2.0 + change, change)
        for seed in range(2)
        for method in ("good", "random")
        for point in (101, 102)
        for size in sizes
        for change in [(1 + (point == 102) + 2 * seed) * min(size, 1) * (1 if method == "good" else 0.1) * (1 + size / 100)]
    ]
    return pl.DataFrame(rows, schema=dict(table_specs()["deletion"].columns), orient="row")


def test_the_first_example_is_the_median_point_and_a_removal_that_was_made() -> None:
    found = removal_example(FakeRun(), deletions(), ["good", "random"], random="random", num_samples=5)
    assert found is not None
    # Of the changes 1, 2, 3 and 4 the lower one of the middle two is that of point 102 of seed 0.
    assert (found.seed, found.point.id, found.num_points, found.num_networks, found.num_train) == (0, 102, 4, 2, 8)
    good, random = found.removals
    assert (good.method, good.num_removed, good.is_random, random.is_random) == ("good", 5, False, True)
    assert (good.before, good.after, random.after) == pytest.approx((-2.0, -2.0 + 2 * 1.05, -2.0 + 0.2 * 1.05))
    assert [sample.id for sample in good.samples] == [16, 13, 11, 15, 10]
    assert [sample.phi for sample in good.samples] == pytest.approx([-0.5, -0.4, -0.2, 0.0, 0.1])
    assert {sample.phi for sample in random.samples} == {None}


def test_where_none_of_five_was_made_the_first_example_is_the_smallest_removal() -> None:
    found = removal_example(FakeRun(), deletions((0, 3, 6)), ["good"], random="random")
    assert found is not None
    (good,) = found.removals
    assert (good.num_removed, len(good.samples)) == (3, 3)
    assert dict(good.more) == pytest.approx({6: -2.0 + 2 * 1.06})
    large = removal_example(FakeRun(), deletions((0, 7)), ["good"], random="random")
    assert large is not None
    assert (large.removals[0].num_removed, len(large.removals[0].samples)) == (7, 5)


def test_without_negative_removals_the_first_example_is_of_positive_ones() -> None:
    found = removal_example(FakeRun(), deletions(sign="positive"), ["good"], random="random", num_samples=3)
    assert found is not None
    assert found.sign == "positive"
    assert [sample.id for sample in found.removals[0].samples] == [12, 14, 17]


def test_nothing_removed_is_no_example() -> None:
    assert removal_example(FakeRun(), deletions((0,)), ["good"], random="random") is None
    assert removal_example(FakeRun(), deletions(), ["other"], random="random") is None
    assert removal_example(FakeRun(), deletions().head(0), ["good"], random="random") is None


def test_classes_have_their_names() -> None:
    found = removal_example(FakeRun(), deletions(), ["good"], random="random", class_names=("cat", "dog"))
    assert found is not None
    assert found.point.label == "dog"
    assert found.prediction.startswith("dog, logit")
    assert found.meaning == "Above 0 the network predicts “dog”, below 0 “cat”."


def test_tables_show_the_values_in_which_the_test_point_is_unusual() -> None:
    run = FakeRun(shape=(12,))
    run.test.inputs[2, [3, 7]] = torch.tensor([50.0, -50.0])
    found = removal_example(run, deletions(), ["good"], random="random")
    assert found is not None
    assert len(found.point.features) == MAX_FEATURES
    assert {("input 3", "50"), ("input 7", "-50")} <= set(found.point.features)
    names = [name for name, _ in found.point.features]
    assert all([name for name, _ in sample.features] == names for sample in found.removals[0].samples)


def test_the_problems_own_description_goes_before_the_inputs() -> None:
    def describe(ids: Tensor) -> list[dict[str, object]]:
        return [{"age": 30 + int(sample), "mood": "calm\n <b>"} for sample in ids]

    found = removal_example(FakeRun(shape=(12,)), deletions(), ["good"], random="random", describe=describe)
    assert found is not None
    assert found.point.features == (("age", "132"), ("mood", "calm <b>"))
    with pytest.raises(ProblemError, match="describe"):
        removal_example(FakeRun(shape=(12,)), deletions(), ["good"], random="random", describe=lambda ids: cast("Any", ["no"]))


def test_the_strongest_samples_of_both_signs() -> None:
    run = FakeRun(flipped=frozenset({14, 100}))
    first, second = examples(run, ["good", "random"], seed=0, num_samples=3)
    assert (first.point.id, second.point.id) == (102, 101)
    assert [(named.method, [s.id for s in named.raising], [s.id for s in named.lowering]) for named in first.methods] == [
        ("good", [12, 14, 17], [16, 13, 11]),
        ("random", [12, 14, 17], [16, 13, 11]),
    ]
    assert [s.phi for s in first.methods[1].raising] == pytest.approx([3.0, 3.0, 2.0])
    assert [s.id for s in second.methods[0].raising] == [16, 13, 11]
    assert [s.flipped for s in first.methods[0].raising] == [False, True, False]
    assert [s.label for s in first.methods[0].raising] == ["0", "0", "1"]
    assert first.point.label == "1"
    assert first.point.phi is None


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.integers(1, 5), st.randoms())
def test_against_a_loop_over_all_samples(values: list[int], count: int, shuffle: Any) -> None:
    ids = list(range(50, 50 + len(values)))
    shuffle.shuffle(ids)

    class Scored(FakeRun):
        def attributions(self, method: str, seed: int) -> np.ndarray[Any, Any]:
            return np.array(values, dtype=np.float64)[:, None]

        def train_ids(self, seed: int) -> np.ndarray[Any, Any]:
            return np.array(ids)

    ((raising, lowering),) = selected_scores(Scored(), "good", 0, count, 1)
    for found, sign in ((raising, 1), (lowering, -1)):
        wanted = sorted((-sign * value, name) for value, name in zip(values, ids, strict=True) if sign * value > 0)[:count]
        assert found == [(name, -sign * value) for value, name in wanted]


@pytest.mark.parametrize(
    ("outputs", "loss", "start"), [(1, "logistic", "class 1, logit "), (3, "softmax", "class 2, logit "), (1, "squared", "")]
)
def test_predictions(outputs: int, loss: str, start: str) -> None:
    run = FakeRun(outputs=outputs, loss=loss)
    (example,) = examples(run, ["good"], seed=0, num_points=1)
    total = float(run.test.inputs[2].sum()) + outputs - 1
    assert example.prediction == f"{start}{total:.3g}"


def test_images_become_pictures_and_other_samples_do_not() -> None:
    (example,) = examples(FakeRun(), ["good"], seed=0, num_points=1)
    assert example.point.picture is not None
    assert all(s.picture is not None for s in example.methods[0].raising)
    (example,) = examples(FakeRun(shape=(5,)), ["good"], seed=0, num_points=1)
    assert (example.point.picture, example.point.text) == (None, None)
    assert example.methods[0].raising[0].id == 12


def sentences(ids: Tensor) -> list[str]:
    return [f"sample {number}\n <script>alert(1)</script> " + "x" * 400 * (number == 12) for number in ids.tolist()]


def test_sentences_are_cut_and_go_before_pictures() -> None:
    (example,) = examples(FakeRun(), ["good"], seed=0, num_points=1, texts=sentences)
    assert example.point.text == "sample 102 <script>alert(1)</script>"
    assert example.point.picture is None
    long = example.methods[0].raising[0].text
    assert long is not None
    assert len(long) == MAX_TEXT
    assert long.endswith("x…")


@pytest.mark.parametrize("wrong", ["abc", ["a", "b"], [], [1], None, {"a": "b"}])
def test_texts_of_another_form_are_refused(wrong: object) -> None:
    with pytest.raises(ProblemError, match=r"problem\.texts"):
        examples(FakeRun(), ["good"], seed=0, texts=cast("Texts", lambda ids: wrong))


def test_a_function_of_the_problem_that_fails_is_named() -> None:
    def broken(ids: Tensor) -> list[str]:
        raise KeyError(int(ids[0]))

    with pytest.raises(ProblemError, match=r"problem\.texts\(\) failed"):
        examples(FakeRun(), ["good"], seed=0, texts=broken)
    with pytest.raises(ProblemError, match=r"problem\.describe\(\) failed"):
        examples(FakeRun(), ["good"], seed=0, describe=cast("Any", broken))


def test_a_test_point_with_a_training_samples_id_has_no_sentence() -> None:
    assert examples(FakeRun(test_start=15), ["good"], seed=0)
    with pytest.raises(ProblemError, match="cannot be looked up by its id"):
        examples(FakeRun(test_start=15), ["good"], seed=0, texts=sentences)


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((2, 1, 4, 4), torch.float32, True),
        ((2, 3, 4, 4), torch.float64, True),
        ((2, 4, 4), torch.float32, True),
        ((2, 2, 4, 4), torch.float32, False),
        ((2, 4), torch.float32, False),
        ((2, 4, 4), torch.int64, False),
        ((2, 1, 4, 4, 4), torch.float32, False),
    ],
)
def test_what_has_the_form_of_images(shape: Sequence[int], dtype: torch.dtype, *, expected: bool) -> None:
    assert are_images(torch.zeros(*shape, dtype=dtype)) is expected


def read(picture: bytes) -> np.ndarray[Any, Any]:
    pixels: np.ndarray[Any, Any] = matplotlib.image.imread(io.BytesIO(picture), format="png")
    return pixels


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_has_the_samples_pixels(channels: int) -> None:
    images = torch.rand(5, channels, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 4 - 2
    low, high = images.amin(dim=(0, 2, 3)), images.amax(dim=(0, 2, 3))
    drawn = read(png(images[1], PixelRange.from_images(images)))
    assert drawn.shape[:2] == (6, 7)
    for row in range(6):
        for column in range(7):
            for channel in range(3):
                source = channel if channels == 3 else 0
                expected = (images[1, source, row, column] - low[source]) / (high[source] - low[source])
                assert drawn[row, column, channel] == pytest.approx(float(expected), abs=0.5 / 255 + 1e-6)


def test_grey_images_without_a_channel_and_constant_ones() -> None:
    images = torch.rand(3, 5, 5, generator=torch.Generator().manual_seed(3))
    assert png(images[0], PixelRange.from_images(images)) == png(images[0][None], PixelRange.from_images(images[:, None]))
    flat = torch.ones(2, 5, 5)
    assert read(png(flat[0], PixelRange.from_images(flat)))[..., :3].max() == 0
    bright = png(images[0] + 9, PixelRange.from_images(images))
    assert read(bright)[..., :3].min() == 1


def test_large_images_are_averaged_down() -> None:
    image = torch.zeros(1, 256, 128)
    image[:, :128] = 1
    drawn = read(png(image, PixelRange.from_images(image[None])))
    assert drawn.shape[:2] == (LARGEST_SIDE, LARGEST_SIDE // 2)
    assert (drawn[:32, :, :3] == 1).all()
    assert (drawn[32:, :, :3] == 0).all()


def test_equal_images_give_equal_bytes() -> None:
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    assert png(images[0], PixelRange.from_images(images)) == png(images[0].clone(), PixelRange.from_images(images))
