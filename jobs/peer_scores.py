"""Scores of dattri and kronfluence for exported models: an optional step of jobs/reproduce.py, in an environment of its own.

python3 -m venv peers && peers/bin/pip install torch numpy 'dattri==0.3.*' 'kronfluence==1.0.*'
peers/bin/python jobs/peer_scores.py kronfluence MODELS SCORES     # EK-FAC, of `genrep export problem reproduce/kronfluence-concrete`
peers/bin/python jobs/peer_scores.py dattri MODELS SCORES          # TRAK, LiSSA, gradient cosine, of reproduce/dattri-mnist-lr
peers/bin/python jobs/peer_scores.py dattri MODELS SCORES --network mlp --methods trak-50   # of reproduce/dattri-mnist-mlp

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
from dataclasses import dataclass
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


class Perceptron(nn.Module):
    """With the names of parameters that the exported models have."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for inner, outer in ((784, 128), (128, 64)):
            layers += [nn.Linear(inner, outer), nn.ReLU(), nn.Dropout(0.1)]
        self.layers = nn.Sequential(*layers, nn.Linear(64, 10))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layers(inputs)
        return outputs


@dataclass(frozen=True)
class Network:
    """A network of dattri's benchmark with its recipe, and the rows whose gradients are held at once."""

    build: Callable[[], nn.Module]
    epochs: int
    batch_size: int
    momentum: float
    gradient_rows: int


NETWORKS = {"linear": Network(linear_network, 20, 32, 0.0, 500), "mlp": Network(Perceptron, 50, 64, 0.9, 1000)}
LEARNING_RATE = 0.01


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


def half_model(train: TensorDataset, network: Network, number: int) -> dict[str, Tensor]:
    """A model of half of the rows, trained as the benchmark trains it."""
    generator = torch.Generator().manual_seed(number)
    inputs, labels = train.tensors
    chosen = torch.randperm(len(inputs), generator=generator)[: len(inputs) // 2]
    with torch.random.fork_rng():  # of the initial parameters and of dropout
        torch.manual_seed(1_000_003 + number)
        model = network.build().train()
        optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=network.momentum)
        for _ in range(network.epochs):
            for rows in torch.split(chosen[torch.randperm(len(chosen), generator=generator)], network.batch_size):
                optimizer.zero_grad()
                functional.cross_entropy(model(inputs[rows]), labels[rows].long()).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def dattri_scores(models: Path, to: Path, methods: Collection[str], network: Network) -> None:
    """Those of :data:`DATTRI_METHODS` that are named."""
    from dattri.algorithm.influence_function import IFAttributorLiSSA
    from dattri.algorithm.tracin import TracInAttributor
    from dattri.algorithm.trak import TRAKAttributor
    from dattri.task import AttributionTask
    from torch.func import functional_call

    model, explained = network.build().eval(), list(seeds(models, network.build))

    def batch_loss(parameters: Any, batch: Any) -> Tensor:
        # Some of dattri's ways make floating point numbers of labels.
        return functional.cross_entropy(functional_call(model, parameters, batch[0]), batch[1].long())

    def loss(parameters: Any, sample: Any) -> Tensor:
        return batch_loss(parameters, (sample[0][None], sample[1][None]))

    def margin(parameters: Any, sample: Any) -> Tensor:
        log_p = -loss(parameters, sample)
        return log_p - torch.log(1 - torch.exp(log_p))

    def probability(parameters: Any, sample: Any) -> Tensor:
        return torch.exp(-loss(parameters, sample))

    def rows(part: TensorDataset) -> DataLoader[Any]:
        return DataLoader(part, batch_size=network.gradient_rows)

    for seed in explained:
        if "grad-cos" in methods:
            cosine = TracInAttributor(AttributionTask(loss, model, [seed.state]), weight_list=torch.ones(1), normalized_grad=True)
            cosine.projector_kwargs = None
            with torch.no_grad():
                seed.save(to / "grad-cos", cosine.attribute(rows(seed.train), rows(seed.test)))
        if "lissa" in methods:
            lissa = IFAttributorLiSSA(AttributionTask(batch_loss, model, [seed.state]), batch_size=100, recursion_depth=100)
            # The system is solved once for each batch of training rows: of one batch, once.
            whole = DataLoader(seed.train, batch_size=len(seed.train))
            lissa.cache(whole)
            with torch.no_grad():
                seed.save(to / "lissa", lissa.attribute(whole, rows(seed.test)))
    # All seeds have the same training rows, and the same half models serve them, as they serve dattri's ground truth.
    ensembles, train = [count for count in ENSEMBLES if f"trak-{count}" in methods], explained[0].train
    states = [half_model(train, network, number) for number in range(max(ensembles, default=0))]
    for count in ensembles:
        task = AttributionTask(margin, model, states[:count])
        trak = TRAKAttributor(task, probability, projector_kwargs={"proj_dim": 512, "device": "cpu"})
        with torch.no_grad():
            trak.cache(rows(train))
            for seed in explained:
                seed.save(to / f"trak-{count}", trak.attribute(rows(seed.test)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", choices=["kronfluence", "dattri"])
    parser.add_argument("models", type=Path)
    parser.add_argument("scores", type=Path)
    parser.add_argument("--methods", nargs="+", choices=DATTRI_METHODS, default=DATTRI_METHODS, help="of dattri; default: all")
    parser.add_argument("--network", choices=NETWORKS, default="linear", help="of dattri's benchmark")
    options = parser.parse_args()
    began = time.perf_counter()
    if options.library == "kronfluence":
        kronfluence_scores(options.models, options.scores)
    else:
        dattri_scores(options.models, options.scores, options.methods, NETWORKS[options.network])
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
