"""The strongest scores, merged over blocks, against the ranking of all scores."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genrep_dist.core.attribution import Sign, ranking
from genrep_dist.core.strongest import StrongestScores
from genrep_dist.errors import NonFiniteError, ProblemError

SIGNS: tuple[Sign, ...] = ("negative", "positive")


@given(st.data())
def test_blocks_in_any_order_give_the_beginning_of_the_ranking(data: st.DataObject) -> None:
    """With many ties, ids in any order, blocks of any size, in parts that are merged, packed and unpacked on the way."""
    rows, points = data.draw(st.integers(1, 24)), data.draw(st.integers(1, 3))
    count = data.draw(st.integers(1, rows))
    values = data.draw(st.lists(st.sampled_from([-1.0, -0.5, -0.0, 0.0, 0.5, 1.0]), min_size=rows * points, max_size=rows * points))
    phi = torch.tensor(values, dtype=torch.float64).view(rows, points)
    ids = torch.tensor(data.draw(st.permutations(range(100, 100 + rows))))
    cuts = sorted({0, rows, *data.draw(st.lists(st.integers(0, rows), max_size=5))})
    spans = data.draw(st.permutations(list(itertools.pairwise(cuts))))
    parts: list[StrongestScores] = []
    for start, stop in spans:
        if not parts or data.draw(st.booleans()):
            parts.append(StrongestScores(points, count))
        parts[-1].add(phi[start:stop], ids[start:stop])
    whole = StrongestScores.unpacked(parts[0].packed())
    for part in parts[1:]:
        whole.merge(StrongestScores.unpacked(part.packed()))
    for sign in SIGNS:
        order, found = ranking(phi, ids, count, sign), whole.strongest(sign)
        assert torch.equal(found.ids, order)
        place = {sample: row for row, sample in enumerate(ids.tolist())}
        expected = torch.stack([phi[[place[sample] for sample in order[m].tolist()], m] for m in range(points)])
        assert torch.equal(found.scores, expected)
    torch.testing.assert_close(whole.total, phi.sum(dim=0))


def test_many_rows_at_once() -> None:
    """More than are merged at once, with ties: the strongest of all, not of the first rows."""
    draw = torch.Generator().manual_seed(0)
    phi, ids = torch.randint(-2000, 2000, (9000, 2), generator=draw).double(), torch.randperm(9000, generator=draw)
    scores = StrongestScores(2, 50)
    scores.add(phi, ids)
    for sign in SIGNS:
        assert torch.equal(scores.strongest(sign).ids, ranking(phi, ids, 50, sign))


def test_what_is_refused() -> None:
    scores = StrongestScores(2, 3)
    with pytest.raises(NonFiniteError, match=r"ids \[7\]"):
        scores.add(torch.tensor([[0.0, 1.0], [float("nan"), 0.0]], dtype=torch.float64), torch.tensor([5, 7]))
    with pytest.raises(ProblemError, match=r"\(B, 2\)"):
        scores.add(torch.zeros(4, 3, dtype=torch.float64), torch.arange(4))
    with pytest.raises(ProblemError, match="1 or more"):
        StrongestScores(2, 0)
