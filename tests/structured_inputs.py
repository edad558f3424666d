"""One model of token ids and a mask, with its inputs in several forms: a dictionary, a tuple, a dataclass, one joined tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset

import genrep_dist as gr

LENGTH = 6


class Masked(nn.Module):
    """The mean embedding of the tokens that are not masked, through two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.hidden, self.last = nn.Embedding(20, 4), nn.Linear(4, 5), nn.Linear(5, 1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        weights = attention_mask.float().unsqueeze(2)
        pooled = (self.embedding(input_ids) * weights).sum(1) / weights.sum(1)
        return self.last(torch.tanh(self.hidden(pooled)))


class MaskedJoined(Masked):
    def forward(self, joined: Tensor) -> Any:  # type: ignore[override]
        return super().forward(joined[:, :LENGTH], joined[:, LENGTH:])


class MaskedOutput(Masked):
    """Returns an object with logits."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return {"logits": super().forward(input_ids, attention_mask), "hidden": input_ids}


@dataclass
class Tokens:
    input_ids: Tensor
    attention_mask: Tensor


class MaskedTokens(Masked):
    def forward(self, tokens: Tokens) -> Any:  # type: ignore[override]
        return super().forward(tokens.input_ids, tokens.attention_mask)


def rows(start: int, stop: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Token ids, mask, targets, ids."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(30) % 2
    tokens = torch.randint(1, 10, (30, LENGTH), generator=generator) + 5 * labels[:, None]
    lengths = torch.randint(2, LENGTH + 1, (30, 1), generator=generator)
    mask = (torch.arange(LENGTH) < lengths).long()
    return tuple(part[start:stop] for part in (tokens * mask, mask, labels.float(), torch.arange(30)))  # type: ignore[return-value]


class Joined:
    loss = "logistic"
    recipe = gr.Recipe(epochs=3, batch_size=8, learning_rate=0.5)
    build: type[nn.Module] = MaskedJoined

    def model(self) -> nn.Module:
        return self.build()

    def inputs(self, ids: Tensor, mask: Tensor) -> Any:
        return torch.cat([ids, mask], dim=1)

    def train_data(self) -> Any:
        ids, mask, targets, numbers = rows(0, 22)
        return self.inputs(ids, mask), targets, numbers

    def test_data(self) -> Any:
        ids, mask, targets, numbers = rows(22, 30)
        return self.inputs(ids, mask), targets, numbers


class AsDict(Joined):
    build = Masked

    def inputs(self, ids: Tensor, mask: Tensor) -> Any:
        # Other dtypes than the joined tensor's, of the same values.
        return {"input_ids": ids.int(), "attention_mask": mask.bool()}


class AsTuple(Joined):
    build = Masked

    def inputs(self, ids: Tensor, mask: Tensor) -> Any:
        return ids, mask


class AsDataclass(Joined):
    build = MaskedTokens

    def inputs(self, ids: Tensor, mask: Tensor) -> Any:
        return Tokens(ids, mask)


class WithLogits(AsDict):
    build = MaskedOutput


class Rows(TorchDataset[Any]):
    """A torch data set of ragged rows."""

    def __init__(self, start: int, stop: int) -> None:
        self.parts = rows(start, stop)

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, row: int) -> Any:
        ids, mask, target, number = (part[row] for part in self.parts)
        return {"input_ids": ids[: int(mask.sum())].tolist(), "label": target, "id": int(number)}


class AsTorchDataset(AsDict):
    def train_data(self) -> Any:
        return Rows(0, 22)

    def test_data(self) -> Any:
        return Rows(22, 30)

    def collate(self, samples: list[Any]) -> Any:
        padded = gr.pad_rows([sample["input_ids"] for sample in samples], length=LENGTH)
        inputs = {"input_ids": padded.values.int(), "attention_mask": padded.mask.bool()}
        return inputs, torch.stack([sample["label"] for sample in samples]), torch.tensor([sample["id"] for sample in samples])


class OwnTraining(AsDict):
    def train(self, model: nn.Module, data: Any, run: Any) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=run.recipe.learning_rate)
        for epoch in range(run.epochs):
            for inputs, targets, ids in run.batches(run.recipe.batch_size):
                outputs = model(**inputs)
                run.step(ids, outputs, run.recipe.learning_rate)
                optimizer.zero_grad()
                loss: Any = nn.functional.binary_cross_entropy_with_logits(outputs.squeeze(1), targets)
                loss.backward()
                optimizer.step()
            run.checkpoint(epoch + 1, model)


class Common:
    """A kernel of one's own: tokens that two rows have in common."""

    def __call__(self, model: nn.Module, left: Any, right: Any) -> Tensor:
        del model
        counts = [
            nn.functional.one_hot(ids.long(), 20).sum(1).float() if isinstance(one, dict) else nn.functional.one_hot(ids, 20).sum(1).float()
            for one in (left, right)
            for ids in [one["input_ids"] if isinstance(one, dict) else one[:, :LENGTH]]
        ]
        return counts[0] @ counts[1].T


def drop_a_token(row: Any, epoch: int, generator: torch.Generator) -> Any:
    """Masks one token of a row, in a dictionary or joined."""
    del epoch
    at = int(torch.randint(LENGTH - 1, (1,), generator=generator)) + 1
    if isinstance(row, dict):
        row["attention_mask"][at] = False
        return row
    row[LENGTH + at] = 0
    return row
