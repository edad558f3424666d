"""Training on a GPU: packs equal single models and the CPU's float64 to rounding, whoever shares a pack or the GPU."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from genrep_dist.core.losses import LogisticLoss, get_loss
from genrep_dist.core.tensors import OUT_OF_MEMORY
from genrep_dist.errors import NonFiniteError
from genrep_dist.problems.protocol import Recipe
from genrep_dist.training.fast_paths import PLAIN, FastPaths
from genrep_dist.training.graphs.base import StepGraph, StepGraphs
from genrep_dist.training.graphs.cuda import CudaGraph
from genrep_dist.training.graphs.emulated import EmulatedGraph
from genrep_dist.training.loop import TrainingRun, train
from genrep_dist.training.observers import TrackingImportance
from genrep_dist.training.trainer import GPU_MEMORY_SHARE, Trainer
from tests.gpu.examples import EXAMPLES, Example, parameters_of, some_runs

LOSS = get_loss("logistic")
RECIPES = {
    "sgd": Recipe(epochs=2, batch_size=8, learning_rate=0.1),
    "momentum": Recipe(epochs=2, batch_size=8, learning_rate=0.05, momentum=0.9, weight_decay=0.01),
    "adam": Recipe(epochs=2, batch_size=8, learning_rate=0.003, optimizer="adam", eps=1e-4),
}


def trained(trainer: Trainer, runs: Sequence[TrainingRun]) -> list[Tensor]:
    found = trainer.train_all(runs)
    assert not any(isinstance(one, NonFiniteError) for one in found)
    return [parameters_of(model) for model in found if isinstance(model, nn.Module)]


def require_close(found: Sequence[Tensor], expected: Sequence[Tensor], start: Tensor, share: float) -> None:
    """Results differ by at most a share of the distance from the initial parameters."""
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).norm()) <= share * float((other - start).norm())


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", EXAMPLES)
def test_a_pack_equals_the_plain_loop_in_float64_on_the_cpu(name: str, recipe: str, device: torch.device) -> None:
    example, runs, cpu = EXAMPLES[name], some_runs(5), torch.device("cpu")
    trainer = Trainer(example.factory, LOSS, RECIPES[recipe], example.data(device))
    assert trainer.pack_kind == example.pack_kind
    exact, data = [], example.data(cpu, dtype=torch.float64)
    for run in runs:
        model = run.randomness.build(example.factory).double()
        train(model, LOSS, RECIPES[recipe], data, run.randomness, kept=run.kept, fast_paths=PLAIN)
        exact.append(parameters_of(model))
    start = parameters_of(runs[0].randomness.build(example.factory))
    require_close(trained(trainer, runs), exact, start, 2e-3)


@pytest.mark.parametrize("policy", ["same", "fresh"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_a_model_does_not_depend_on_its_company_but_for_rounding(name: str, policy: str, device: torch.device) -> None:
    example, runs = EXAMPLES[name], some_runs(6, policy)
    trainer = Trainer(example.factory, LOSS, RECIPES["sgd"], example.data(device))
    together = trained(trainer, runs)
    alone = [one for run in runs for one in trained(trainer, [run])]
    mixed = trained(trainer, [runs[4], runs[1]])
    for run, one, other in zip(runs, together, alone, strict=True):
        require_close([one], [other], parameters_of(run.randomness.build(example.factory)), 1e-3)
    require_close(mixed, [together[4], together[1]], parameters_of(runs[4].randomness.build(example.factory)), 1e-2)


def graph_on(device: torch.device) -> type[StepGraph]:
    """A graph of the device that captures after one step; on a CPU the one that keeps its rules."""
    if device.type != "cuda":
        return EmulatedGraph

    class Soon(CudaGraph):
        plain_steps = 1

    return Soon


DENSE = FastPaths(sparse_embeddings=False)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != "normalized"])
def test_replayed_steps_equal_plain_ones(name: str, recipe: str, device: torch.device) -> None:
    """A pack with graphs, without them, and the single models; rates change from step to step, and the last batch is small."""
    example, runs, changing = EXAMPLES[name], some_runs(5), replace(RECIPES[recipe], schedule="cosine", epochs=4)
    graphs = StepGraphs(graph_on(device))
    graphed, plain = (Trainer(example.factory, LOSS, changing, example.data(device), DENSE, own) for own in (graphs, None))
    found, expected = trained(graphed, runs), trained(plain, runs)
    assert (graphs.notes, graphs.captured) == ({}, 1)
    assert graphs.replayed > 10
    start = parameters_of(runs[0].randomness.build(example.factory))
    require_close(found, expected, start, 0.0 if device.type == "cpu" else 1e-3)
    solo = Trainer(example.factory, LOSS, changing, example.data(device), PLAIN)
    require_close(found, trained(solo, runs), start, 5e-3)


def test_an_observer_sees_replayed_steps(device: torch.device) -> None:
    example, run, recipe = EXAMPLES["regression"], some_runs(2)[1], replace(RECIPES["sgd"], epochs=4)
    graphs, found = StepGraphs(graph_on(device)), list[Tensor]()
    for own in (graphs, None):
        tracking = TrackingImportance()
        Trainer(example.factory, LOSS, recipe, example.data(device), DENSE, own).train(run, [tracking])
        assert tracking.alpha is not None
        found.append(tracking.alpha.cpu())
    assert graphs.replayed > 10
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_random_numbers_of_the_cpu_are_not_captured(device: torch.device) -> None:
    example, runs, graphs = EXAMPLES["normalized"], some_runs(3), StepGraphs(graph_on(device))
    graphed, plain = (Trainer(example.factory, LOSS, RECIPES["sgd"], example.data(device), DENSE, own) for own in (graphs, None))
    start = parameters_of(runs[0].randomness.build(example.factory))
    require_close(trained(graphed, runs), trained(plain, runs), start, 1e-3)
    assert graphs.captured == 0
    assert "draws random numbers" in graphs.summary


def test_statistics_of_batches_are_replayed(device: torch.device) -> None:
    def factory() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 1))

    graphs, runs, found = StepGraphs(graph_on(device)), some_runs(4), list[list[Tensor]]()
    for own in (graphs, None):
        models = Trainer(factory, LOSS, replace(RECIPES["momentum"], epochs=4), EXAMPLES["cnn"].data(device), DENSE, own).train_all(runs)
        states = [model.state_dict().values() for model in models if isinstance(model, nn.Module)]
        found.append([torch.cat([value.flatten().double().cpu() for value in values]) for values in states])
    assert graphs.replayed > 10, graphs.notes
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-5)


def test_a_step_that_cannot_be_captured_is_taken_plainly(device: torch.device) -> None:
    """A loss that waits for numbers on the host is refused before a capture; the GPU is as usable as before."""

    class Waiting(LogisticLoss):
        def derivative(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return super().derivative(outputs, targets) * (2 if float(outputs.detach().mean()) > 0 else 1)

    example, runs, graphs = EXAMPLES["cnn"], some_runs(3), StepGraphs(graph_on(device))
    graphed, plain = (Trainer(example.factory, Waiting(), RECIPES["sgd"], example.data(device), DENSE, own) for own in (graphs, None))
    start = parameters_of(runs[0].randomness.build(example.factory))
    require_close(trained(graphed, runs), trained(plain, runs), start, 1e-3)
    assert graphs.captured == 0
    assert graphs.notes


def test_a_capture_that_fails_leaves_the_gpu_usable(cuda: torch.device) -> None:
    """Rules find what is known to fail; what a library refuses is found by the capture itself."""

    def waiting() -> Tensor:
        torch.cuda.synchronize(cuda)
        return torch.ones(2, device=cuda)

    with pytest.raises(RuntimeError):
        CudaGraph(waiting, cuda)
    torch.cuda.synchronize(cuda)
    assert float((torch.ones(3, device=cuda) * 2).sum()) == 6


def test_a_pack_of_the_chosen_size_fits_its_share_of_the_memory(cuda: torch.device) -> None:
    example = EXAMPLES["cnn"]
    trainer = Trainer(example.factory, LOSS, Recipe(epochs=1, batch_size=32, learning_rate=0.1), example.data(cuda, 256))
    size = trainer.pack_size()
    assert size > 1
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(cuda)
    before = torch.cuda.memory_allocated(cuda)
    torch.cuda.reset_peak_memory_stats(cuda)
    trained(trainer, some_runs(2, num_rows=256)[:1] * size)
    assert torch.cuda.max_memory_allocated(cuda) - before <= 1.1 * GPU_MEMORY_SHARE * free


def test_too_little_memory_is_an_error_of_its_own_and_smaller_packs_go_on(cuda: torch.device) -> None:
    """The driver repeats such a task in smaller parts; here that its error is known and leaves nothing behind."""
    example = EXAMPLES["cnn"]
    trainer = Trainer(example.factory, LOSS, Recipe(epochs=1, batch_size=256, learning_rate=0.1), example.data(cuda, 4096))
    runs = [TrainingRun(run.randomness) for run in some_runs(1, num_rows=4096)] * 256
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info(cuda)
    torch.cuda.set_per_process_memory_fraction(min(1.0, 512 * 2**20 / total), cuda)
    try:
        with pytest.raises(OUT_OF_MEMORY):
            trainer.train_all(runs)
        torch.cuda.empty_cache()
        assert len(trained(trainer, runs[:4])) == 4
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, cuda)


def _train_in_process(device: str, queue: multiprocessing.Queue[list[Tensor]]) -> None:
    example: Example = EXAMPLES["cnn"]
    found = trained(Trainer(example.factory, LOSS, RECIPES["sgd"], example.data(torch.device(device))), some_runs(4))
    queue.put([one.numpy() for one in found])  # type: ignore[misc]


def test_two_processes_share_a_device(device: torch.device) -> None:
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[list[Tensor]] = context.Queue()
    processes = [context.Process(target=_train_in_process, args=(device.type, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    first, second = ([torch.as_tensor(one) for one in queue.get(timeout=240)] for _ in processes)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    start = parameters_of(some_runs(1)[0].randomness.build(EXAMPLES["cnn"].factory))
    require_close(first, second, start, 1e-4)


@pytest.mark.parametrize("precision", ["full", "tf32"])
def test_products_are_rounded_only_where_it_is_declared(precision: str, cuda: torch.device) -> None:
    """The TF32 of a recipe changes its training and nothing outside it."""
    if torch.cuda.get_device_capability(cuda)[0] < 8:
        pytest.skip("this GPU has no TF32")
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(512, 512, generator=generator) for _ in range(2))
    example = EXAMPLES["cnn"]
    recipe = Recipe(epochs=2, batch_size=8, learning_rate=0.1, precision=precision)  # type: ignore[arg-type]
    run = some_runs(1)[0]
    found = trained(Trainer(example.factory, LOSS, recipe, example.data(cuda)), [run])[0]
    model = run.randomness.build(example.factory).double()
    train(model, LOSS, RECIPES["sgd"], example.data(torch.device("cpu"), dtype=torch.float64), run.randomness, fast_paths=PLAIN)
    exact = parameters_of(model)
    off = float((found - exact).norm() / (exact - parameters_of(run.randomness.build(example.factory))).norm())
    assert off < (1e-4 if precision == "full" else 0.1)
    assert precision == "full" or off > 1e-6, "TF32 was not used"
    product = left.to(cuda) @ right.to(cuda)
    assert float((product.double().cpu() - left.double() @ right.double()).norm() / product.double().cpu().norm()) < 1e-6
