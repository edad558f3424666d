"""Attributions against loops; rankings and random scores by their properties."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from genrep_dist.core.attribution import Sign, attribute, random_scores, ranking, tracincp
from genrep_dist.core.gradients.model import model_outputs
from genrep_dist.core.gradients.per_sample import per_sample_gradients
from genrep_dist.core.importances.target import target_importance
from genrep_dist.core.kernels.blocks import ntk_block
from genrep_dist.core.losses import LOSSES
from genrep_dist.errors import MethodError, NonFiniteError, ProblemError
from tests.core.models import mlp, rows, seeded


def test_attribute_agrees_with_loops() -> None:
    alpha, kernel = rows(4, 3), rows(4, 3, 2, seed=2)
    phi = attribute(alpha, kernel)
    assert phi.shape == (4, 2)
    for n in range(4):
        for m in range(2):
            expected = sum(float(alpha[n, c]) * float(kernel[n, c, m]) for c in range(3))
            assert float(phi[n, m]) == pytest.approx(expected, rel=1e-12)


def test_attribute_takes_the_wider_dtype() -> None:
    assert attribute(rows(2, 1), rows(2, 1, 3).float()).dtype == torch.float64
    assert attribute(rows(2, 1).float(), rows(2, 1, 3).float()).dtype == torch.float32


@pytest.mark.parametrize("num_outputs", [1, 3])
@pytest.mark.parametrize("sizes", [(7,), (3, 4), (1, 5, 1)])
def test_a_kernel_may_come_in_blocks_of_rows(num_outputs: int, sizes: tuple[int, ...]) -> None:
    alpha, kernel = rows(7, num_outputs), rows(7, num_outputs, 2, seed=2)
    whole = attribute(alpha, kernel)
    torch.testing.assert_close(attribute(alpha, torch.split(kernel, list(sizes))), whole, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(tracincp([(0.5, alpha, iter(torch.split(kernel, list(sizes))))]), 0.5 * whole, rtol=1e-14, atol=1e-14)
    with pytest.raises(ProblemError, match="missing"):
        attribute(alpha, torch.split(kernel[:5], 2))


def test_attribute_refuses_what_does_not_fit() -> None:
    for alpha, kernel in ((rows(3, 1), rows(2, 1, 4)), (rows(2, 2), rows(2, 1, 4)), (rows(2), rows(2, 1, 4)), (rows(2, 1), rows(2, 1))):
        with pytest.raises(ProblemError, match="do not fit"):
            attribute(alpha, kernel)


@pytest.mark.parametrize(("loss_name", "num_outputs"), [("logistic", 1), ("softmax", 3)])
def test_tracincp_agrees_with_gradients_of_the_loss(loss_name: str, num_outputs: int) -> None:
    # Eq. 14 from its first line: inner products of the loss's gradient with the output's, one backward pass for each.
    loss = LOSSES[loss_name]
    train, test = rows(5, 4), rows(3, 4, seed=2)
    targets = torch.randint(max(2, num_outputs), (5,), generator=seeded(3))
    index = torch.arange(3) % num_outputs
    rates = [0.3, 0.1, 0.05]
    expected = torch.zeros(5, 3, dtype=torch.float64)
    for t, rate in enumerate(rates):
        model = mlp(num_outputs, seed=t)
        parameters = list(model.parameters())
        for i in range(5):
            value = loss.value(model_outputs(model, train[i : i + 1]), targets[i : i + 1]).sum()
            of_loss = torch.autograd.grad(value, parameters)
            for m in range(3):
                of_output = torch.autograd.grad(model_outputs(model, test[m : m + 1])[0, index[m]], parameters)
                expected[i, m] -= rate * sum(float((a * b).sum()) for a, b in zip(of_loss, of_output, strict=True))

    def terms() -> Iterator[tuple[float, Tensor, Tensor]]:
        for t, rate in enumerate(rates):
            model = mlp(num_outputs, seed=t)
            alpha = target_importance(loss, model_outputs(model, train).detach(), targets)
            yield rate, alpha, ntk_block(per_sample_gradients(model, train), per_sample_gradients(model, test, index))

    torch.testing.assert_close(tracincp(terms()), expected, rtol=1e-11, atol=1e-12)


def test_tracincp_refuses_no_checkpoints_and_unequal_ones() -> None:
    with pytest.raises(MethodError, match="needs checkpoints"):
        tracincp([])
    with pytest.raises(ProblemError, match="disagree"):
        tracincp([(0.1, rows(2, 1), rows(2, 1, 3)), (0.1, rows(2, 1), rows(2, 1, 4))])


def test_random_scores_are_deterministic_and_each_point_has_its_own() -> None:
    whole = random_scores([11, 12, 13], 50)
    assert whole.dtype == torch.float64
    torch.testing.assert_close(random_scores(range(11, 14), 50), whole, rtol=0, atol=0)
    # A point's scores depend on its seed alone, not on the other points or on the global generator.
    torch.manual_seed(1)
    torch.testing.assert_close(random_scores([13], 50)[:, 0], whole[:, 2], rtol=0, atol=0)
    assert not torch.equal(whole[:, 0], whole[:, 1])
    assert random_scores([], 50).shape == (50, 0)


def test_random_scores_are_standard_normal_and_independent() -> None:
    scores = random_scores(range(4), 20_000)
    assert scores.mean(dim=0).abs().max() < 0.03
    torch.testing.assert_close(scores.T @ scores / 20_000, torch.eye(4, dtype=torch.float64), rtol=0, atol=0.04)


def ranking_by_loop(phi: Tensor, ids: Tensor, count: int, sign: Sign) -> list[list[int]]:
    factor = 1 if sign == "negative" else -1
    lists = []
    for m in range(phi.shape[1]):
        pairs = sorted((factor * float(phi[n, m]), int(ids[n])) for n in range(phi.shape[0]))
        lists.append([sample for _, sample in pairs[:count]])
    return lists


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_ranking_agrees_with_sorting_pairs_of_score_and_id(data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(-5, 10**12), min_size=1, max_size=8, unique=True))
    num_test = data.draw(st.integers(0, 3))
    # Few different values, so that ties are frequent, and both zeros.
    values = st.sampled_from([-1.5, -0.0, 0.0, 2.0, 1e-30])
    phi = torch.tensor(data.draw(st.lists(st.lists(values, min_size=num_test, max_size=num_test), min_size=len(ids), max_size=len(ids))))
    phi = phi.reshape(len(ids), num_test)
    count = data.draw(st.integers(0, len(ids)))
    sign: Sign = data.draw(st.sampled_from(["negative", "positive"]))
    ranked = ranking(phi, torch.tensor(ids), count, sign)
    assert ranked.shape == (num_test, count)
    assert ranked.dtype == torch.int64
    assert ranked.tolist() == ranking_by_loop(phi, torch.tensor(ids), count, sign)
    # The order of the rows does not matter.
    shuffled = torch.randperm(len(ids), generator=seeded(0))
    assert torch.equal(ranking(phi[shuffled], torch.tensor(ids)[shuffled], count, sign), ranked)


def test_the_most_negative_come_first_and_ties_by_the_lowest_id() -> None:
    phi = torch.tensor([[0.5], [-1.0], [-1.0], [3.0]])
    ids = torch.tensor([7, 9, 4, 2])
    assert ranking(phi, ids, 3, "negative").tolist() == [[4, 9, 7]]
    assert ranking(phi, ids, 2, "positive").tolist() == [[2, 7]]


def test_ranking_refuses_nan_naming_the_ids() -> None:
    phi = torch.zeros(4, 2)
    phi[1, 0], phi[3, 1] = torch.nan, torch.inf
    with pytest.raises(NonFiniteError, match=r"ids \[20, 40\]"):
        ranking(phi, torch.tensor([30, 40, 10, 20]), 1, "negative")


def test_ranking_refuses_what_does_not_fit() -> None:
    phi, ids = torch.zeros(3, 2), torch.arange(3)
    with pytest.raises(ProblemError, match="do not fit"):
        ranking(phi, ids[:2], 1, "negative")
    with pytest.raises(ProblemError, match="do not fit"):
        ranking(phi, ids.float(), 1, "negative")
    with pytest.raises(ProblemError, match="repeat"):
        ranking(phi, torch.tensor([1, 2, 1]), 1, "negative")
    for count in (-1, 4):
        with pytest.raises(ProblemError, match="cannot rank"):
            ranking(phi, ids, count, "negative")
    with pytest.raises(MethodError, match="unknown sign"):
        ranking(phi, ids, 1, "both")  # type: ignore[arg-type]
