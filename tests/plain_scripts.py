"""What the adapters of docs/your-model.md train, as scripts that know nothing of this package, and their comparison with a ledger.

A script takes the rows that it trains on, the test inputs, and the seeds of the initial parameters, of the default generators while it
trains, and of ``run.seed``. It returns the test outputs.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from genrep_dist.seeds import derive_seed
from genrep_dist.training.threads import one_thread


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)


def adamw(rows: TensorDataset, test: Tensor, start: int, draws: int, seed: int) -> Any:
    """AdamW, warm-up, clipping, augmentation and mixed precision."""
    del seed
    seed_everything(start)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
    seed_everything(draws)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10))
    criterion: Any = nn.BCEWithLogitsLoss()
    for _ in range(4):
        for inputs, targets in DataLoader(rows, batch_size=10, shuffle=True):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = criterion(model(inputs + 0.1 * torch.randn_like(inputs)).flatten(), targets)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return model(test)


def trainer(rows: TensorDataset, test: Tensor, start: int, draws: int, seed: int) -> Any:
    """Hugging Face's Trainer on a BERT built from a configuration, with padding masks."""
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

    seed_everything(start)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, max_position_embeddings=12
    )
    bert = BertForSequenceClassification(config)
    seed_everything(draws)
    encoded = [{"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": label} for ids, label in zip(*rows.tensors, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=2,
            per_device_train_batch_size=8,
            seed=seed,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        Trainer(bert, arguments, train_dataset=encoded).train()
    bert.eval()
    with torch.no_grad():
        return bert(input_ids=test, attention_mask=(test != 0).long()).logits


def lightning(rows: TensorDataset, test: Tensor, start: int, draws: int, seed: int) -> Any:
    """A Lightning module and Lightning's Trainer."""
    import lightning as pl

    del seed

    class Plain(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 1)

        def training_step(self, batch: Any, _: int) -> Any:
            return nn.functional.binary_cross_entropy_with_logits(self.linear(batch[0]).flatten(), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=0.01)

    seed_everything(start)
    model = Plain()
    seed_everything(draws)
    fitting = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    fitting.fit(model, DataLoader(rows, batch_size=10, shuffle=True))
    with torch.no_grad():
        return model.linear(test)


def boosting(rows: TensorDataset, test: Tensor, start: int, draws: int, seed: int) -> Any:
    """scikit-learn's boosted trees."""
    from sklearn.ensemble import GradientBoostingClassifier

    del start
    inputs, targets = (part.numpy() for part in rows.tensors)
    seed_everything(draws)
    model = GradientBoostingClassifier(n_estimators=10, subsample=0.8, random_state=seed).fit(inputs, targets)
    return torch.from_numpy(model.decision_function(test.numpy()))[:, None]


SCRIPTS: dict[str, Callable[..., Any]] = {
    "script_problem": adamw,
    "bert_problem": trainer,
    "lightning_problem": lightning,
    "boosting_problem": boosting,
}
"""By the module of the problem with the same training."""


def write_scores(problem: Any, file: str) -> None:
    """Scores of another tool: minus the distance of the inputs."""
    (inputs, _, ids), (test_inputs, _, test_ids) = problem.train_data(), problem.test_data()
    scores = -torch.cdist(inputs.double(), test_inputs.double())
    np.savez(file, scores=scores.numpy(), train_ids=ids.numpy(), test_ids=test_ids.numpy())


def outputs(run: Any, script: Callable[..., Any]) -> dict[str, Any]:
    """Outputs (models, T * C) of all models of a run's ``ledger``, and those of ``script`` without the same rows, as ``plain``."""
    found: dict[str, list[Any]] = {"ledger": [], "plain": []}
    rows = run.store.ledger(run.plan.keys.training).scan().collect()
    for seed, removed, ledger in rows.select("seed", "removed", "outputs").iter_rows():
        kept = ~torch.isin(run.train.ids, torch.tensor(removed, dtype=torch.int64))
        own = derive_seed(seed, "train function") % 2**31
        with one_thread():
            samples = TensorDataset(run.train.inputs[kept], run.train.targets[kept])
            plain = script(samples, run.test.inputs, derive_seed(seed, "init"), derive_seed(seed, "train"), own)
        found["ledger"].append(ledger)
        found["plain"].append(plain.double().numpy().ravel())
    return {name: np.stack(values) for name, values in found.items()}
