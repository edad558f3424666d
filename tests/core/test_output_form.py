"""The remedy for a model's output fits what the model returned."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from genrep_dist.core.gradients.model import model_outputs
from genrep_dist.errors import ProblemError


class Named(NamedTuple):
    hidden: Tensor
    logits: Tensor


@dataclass
class Record:
    loss: Tensor | None
    logits: Tensor


@dataclass
class Unnamed:
    loss: Tensor | None
    scores: Tensor


class ModelOutput(OrderedDict[str, Any]):
    """As the outputs of some libraries: a mapping whose entries are attributes too."""


def scores(inputs: Tensor) -> Tensor:
    return inputs[:, :2] * 2


class Net(nn.Module):
    def __init__(self, form: Any) -> None:
        super().__init__()
        self.form = form

    def forward(self, inputs: Tensor) -> Any:
        return self.form(inputs)


@pytest.mark.parametrize(
    "form",
    [
        lambda x: (scores(x), x),
        lambda x: [scores(x), None],
        lambda x: Named(x, scores(x)),
        lambda x: Record(None, scores(x)),
        lambda x: {"hidden": x, "logits": scores(x)},
        lambda x: ModelOutput(logits=scores(x), hidden=x),
        lambda x: (scores(x)[:, 0], x),
    ],
)
@pytest.mark.parametrize("rows", [1, 3])
def test_the_first_entry_and_what_is_called_logits_are_the_output(form: Any, rows: int) -> None:
    inputs = torch.randn(rows, 4)
    found = model_outputs(Net(form), inputs)
    torch.testing.assert_close(found, scores(inputs)[:, : found.shape[1]])


def test_a_loss_of_the_batch_is_no_output_of_one_row() -> None:
    with pytest.raises(ProblemError, match="wrong form"):
        model_outputs(Net(lambda x: (x.sum(), scores(x))), torch.randn(1, 4))


@pytest.mark.parametrize(
    ("form", "access"),
    [
        (lambda x: [x.sum(), scores(x)], "[1]"),
        (lambda x: (None, x[:, :, None], scores(x)), "[2]"),
        (lambda x: [None, scores(x), x], "[1]"),
        (lambda x: Unnamed(None, scores(x)), ".scores"),
        (lambda x: {"loss": x.sum(), "out": scores(x)}, "['out']"),
    ],
)
def test_a_container_is_answered_with_the_two_lines_that_unpack_it(form: Any, access: str) -> None:
    inputs = torch.randn(3, 4)
    with pytest.raises(ProblemError) as caught:
        model_outputs(Net(form), inputs)
    assert f"{access}: (3, 2)" in caught.value.got
    header, body = [line.strip() for line in caught.value.remedy.splitlines()[1:]]
    space: dict[str, Any] = {"Net": Net}
    exec(f"{header}\n    {body}", space)
    torch.testing.assert_close(model_outputs(space["Logits"](form), inputs), scores(inputs))


@pytest.mark.parametrize(
    ("form", "rows", "remedy"),
    [
        (lambda x: x[:, :, None].expand(-1, -1, 2), 3, r"one row of logits.*flatten\(1\)"),
        (lambda x: x.T, 3, "transpose the output, or set batch_first=True"),
        (lambda x: x[:1, :1].squeeze(), 3, "name the dimension when squeezing"),
        (lambda x: x.mean(0), 3, "without a sum or mean over the inputs"),
        (lambda x: None, 3, "let forward\\(\\) return the logits"),
        (lambda x: "yes", 3, "let forward\\(\\) return the logits"),
        (lambda x: (x.sum(), 3), 3, "let forward\\(\\) return the logits"),
    ],
)
def test_other_forms_have_their_own_remedies(form: Any, rows: int, remedy: str) -> None:
    with pytest.raises(ProblemError, match=remedy):
        model_outputs(Net(form), torch.randn(rows, 4))
