"""Scores of dattri and kronfluence for exported models: an optional step of jobs/reproduce.py, in an environment of its own.

python3 -m venv peers && peers/bin/pip install torch numpy 'dattri==0.3.*' 'kronfluence==1.0.*'
peers/bin/python jobs/peer_scores.py kronfluence MODELS SCORES     # EK-FAC, of `genrep export problem reproduce/kronfluence-concrete`
peers/bin/python jobs/peer_scores.py dattri MODELS SCORES          # TRAK, LiSSA, gradient cosine, of reproduce/dattri-mnist-lr

MODELS is the folder of the export. SCORES gets one folder a method with one .npz a seed, as external scores are read. genrep_dist is not
imported: both libraries and this package then need not agree on versions.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

ENSEMBLES = (1, 10, 50)
"""Models behind TRAK-1, TRAK-10 and TRAK-50, each trained on a half of the training set."""


DATTRI_METHODS = ("grad-cos", "lissa", *(f"trak-{count}" for count in ENSEMBLES))
"""The cosine of gradients, LiSSA, and TRAK of ensembles of half models."""


class Seed:
    """One seed of an export: its model, data, and a way to save scores."""

    def __init__(self, folder: Path, record: dict[str, Any], build: Callable[[], nn.Module]) -> None:
        self.record, self.build = record, build
        self.number = int(record["seed"])
        place = folder / f"seed-{self.number}"
        self.state = torch.load(place / "final.pt", weights_only=True)
        self.model = build()
        self.model.load_state_dict(self.state)
        self.model.eval()
        parts = {name: np.load(folder / "data" / f"{name}.npz", allow_pickle=False) for name in ("train", "test")}
        self.train = TensorDataset(*(torch.from_numpy(parts["train"][name]) for name in ("inputs", "targets")))
        rows = [parts["test"]["ids"].tolist().index(sample) for sample in record["test_ids"]]
        self.test = TensorDataset(*(torch.from_numpy(parts["test"][name])[rows] for name in ("inputs", "targets")))

    def save(self, folder: Path, scores: Tensor) -> None:
        """``scores`` (N, M), as external scores of this model."""
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(
            folder / f"seed-{self.number}.npz",
            scores=scores.detach().double().numpy(),
            train_ids=np.array(self.record["train_ids"]),
            test_ids=np.array(self.record["test_ids"]),
            model=np.array(self.record["model"]),
        )


def seeds(folder: Path, build: Callable[[], nn.Module]) -> Iterator[Seed]:
    paths = sorted(folder.glob("seed-*/problem.json"), key=lambda path: int(path.parent.name.removeprefix("seed-")))
    for path in paths:
        yield Seed(folder, json.loads(path.read_text()), build)


def regression_network() -> nn.Module:
    layers: list[nn.Module] = []
    for inner, outer in ((8, 128), (128, 128), (128, 128)):
        layers += [nn.Linear(inner, outer), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, 1))


def linear_network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


def kronfluence_scores(models: Path, to: Path) -> None:
    """EK-FAC with kronfluence's default damping, of the squared error of each test point."""
    from kronfluence import Analyzer, FactorArguments, Task, prepare_model

    class Regression(Task):  # type: ignore[misc]
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            outputs, targets = model(batch[0]), batch[1]
            if sample:
                # The Gaussian of which the squared error is the negative logarithm has a variance of 1/2.
                targets = torch.normal(outputs.detach(), std=math.sqrt(0.5))
            return functional.mse_loss(outputs, targets, reduction="sum")

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return self.compute_train_loss(batch, model)

    for seed in seeds(models, regression_network):
        torch.manual_seed(seed.number)
        task = Regression()
        with tempfile.TemporaryDirectory() as folder:
            analyzer = Analyzer("scores", prepare_model(seed.model, task), task, cpu=True, output_dir=folder, disable_tqdm=True)
            factors = FactorArguments(strategy="ekfac")
            analyzer.fit_all_factors("ekfac", seed.train, per_device_batch_size=128, factor_args=factors)
            analyzer.compute_pairwise_scores("ekfac", "ekfac", seed.test, seed.train, len(seed.test), 128)
            found = analyzer.load_pairwise_scores("ekfac")["all_modules"]  # (M, N)
        seed.save(to / "ekfac", found.T)


