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
    ("form", "access"),
    [
        (lambda x: (scores(x), x), "[0]"),
        (lambda x: [x.sum(), scores(x)], "[1]"),
        (lambda x: (None, x[:, :, None], scores(x)), "[2]"),
        (lambda x: Named(x, scores(x)), ".logits"),
        (lambda x: Record(None, scores(x)), ".logits"),
        (lambda x: {"hidden": x, "logits": scores(x)}, "['logits']"),
        (lambda x: {"loss": x.sum(), "out": scores(x)}, "['out']"),
        (lambda x: ModelOutput(logits=scores(x), hidden=x), "['logits']"),
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
