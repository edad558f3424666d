"""Test rows whose input is that of a training row: removing that row from training acts on its own copy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from torch import Tensor

from genrep_dist.diagnostics.context import CheckContext
from genrep_dist.diagnostics.finding import Finding, compare, count_text

BEFORE_RETRAINING = True
MOST_BYTES, MOST_ROWS = 2**29, 500_000
"""What is compared of a data set, in about a second; of larger ones some rows are left out."""
_BLOCK_BYTES = 2**23
FEW_COPIES = 5
"""So many may be natural in a test set of any size."""
SAME_SETS = 0.1
"""Share of the test rows beyond which the two sets were not split: natural copies, of short texts for example, are fewer."""


def check(context: CheckContext) -> Iterator[Finding]:
    test = Counter(map(hash, _rows(context.worker.test.inputs)))
    num_train, found = 0, set()
    for row in _rows(context.worker.train.inputs):
        num_train += 1
        if hash(row) in test:
            found.add(hash(row))
    copies = sum(test[row] for row in found)
    are_same = copies > max(FEW_COPIES, SAME_SETS * test.total())
    yield compare(
        "overlap",
        copies,
        0,
        f"test rows whose input is equal to that of a training row, of {count_text(test.total(), 'test row')} and "
        f"{count_text(num_train, 'training row')}; bound: a model may have learned such a row by heart"
        + (f"; more than {SAME_SETS:.0%} of the test rows are training rows" if are_same else ""),
        "let train_data() and test_data() return different samples"
        if are_same
        else "remove copies from one of the two sets, if they are not meant to be there",
        otherwise="red" if are_same else "amber",
    )


def _rows(inputs: Tensor) -> Iterator[bytes]:
    """The bytes of rows of ``inputs`` (N, ...): of all rows, or of one in several where all are too many."""
    row_bytes = max(1, inputs[:1].numel() * inputs.element_size())
    stride = max(1, len(inputs) * row_bytes // MOST_BYTES, len(inputs) // MOST_ROWS)
    step = stride * max(1, _BLOCK_BYTES // row_bytes)
    for start in range(0, len(inputs), step):
        yield from (row.tobytes() for row in inputs[start : start + step : stride].cpu().numpy())