def half_model(seed: Seed, number: int) -> dict[str, Tensor]:
    """A model of half of the rows, trained as the benchmark trains: batches of 32, 20 epochs, rate 0.01."""
    generator = torch.Generator().manual_seed(1_000_003 * (seed.number + 1) + number)
    inputs, targets = (part.float() if part.is_floating_point() else part for part in seed.train.tensors)
    chosen = torch.randperm(len(inputs), generator=generator)[: len(inputs) // 2]
    with torch.random.fork_rng():
        torch.manual_seed(1_000_003 * (seed.number + 1) + number)
        model = seed.build()
    weight, bias = (parameter.detach() for parameter in model.parameters())
    flat = inputs.flatten(1)
    for _ in range(20):
        for rows in torch.split(chosen[torch.randperm(len(chosen), generator=generator)], 32):
            gradient = torch.softmax(flat[rows] @ weight.T + bias, dim=1)
            gradient[torch.arange(len(rows)), targets[rows]] -= 1
            weight -= 0.01 / len(rows) * gradient.T @ flat[rows]
            bias -= 0.01 / len(rows) * gradient.sum(dim=0)
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def dattri_scores(models: Path, to: Path, methods: Collection[str]) -> None:
    """Those of :data:`DATTRI_METHODS` that are named."""
    from dattri.algorithm.influence_function import IFAttributorLiSSA
    from dattri.algorithm.tracin import TracInAttributor
    from dattri.algorithm.trak import TRAKAttributor
    from dattri.task import AttributionTask
    from torch.func import functional_call

    for seed in seeds(models, linear_network):
        model = seed.model

        def log_p(parameters: Any, sample: Any, model: nn.Module = model) -> Tensor:
            inputs, label = sample
            return -functional.cross_entropy(functional_call(model, parameters, inputs[None]), label[None])

        def loss(parameters: Any, sample: Any) -> Tensor:
            return -log_p(parameters, sample)

        def batch_loss(parameters: Any, batch: Any, model: nn.Module = model) -> Tensor:
            return functional.cross_entropy(functional_call(model, parameters, batch[0]), batch[1])

        def margin(parameters: Any, sample: Any) -> Tensor:
            value = log_p(parameters, sample)
            return value - torch.log(1 - torch.exp(value))

        def probability(parameters: Any, sample: Any) -> Tensor:
            return torch.exp(log_p(parameters, sample))

        train, test = (DataLoader(part, batch_size=500) for part in (seed.train, seed.test))
        if "grad-cos" in methods:
            cosine = TracInAttributor(AttributionTask(loss, model, [seed.state]), weight_list=torch.ones(1), normalized_grad=True)
            cosine.projector_kwargs = None
            with torch.no_grad():
                seed.save(to / "grad-cos", cosine.attribute(train, test))
        if "lissa" in methods:
            lissa = IFAttributorLiSSA(AttributionTask(batch_loss, model, [seed.state]), batch_size=100, recursion_depth=100)
            lissa.cache(DataLoader(seed.train, batch_size=len(seed.train)))
            with torch.no_grad():
                seed.save(to / "lissa", lissa.attribute(train, test))
        ensembles = [count for count in ENSEMBLES if f"trak-{count}" in methods]
        states = [half_model(seed, number) for number in range(max(ensembles, default=0))]
        for count in ensembles:
            task = AttributionTask(margin, model, states[:count])
            trak = TRAKAttributor(task, probability, projector_kwargs={"proj_dim": 512, "device": "cpu"})
            with torch.no_grad():
                trak.cache(train)
                seed.save(to / f"trak-{count}", trak.attribute(test))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", choices=["kronfluence", "dattri"])
    parser.add_argument("models", type=Path)
    parser.add_argument("scores", type=Path)
    parser.add_argument("--methods", nargs="+", choices=DATTRI_METHODS, default=DATTRI_METHODS, help="of dattri; default: all")
    options = parser.parse_args()
    began = time.perf_counter()
    if options.library == "kronfluence":
        kronfluence_scores(options.models, options.scores)
    else:
        dattri_scores(options.models, options.scores, options.methods)
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
