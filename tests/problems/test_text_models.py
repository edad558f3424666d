from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from genrep_dist.core.gradients.last_layer import find_last_layer, last_layer_features
from genrep_dist.core.gradients.model import check_model
from genrep_dist.core.gradients.per_sample import per_sample_gradients
from genrep_dist.errors import ProblemError
from genrep_dist.problems.datasets.text_models import TextCNN


def small(num_outputs: int = 1, dtype: torch.dtype = torch.float64) -> TextCNN:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return TextCNN(num_outputs, vocabulary_size=30, embedding_width=6, channels=(5, 4, 7)).to(dtype).eval()


def gradient(model: nn.Module, tokens: Tensor) -> Tensor:
    gradients = torch.autograd.grad(model(tokens).sum(), list(model.parameters()))
    return torch.cat([part.reshape(-1) for part in gradients])


def test_number_of_parameters() -> None:
    def count(model: nn.Module) -> int:
        return sum(parameter.numel() for parameter in model.parameters())

    assert count(TextCNN()) == 1_602_257 == 1_465_056 + 12_000 + 25_000 + 100_000 + 201
    assert count(TextCNN(4)) == 1_602_257 + 3 * 201


def test_it_is_the_network_of_the_paper_one_sentence_at_a_time_and_without_padding() -> None:
    model = small(2)
    sentences = [[3, 4, 5, 6, 7], [9], [3, 3, 3, 3, 3, 3, 3, 3], [11, 2]]
    for sentence in sentences:
        hidden = model.embedding.weight[sentence].T[None]
        for convolution in (model.conv1, model.conv2, model.conv3):
            hidden = functional.relu(functional.conv1d(hidden, convolution.weight, padding=2))
        expected = model.linear.weight @ hidden[0].max(dim=1).values + model.linear.bias
        torch.testing.assert_close(model(torch.tensor([sentence]))[0], expected)


@given(
    sentences=st.lists(st.lists(st.integers(1, 29), min_size=1, max_size=9), min_size=1, max_size=5),
    padding=st.integers(0, 12),
)
def test_neither_outputs_nor_gradients_depend_on_how_far_a_sentence_is_padded(sentences: list[list[int]], padding: int) -> None:
    model = small()
    longest = max(len(sentence) for sentence in sentences)
    tokens = torch.zeros(len(sentences), longest + padding, dtype=torch.int64)
    for row, sentence in enumerate(sentences):
        tokens[row, : len(sentence)] = torch.tensor(sentence)
    together = model(tokens)
    for row, sentence in enumerate(sentences):
        alone = torch.tensor([sentence])
        torch.testing.assert_close(together[row], model(alone)[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient(model, tokens[row : row + 1]), gradient(model, alone), rtol=1e-10, atol=1e-12)


def test_of_equal_positions_the_first_takes_the_gradient() -> None:
    """Of one word again and again, seen one by one, all positions are alike; the first is the one that has nothing before it."""
    model = small()
    with torch.no_grad():
        # Multiples of 1/64, whose products and sums are exact: no position is rounded otherwise than another.
        for parameter in model.parameters():
            parameter.mul_(64).round_().div_(64)
        model.embedding.weight.abs_()
        for convolution in (model.conv1, model.conv2, model.conv3):
            convolution.weight.abs_()[:, :, [0, 1, 3, 4]] = 0
    last = model.conv3(model.conv2(model.conv1(model.embedding(torch.full((1, 30), 7)).transpose(1, 2))))
    assert torch.equal(last, last[:, :, :1].expand_as(last))
    (taps,) = torch.autograd.grad(model(torch.full((1, 30), 7)).sum(), [model.conv3.weight])
    assert taps[:, :, :2].abs().max() == 0
    torch.testing.assert_close(taps[:, :, 3], taps[:, :, 2])
    assert taps[:, :, 2].abs().max() > 0


def test_the_row_of_the_padding_has_no_gradient() -> None:
    model = small()
    tokens = torch.tensor([[3, 4, 0, 0], [5, 0, 6, 0]])
    (rows,) = torch.autograd.grad(model(tokens).sum(), [model.embedding.weight])
    assert rows[0].abs().max() == 0
    assert set(rows.abs().sum(dim=1).nonzero()[:, 0].tolist()) == {3, 4, 5, 6}


def test_every_module_is_called_once() -> None:
    model = small()
    calls: Counter[str] = Counter()
    for name, module in model.named_children():
        module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    model(torch.tensor([[3, 4, 0]]))
    assert calls == {"embedding": 1, "conv1": 1, "conv2": 1, "conv3": 1, "linear": 1}


@pytest.mark.parametrize("num_outputs", [1, 3])
def test_per_sample_gradients_equal_one_backward_each(num_outputs: int) -> None:
    model = small(num_outputs)
    tokens = torch.tensor([[3, 4, 5, 0, 0], [7, 7, 7, 7, 7], [9, 0, 0, 0, 0]])
    check_model(model)
    expected = []
    for sentence in tokens:
        rows = []
        for output in model(sentence[None])[0]:
            gradients = torch.autograd.grad(output, list(model.parameters()), retain_graph=True)
            rows.append(torch.cat([part.reshape(-1) for part in gradients]))
        expected.append(torch.stack(rows))
    torch.testing.assert_close(per_sample_gradients(model, tokens), torch.stack(expected), rtol=1e-10, atol=1e-12)


def test_the_last_layer_is_found() -> None:
    model, tokens = small(), torch.tensor([[3, 4, 0], [5, 6, 7]])
    assert find_last_layer(model, tokens) == "linear"
    assert last_layer_features(model, tokens).shape == (2, 8)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ProblemError, match="num_outputs"):
        TextCNN(0)
    with pytest.raises(ProblemError, match="three numbers"):
        TextCNN(channels=(5, 6))
    with pytest.raises(ProblemError, match="channels"):
        TextCNN(channels=(5, 0, 6))
