"""Per-sample gradients of models of transformers and peft, against one backward pass for each sample, in float64."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genrep_dist.core.gradients.inspection import inspect_model
from genrep_dist.core.gradients.per_sample import factored_gradients, per_sample_gradients
from genrep_dist.core.gradients.reference import one_by_one
from genrep_dist.core.inputs import pack_inputs

transformers: Any = pytest.importorskip("transformers", reason="the package transformers is optional")
peft: Any = pytest.importorskip("peft", reason="the package peft is optional")

OUTPUTS, ROWS, LENGTH = 3, 5, 7
SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12, "num_labels": OUTPUTS}


def bert() -> nn.Module:
    made: nn.Module = transformers.BertForSequenceClassification(
        transformers.BertConfig(vocab_size=30, max_position_embeddings=10, **SIZES)
    )
    return made


def gpt2() -> nn.Module:
    sizes = {"vocab_size": 30, "n_positions": 10, "n_embd": 8, "n_layer": 2, "n_head": 2, "num_labels": OUTPUTS}
    made: nn.Module = transformers.GPT2ForSequenceClassification(
        transformers.GPT2Config(**sizes, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    )
    return made


def vit() -> nn.Module:
    made: nn.Module = transformers.ViTForImageClassification(transformers.ViTConfig(image_size=16, patch_size=8, **SIZES))
    return made


def resnet() -> nn.Module:
    """Its BatchNorm layers are frozen: neither their statistics nor their parameters are trained."""
    sizes = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic", "num_labels": OUTPUTS}
    made: nn.Module = transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes))
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
            nn.init.uniform_(module.running_mean, -1, 1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    return made


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.lstm, self.head = nn.Embedding(30, 4), nn.LSTM(4, 5, batch_first=True), nn.Linear(5, OUTPUTS)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden, _ = self.lstm(self.tokens(input_ids))
        last = attention_mask.sum(1) - 1
        out: Tensor = self.head(hidden[torch.arange(len(hidden)), last])
        return out


def lora(base: Callable[[], nn.Module], *layers: str, **options: Any) -> nn.Module:
    """Both factors of LoRA are drawn: with the second one zero, as peft begins, the first has no gradient."""
    config = peft.LoraConfig(r=2, target_modules=list(layers), task_type="SEQ_CLS", init_lora_weights=False, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        made: nn.Module = peft.get_peft_model(base(), config)
    return made


class Adapter(nn.Module):
    """A small bottleneck beside a frozen layer."""

    def __init__(self, frozen: nn.Module, width: int) -> None:
        super().__init__()
        self.frozen, self.down, self.up = frozen, nn.Linear(width, 2), nn.Linear(2, width)

    def forward(self, hidden: Tensor) -> Tensor:
        found: Tensor = self.frozen(hidden)
        added: Tensor = self.up(torch.relu(self.down(found)))
        return found + added


def adapters() -> nn.Module:
    model: Any = bert().requires_grad_(False)
    for layer in model.bert.encoder.layer:
        layer.output.dense = Adapter(layer.output.dense, 8)
    return model  # type: ignore[no-any-return]


def text() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(LENGTH) < torch.tensor([[7], [4], [3], [6], [5]])).long()
    return pack_inputs({"input_ids": torch.randint(3, 30, (ROWS, LENGTH), generator=generator) * mask, "attention_mask": mask})


def images() -> Tensor:
    return torch.randn(ROWS, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], set[str]]] = {
    "bert": (bert, text, {"factored", "dense"}),
    "gpt2": (gpt2, text, {"factored", "dense"}),
    "vit": (vit, images, {"factored", "dense"}),
    "lstm": (Lstm, text, {"factored", "dense", "loop"}),
    "resnet with frozen batch norm": (resnet, images, {"factored", "dense"}),
    "bert with lora": (lambda: lora(bert, "query", "value"), text, {"factored", "dense"}),
    "gpt2 with lora": (lambda: lora(gpt2, "c_attn", fan_in_fan_out=True), text, {"factored"}),
    "bert with dora": (lambda: lora(bert, "query", use_dora=True), text, {"factored", "dense", "loop"}),
    "bert with adapters": (adapters, text, {"factored", "dense"}),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_one_backward_pass_for_each_sample(name: str) -> None:
    build, inputs, strategies = CASES[name]
    torch.manual_seed(0)
    model, rows = build().double().eval(), inputs()
    expected = torch.stack([one_by_one(model, row) for row in rows])
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert expected.shape == (ROWS, OUTPUTS, trained)
    assert bool(expected.abs().amax(dim=(0, 1)).gt(0).any())
    found = per_sample_gradients(model, rows)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(factored_gradients(model, rows).to_dense(), expected, rtol=1e-10, atol=1e-12)
    used = {one.strategy for one in inspect_model(model, rows).strategies}
    assert used == strategies, inspect_model(model, rows).strategies


def test_features_of_lora_are_of_the_trained_parameters_alone() -> None:
    model = lora(bert, "query", "value").eval()
    features = factored_gradients(model, text())
    names = [name for name, _ in features.parameters]
    assert names
    assert all("lora_" in name or "classifier" in name for name in names)
    assert {weight.name for weight in features.weights} >= {name for name in names if "lora_" in name}
