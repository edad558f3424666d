"""Test rows whose input is that of a training row: removing that row from training acts on its own copy."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from genrep_dist.diagnostics.context import CheckContext
from genrep_dist.diagnostics.finding import Finding, compare, count_text

BEFORE_RETRAINING = True
MOST_BYTES = 2**29
"""Bytes of inputs that are compared, which takes about a second; of larger data sets some rows are left out."""
_ROWS = 256


def check(context: CheckContext) -> Iterator[Finding]:
    train, test = context.worker.train.inputs, context.worker.test.inputs
    known, num_train = set(), 0
    for row in _rows(train):
        known.add(hash(row))
        num_train += 1
    equal = num_test = 0
    for row in _rows(test):
        equal += hash(row) in known
        num_test += 1
    yield compare(
        "overlap",
        equal,
        0,
        f"test rows whose input is equal to that of a training row, of {count_text(num_test, 'test row')} and "
        f"{count_text(num_train, 'training row')}; bound: a model may have learned such a row by heart, and the method that finds the "
        "copy is right for a simple reason",
        "remove copies from one of the two sets, if they are not meant to be there",
        otherwise="amber",
    )


def _rows(inputs: Tensor) -> Iterator[bytes]:
    """The bytes of rows of ``inputs`` (N, ...): of all rows, or of one in several where all are too many."""
    stride = max(1, inputs.numel() * inputs.element_size() // MOST_BYTES)
    for start in range(0, len(inputs), stride * _ROWS):
        block = inputs[start : start + stride * _ROWS : stride].cpu().contiguous().numpy()
        yield from (row.tobytes() for row in block)
