"""Feature rows that were packed, stored and read again are the rows that there were."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from genrep_dist.core.gradients.factored import FactoredGradients, inner_products
from genrep_dist.core.gradients.per_sample import factored_gradients
from genrep_dist.errors import CorruptError
from genrep_dist.problems.datasets.image_models import VisionCNN
from genrep_dist.problems.datasets.text_models import TextCNN
from genrep_dist.store import Store
from genrep_dist.store.artifacts import Artifact
from genrep_dist.store.feature_codec import PackedRows, pack, unpack
from genrep_dist.store.feature_table import COLUMNS, TABLE
from genrep_dist.store.features import RowsReader, write_block
from tests.core.models import cnn, initialise, mlp, rows


def tokens(count: int, length: int, vocabulary: int, seed: int = 0) -> Tensor:
    """Sentences of different lengths, padded with zeros."""
    generator = torch.Generator().manual_seed(seed)
    found = (torch.rand(count, length, generator=generator) ** 2 * (vocabulary - 1)).long() + 1
    lengths = torch.randint(1, length + 1, (count, 1), generator=generator)
    return found.masked_fill(torch.arange(length) >= lengths, 0)


def text_cnn(num_outputs: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return TextCNN(num_outputs, vocabulary_size=60, embedding_width=6, channels=(8, 10, 30)).eval()


def deep() -> nn.Module:
    """Positions few enough to be multiplied pair by pair, a wide linear layer, grouped and dilated convolutions."""
    body = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1, dilation=2, groups=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 24, 2, stride=(2, 1)),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(40),
        nn.ReLU(),
        nn.Linear(40, 2),
    )
    body(torch.zeros(1, 2, 8, 8))
    return initialise(body, 0, torch.float32)


@pytest.mark.filterwarnings("ignore:Lazy modules")
def examples() -> dict[str, Callable[[], tuple[nn.Module, Tensor]]]:
    return {
        "mlp": lambda: (mlp(2, dtype=torch.float32), rows(9, 4, dtype=torch.float32)),
        "cnn": lambda: (cnn(3, dtype=torch.float32), rows(9, 2, 6, 6, dtype=torch.float32)),
        "deep": lambda: (deep(), rows(9, 2, 8, 8, dtype=torch.float32)),
        "text": lambda: (text_cnn(), tokens(9, 12, 60)),
        "text, three outputs": lambda: (text_cnn(3), tokens(9, 12, 60)),
        "vision": lambda: (VisionCNN().eval(), rows(5, 1, 28, 28, dtype=torch.float32)),
    }


NAMES = ["mlp", "cnn", "deep", "text", "text, three outputs", "vision"]


def equal(found: FactoredGradients, expected: FactoredGradients) -> None:
    """Bit for bit, in what they are and in what is computed from them."""
    assert torch.equal(found.to_dense(), expected.to_dense())
    assert found.parameters == expected.parameters
    assert torch.equal(inner_products(found, found), inner_products(expected, expected))
    own = torch.zeros(len(found), dtype=torch.int64)
    assert torch.equal(found.self_product(own), expected.self_product(own))


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("name", NAMES)
def test_what_is_unpacked_is_what_was_packed(name: str) -> None:
    model, inputs = examples()[name]()
    found = factored_gradients(model, inputs)
    packed = pack(found)
    equal(unpack(packed), found)
    # Rows from one block beside rows from another, which may have been kept in another form.
    halves = [unpack(pack(found.part(0, 3))), unpack(pack(found.part(3, len(found))))]
    equal(FactoredGradients.cat(halves), found)
    assert packed.num_bytes < 4 * found.to_dense().numel() + 8 * len(packed.layout_bytes())


def test_padding_takes_almost_no_bytes() -> None:
    model = text_cnn()
    short = tokens(8, 12, 60)
    padded = torch.cat([short, torch.zeros(8, 100, dtype=torch.int64)], dim=1)
    small, large = (pack(factored_gradients(model, inputs)).num_bytes for inputs in (short, padded))
    # A bit for each of the numbers that padding has.
    assert large < small + 8 * 100 * (6 + 2 * 8 + 2 * 10 + 30) / 8 + 200


def test_the_input_under_no_gradient_is_left_out() -> None:
    """The first half of the input matters to no output: its numbers are not kept, and no product changes."""

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 9, 3, padding=1), nn.Linear(9, 1)

        def forward(self, inputs: Tensor) -> Tensor:
            hidden = torch.tanh(self.conv(inputs))[:, :, 10:]
            out: Tensor = self.head(hidden.mean(dim=(2, 3)))
            return out

    model, inputs = initialise(Half(), 0, torch.float32), rows(6, 3, 20, 4, dtype=torch.float32)
    found = factored_gradients(model, inputs)
    packed = pack(found)
    equal(unpack(packed), found)
    assert packed.values.size < 0.65 * found.numel


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=40), st.floats(0, 1), st.integers(0, 99))
def test_any_numbers_survive(values: list[float], share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rest = torch.tensor(values, dtype=torch.float32).view(1, 1, -1)
    rest = rest.masked_fill(torch.rand(rest.shape, generator=generator) < share, 0.0)
    block = FactoredGradients((), (), rest, (("p", (len(values),)),), (("p", (len(values),)),))
    packed = pack(block)
    assert torch.equal(unpack(packed).rest, rest)
    assert packed.values.nbytes + packed.indices.nbytes + packed.masks.nbytes <= rest.numel() * 4


@pytest.mark.parametrize("harm", ["values", "masks", "indices"])
def test_arrays_that_do_not_fit_are_refused(harm: str) -> None:
    packed = pack(factored_gradients(text_cnn(), tokens(9, 12, 60)))
    arrays = {name: getattr(packed, name) for name in ("values", "indices", "masks")}
    for changed in (arrays[harm][:-1], np.concatenate([arrays[harm], arrays[harm][:1]])):
        with pytest.raises(CorruptError, match="does not match its layout"):
            unpack(PackedRows(**{**arrays, harm: changed}, layout=packed.layout))


def stored(folder: Path, found: FactoredGradients, size: int) -> Artifact:
    artifact = Store(str(folder)).artifact("features", "ab" * 32)
    starts = list(range(0, len(found), size))
    artifact.create(TABLE, (len(found), len(COLUMNS)), (size, len(COLUMNS)), "int64", ("train", "column"))
    for start in starts:
        write_block(artifact, f"rows-{start:09d}", start, found.part(start, min(start + size, len(found))))
    artifact.commit({}, [f"rows-{start:09d}" for start in starts])
    return artifact


@pytest.mark.parametrize("size", [1, 4, 9, 20])
def test_any_rows_of_any_blocks(tmp_path: Path, size: int) -> None:
    found = factored_gradients(text_cnn(), tokens(17, 12, 60))
    reader = RowsReader(stored(tmp_path, found, size))
    assert reader.num_rows == 17
    for start, stop in ((0, 17), (0, 1), (16, 17), (3, 5), (3, 13), (8, 9)):
        equal(reader.read(start, stop), found.part(start, stop))
    with pytest.raises(CorruptError, match="missing"):
        reader.read(10, 18)


def test_a_block_that_is_written_again_with_other_lengths_leaves_the_others(tmp_path: Path) -> None:
    found = factored_gradients(text_cnn(), tokens(8, 12, 60))
    artifact = Store(str(tmp_path)).artifact("features", "ab" * 32)
    artifact.create(TABLE, (8, len(COLUMNS)), (4, len(COLUMNS)), "int64", ("train", "column"))
    write_block(artifact, "rows-0", 0, found.part(0, 4))
    write_block(artifact, "rows-4", 4, found.part(0, 4))
    write_block(artifact, "rows-4", 4, found.part(4, 8))
    artifact.commit({}, ["rows-0", "rows-4"])
    equal(RowsReader(artifact).read(0, 8), found)
