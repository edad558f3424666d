"""K(train, a few test points) of the paper's vision network, compared with captum's TracInCP, dattri's TracIn (GradDot) and TRAK.

genrep_dist computes K in blocks of training rows. Every tool runs in its own process with one thread, on the same model, training rows and
test points. The explained quantity is the model's logit, so genrep_dist, captum and dattri all compute
K(x, z) = <grad f(x), grad f(z)>; their results are compared. TRAK gets the same logit, but its scores are projected and weighted. They are
another quantity, so only TRAK's cost is compared. Seconds are those of one call after a warm-up call on a few rows. Memory is the peak of
the process (`getrusage`), and how far the peak is above the memory before that call.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from genrep_dist.problems.datasets.image_models import VisionCNN
from tests.benchmarks import measured_on, peak_bytes, publish, spread, table

ROWS, POINTS, WARM_UP, BATCH, ROUNDS = 1000, 10, 64, 64, 3

Score = Callable[[nn.Module, Tensor, Tensor, Path], Tensor]


class Scalar(nn.Module):
    """The network with a logit of shape (B,)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = VisionCNN()

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.body(inputs)
        return logits[:, 0]


class Logit(nn.Module):
    """The sum of the logits as a "loss"; the targets are ignored."""

    reduction = "sum"

    def forward(self, logits: Tensor, _targets: Tensor) -> Tensor:
        return logits.sum()


def ours(model: nn.Module, train: Tensor, test: Tensor, _folder: Path) -> Tensor:
    from genrep_dist.core.gradients.per_sample import factored_gradients, iter_factored_gradients

    points = factored_gradients(model, test).as_operand()
    return torch.cat([points.inner(rows) for rows in iter_factored_gradients(model, train)], dim=1).T


def captum(model: nn.Module, train: Tensor, test: Tensor, _folder: Path) -> Tensor:
    from captum.influence import TracInCP

    explainer = TracInCP(
        model,
        TensorDataset(train, torch.zeros(len(train))),
        [0],
        checkpoints_load_func=lambda _model, _checkpoint: 1.0,
        loss_fn=Logit(),
        test_loss_fn=Logit(),
        batch_size=BATCH,
        sample_wise_grads_per_batch=True,
    )
    scores: Tensor = explainer.influence((test, torch.zeros(len(test))))
    return scores.T


def dattri(model: nn.Module, train: Tensor, test: Tensor, _folder: Path) -> Tensor:
    from dattri.algorithm.tracin import TracInAttributor
    from dattri.task import AttributionTask
    from torch.func import functional_call

    def logit(parameters: dict[str, Tensor], sample: tuple[Tensor, Tensor]) -> Any:
        return functional_call(model, parameters, sample[0][None]).sum()

    task = AttributionTask(logit, model, [model.state_dict()], target_func=logit)
    attributor = TracInAttributor(task, weight_list=torch.ones(1), normalized_grad=False)
    attributor.projector_kwargs = None
    loaders = [DataLoader(TensorDataset(x, torch.zeros(len(x))), batch_size=BATCH) for x in (train, test)]
    scores: Tensor = attributor.attribute(*loaders)
    return scores.detach()


def trak(model: nn.Module, train: Tensor, test: Tensor, folder: Path) -> Tensor:
    from torch.func import functional_call
    from trak import TRAKer
    from trak.modelout_functions import AbstractModelOutput
    from trak.projectors import BasicProjector, ProjectionType

    class Same(AbstractModelOutput):  # type: ignore[misc]
        """The logit itself, with a weight of one."""

        def __init__(self) -> None:
            super().__init__()

        @staticmethod
        def get_output(model: nn.Module, weights: Any, buffers: Any, image: Tensor, _label: Tensor) -> Tensor:
            logits: Tensor = functional_call(model, (weights, buffers), (image.unsqueeze(0),))
            return logits.sum()

        def get_out_to_loss_grad(self, _model: Any, _weights: Any, _buffers: Any, batch: list[Tensor]) -> Tensor:
            return torch.ones(len(batch[0]), 1)

    size = sum(parameter.numel() for parameter in model.parameters())
    projector = BasicProjector(size, 512, seed=0, proj_type=ProjectionType.rademacher, device="cpu")
    traker = TRAKer(
        model,
        Same(),
        train_set_size=len(train),
        save_dir=folder / str(time.perf_counter_ns()),
        device="cpu",
        projector=projector,
        proj_dim=512,
        use_half_precision=False,
    )
    traker.load_checkpoint(model.state_dict(), model_id=0)
    for block in torch.split(train, BATCH):
        traker.featurize([block, torch.zeros(len(block))], num_samples=len(block))
    traker.finalize_features()
    traker.start_scoring_checkpoint("points", model.state_dict(), model_id=0, num_targets=len(test))
    traker.score([test, torch.zeros(len(test))], num_samples=len(test))
    return torch.from_numpy(np.array(traker.finalize_scores("points")))


