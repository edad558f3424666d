"""A BERT that is read from a file and trained by LoRA alone, on rows of a Hugging Face data set."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

import genrep_dist as gr

LENGTH = 8


def base() -> Any:
    transformers: Any = importlib.import_module("transformers")
    sizes = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(**sizes, max_position_embeddings=LENGTH, hidden_dropout_prob=0.0)
    )


class LoraBert:
    loss = "softmax"
    recipe = gr.Recipe(epochs=2, batch_size=8, learning_rate=0.5)
    path_options = ("weights",)

    def __init__(self, weights: str) -> None:
        self.weights = Path(weights)

    def model(self) -> nn.Module:
        peft: Any = importlib.import_module("peft")
        pretrained = base()
        pretrained.load_state_dict(torch.load(self.weights, weights_only=True))
        config = peft.LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            made: nn.Module = peft.get_peft_model(pretrained, config)
        return made

    def train_data(self) -> Any:
        return self._rows(0, 24)

    def test_data(self) -> Any:
        return self._rows(24, 32)

    def _rows(self, start: int, stop: int) -> Any:
        datasets: Any = importlib.import_module("datasets")
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(2, 15, (32, LENGTH), generator=generator) + 15 * (torch.arange(32) % 2)[:, None]
        lengths = torch.randint(3, LENGTH + 1, (32,), generator=generator).tolist()
        rows = [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]
        columns = {"input_ids": rows[start:stop], "label": [row % 2 for row in range(start, stop)], "id": list(range(start, stop))}
        return datasets.Dataset.from_dict(columns)

    def collate(self, rows: list[Any]) -> Any:
        padded = gr.pad_rows([row["input_ids"] for row in rows], length=LENGTH)
        return {
            "input_ids": padded.values,
            "attention_mask": padded.mask,
            "labels": torch.tensor([row["label"] for row in rows]),
            "ids": torch.tensor([row["id"] for row in rows]),
        }