TOOLS: dict[str, tuple[Score, str]] = {
    "genrep_dist": (ours, "torch"),
    "captum TracInCP": (captum, "captum"),
    "dattri TracIn (GradDot)": (dattri, "dattri"),
    "TRAK": (trak, "traker"),
}


def drive(tool: str, folder: Path, rows: int) -> dict[str, float]:
    """Run one tool in this process, save its scores to a file and return its cost."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Scalar().eval()
    train, test = torch.randn(rows, 1, 28, 28), torch.randn(POINTS, 1, 28, 28)
    score = TOOLS[tool][0]
    with contextlib.redirect_stdout(sys.stderr):
        score(model, train[:WARM_UP], test, folder)
        before = _resident()
        began = time.perf_counter()
        found = score(model, train, test, folder)
        seconds = time.perf_counter() - began
    np.save(folder / f"{tool.partition(' ')[0]}.npy", found.detach().numpy())
    return {"seconds": seconds, "peak": peak_bytes(), "before": before}


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return float(pages * os.sysconf("SC_PAGE_SIZE"))


def measure(tool: str, folder: Path, rows: int) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.kernel_peers", "--drive", tool, "--folder", str(folder), "--rows", str(rows)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS, help="training rows")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/kernel_peers.md")
    parser.add_argument("--drive", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.drive:
        sys.stdout.write(f"\n{json.dumps(drive(asked.drive, Path(asked.folder), asked.rows))}\n")
        return
    where = measured_on("torch", "captum", "dattri", "traker")
    runs: dict[str, list[dict[str, float]]] = {tool: [] for tool in TOOLS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for round_number in range(ROUNDS):
            for tool in TOOLS:
                # TRAK's projection takes minutes on a CPU: it runs once.
                if tool != "TRAK" or not round_number:
                    runs[tool].append(measure(tool, folder, asked.rows))
        reference = np.load(folder / "genrep_dist.npy")
        differences = {
            tool: float(np.abs(np.load(folder / f"{tool.partition(' ')[0]}.npy") - reference).max() / np.abs(reference).max())
            for tool in ("captum TracInCP", "dattri TracIn (GradDot)")
        }
    for tool, difference in differences.items():
        if difference > 1e-4:
            raise SystemExit(f"{tool} differs from genrep_dist by {difference:g} of the largest K")
    fastest = min((tool for tool in TOOLS if tool != "genrep_dist"), key=lambda tool: min(run["seconds"] for run in runs[tool]))
    lines = []
    for tool, found in runs.items():
        ratios = [other["seconds"] / mine["seconds"] for other, mine in zip(found, runs["genrep_dist"], strict=False)]
        lines.append(
            [
                tool,
                f"{asked.rows / min(run['seconds'] for run in found):,.0f}",
                spread(ratios, "{:.1f}"),
                f"{max(run['peak'] for run in found) / 2**20:,.0f}",
                f"{max(run['peak'] - run['before'] for run in found) / 2**20:,.0f}",
                "-" if tool not in differences else f"{differences[tool]:.0e}",
            ]
        )
    best = [other["seconds"] / mine["seconds"] for other, mine in zip(runs[fastest], runs["genrep_dist"], strict=False)]
    columns = ["tool", "rows per second", "seconds / genrep_dist", "peak MiB", "MiB of the call", "largest relative difference of K"]
    sections = [
        " ".join(str(__doc__).split()),
        where,
        f"{asked.rows:,} training rows, {POINTS} test points, 93,825 parameters, one checkpoint; {ROUNDS} rounds (TRAK: one). Rows per "
        f"second are those of the fastest round; the ratios are of all rounds. The fastest other tool is {fastest}; it takes "
        f"{spread(best, '{:.1f}')} times as long as genrep_dist.",
        table(columns, lines),
    ]
    publish("kernel_peers", "K(train, few test points) compared with other tools", sections, write=asked.write)


if __name__ == "__main__":
    main()
