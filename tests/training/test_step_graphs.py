"""Steps that are captured and replayed, by an implementation that keeps the rules of CUDA graphs on a CPU: the bits of plain steps."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genrep_dist.core.inputs import pack_inputs
from genrep_dist.core.losses import LogisticLoss, get_loss
from genrep_dist.errors import NonFiniteError, ProblemError
from genrep_dist.problems.protocol import Dataset, ParamGroup, Recipe
from genrep_dist.training.fast_paths import FastPaths
from genrep_dist.training.graphs.base import StepGraph, StepGraphs
from genrep_dist.training.graphs.cuda import WARM_UP, CudaGraph
from genrep_dist.training.graphs.emulated import EmulatedGraph
from genrep_dist.training.graphs.rules import Rules
from genrep_dist.training.graphs.steps import GraphedSteps
from genrep_dist.training.loop import TrainingRun, train_models
from genrep_dist.training.observers import TrackingImportance
from genrep_dist.training.optimizers import make_optimizer
from genrep_dist.training.optimizers.sgd import SGD
from genrep_dist.training.packs.base import Pack, Solo
from genrep_dist.training.packs.mapped import MappedPack
from genrep_dist.training.packs.shared import SharedPack
from genrep_dist.training.packs.stacked import StackedPack
from genrep_dist.training.randomness import Randomness
from genrep_dist.training.step import PackStep
from genrep_dist.training.torch_private import storage_id
from genrep_dist.training.trainer import Trainer
from tests.structured_inputs import Masked, rows
from tests.training.reference import RECIPES
from tests.training.test_mapped_packs import grouped
from tests.training.test_resume import Killed, Memory
from tests.training.test_shared_packs import ten_logits, words
from tests.training.test_stacked_packs import CASES, Factory, float_text, images, small_cnn, some_runs
from tests.training.test_stateful_packs import state_of

Case = tuple[Factory, str, Callable[[], Dataset], type[Pack]]


def normalized() -> nn.Module:
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, momentum=None), nn.ReLU(), nn.Flatten(), nn.Linear(144, 1), nn.BatchNorm1d(1)
    return nn.Sequential(*layers)


def with_dropout() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Dropout(0.3), nn.Linear(20, 1))


def dictionaries() -> Dataset:
    ids, mask, targets, numbers = rows(0, 30)
    return Dataset(pack_inputs({"input_ids": ids, "attention_mask": mask}), targets, numbers)


GRAPHED: dict[str, Case] = {
    "small cnn": (small_cnn, "logistic", images, StackedPack),
    "shared cnn": (small_cnn, "logistic", images, SharedPack),
    "narrow": (ten_logits, "softmax", lambda: images(num_classes=10), SharedPack),
    "norms": (CASES["strides, dilation, norms"][0], "logistic", lambda: images(channels=3), StackedPack),
    "text": (CASES["text"][0], "logistic", lambda: float_text(torch.float32), StackedPack),
    "batch statistics": (normalized, "logistic", images, StackedPack),
    "mapped": (grouped, "logistic", images, MappedPack),
    "dictionaries": (Masked, "logistic", dictionaries, StackedPack),
}
GROUP = ParamGroup("*bias", learning_rate=0.01, weight_decay=0.0)
STEP_RECIPES = {
    "schedule": replace(RECIPES["cosine"], warmup=0.2),
    "momentum": replace(RECIPES["all"], dampening=0.2, clip_norm=0.5),
    "adamw": Recipe(3, 8, 0.01, optimizer="adamw", schedule="one_cycle", amsgrad=True, param_groups=(GROUP,)),
    "rmsprop": Recipe(3, 8, 0.01, optimizer="rmsprop", momentum=0.5, centered=True),
}


def runs_of(data: Dataset, count: int) -> list[TrainingRun]:
    """Without some rows or a whole batch, with weights, and with other targets."""
    runs, generator = some_runs(data, count, 8), torch.Generator().manual_seed(1)
    weights = torch.rand(len(data.ids), dtype=torch.float64, generator=generator) + 0.2
    other = data.targets[torch.randperm(len(data.targets), generator=generator)]
    return [*runs[:-2], replace(runs[-2], weights=weights), replace(runs[-1], targets=other)] if count > 2 else runs


def trained(
    case: Case, recipe: Recipe, runs: Sequence[TrainingRun], graphs: StepGraphs | None, data: Dataset | None = None
) -> tuple[list[Tensor], Tensor]:
    """Parameters and buffers of each model, and the importances of the first one."""
    factory, loss, make, kind = case
    models, tracking = [run.randomness.build(factory) for run in runs], TrackingImportance()
    paths = FastPaths(sparse_embeddings=False)
    found = train_models(
        models, get_loss(loss), recipe, data or make(), runs, kind=kind, observers=[tracking], fast_paths=paths, graphs=graphs
    )
    assert found == [None] * len(runs)
    assert tracking.alpha is not None
    return [state_of(model) for model in models], tracking.alpha


@pytest.mark.parametrize(
    ("name", "recipe_name"),
    [
        *(("small cnn", name) for name in STEP_RECIPES),
        *((name, recipe) for name in GRAPHED if name not in ("small cnn", "text") for recipe in ("momentum", "adamw")),
        ("text", "schedule"),
    ],
)
def test_replayed_trainings_have_the_bits_of_plain_ones(name: str, recipe_name: str) -> None:
    """With a small last batch; rates, weights, targets, state and statistics change from step to step."""
    case, recipe = GRAPHED[name], STEP_RECIPES[recipe_name]
    data = case[2]()
    assert len(data.ids) % recipe.batch_size
    runs = runs_of(data, 5)
    graphs = StepGraphs(EmulatedGraph)
    plain, importances = trained(case, recipe, runs, None, data)
    found, same_importances = trained(case, recipe, runs, graphs, data)
    assert (graphs.notes, graphs.captured) == ({}, 1)
    # Plain are the first step, and those in which a model has one row or none.
    assert 0.6 <= graphs.replayed / (recipe.epochs * recipe.steps_per_epoch(len(data.ids))) < 1
    assert all(map(torch.equal, found, plain))
    assert torch.equal(same_importances, importances)


def test_each_shape_of_batches_has_its_graph() -> None:
    data = images()
    size = next(size for size in range(40, 64) if 2 <= len(data.ids) % size <= 32)
    recipe, graphs = replace(STEP_RECIPES["momentum"], batch_size=size, epochs=5), StepGraphs(EmulatedGraph)
    runs = [TrainingRun(Randomness(seed)) for seed in range(3)]
    expected, found = (trained(GRAPHED["small cnn"], recipe, runs, own, data) for own in (None, graphs))
    assert (graphs.captured, graphs.replayed) == (2, recipe.epochs * recipe.steps_per_epoch(len(data.ids)) - 2)
    assert all(map(torch.equal, found[0], expected[0]))


@pytest.mark.parametrize("precision", ["full", "bfloat16"])
@pytest.mark.parametrize("count", [1, 17])
def test_packs_of_any_size_and_precision(count: int, precision: Any) -> None:
    recipe = replace(STEP_RECIPES["momentum"], precision=precision, drop_last=True)
    for name in ("narrow", "small cnn"):
        case, graphs = GRAPHED[name], StepGraphs(EmulatedGraph)
        runs = runs_of(case[2](), count)
        expected, found = trained(case, recipe, runs, None), trained(case, recipe, runs, graphs)
        assert (graphs.notes, graphs.captured) == ({}, 1)
        assert all(map(torch.equal, found[0], expected[0]))


def test_a_step_reads_and_writes_memory_of_its_pack_alone() -> None:
    factory, loss, make, kind = GRAPHED["small cnn"]
    data, recipe = make(), STEP_RECIPES["adamw"]
    runs = runs_of(data, 3)
    pack = kind(factory(), 3, make_optimizer(recipe), FastPaths())
    kept = torch.stack([run.kept for run in runs if run.kept is not None])
    plain = PackStep(pack, get_loss(loss).derivative, recipe, data, None, str)
    step = next(pack.steps(torch.stack([run.randomness.order(1, len(data.ids)) for run in runs]), 8, kept, 0))
    assert isinstance(step.divisor, Tensor)
    assert step.counted is not None
    rate = torch.full((), 0.1, dtype=torch.float64)
    rules = Rules(lambda: [*pack.changing_tensors(), *pack.scratch_tensors()])
    plain.take(step, 0.1)
    rules.watch(lambda: plain.take(step, rate))  # type: ignore[arg-type]
    given = [step.rows, step.counted, step.divisor, rate, data.inputs, data.targets]
    own = {storage_id(tensor) for tensor in [*given, *pack.changing_tensors(), *pack.scratch_tensors()]}
    assert rules.reason is None
    assert set(rules.outside) <= own


class Waiting(LogisticLoss):
    def derivative(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().derivative(outputs, targets) * (2 if float(outputs.detach().mean()) > 0 else 1)


class Masking(LogisticLoss):
    def derivative(self, outputs: Tensor, targets: Tensor) -> Tensor:
        found = super().derivative(outputs, targets)
        found[found.abs() < 0.1] = 0.0
        return found


class Drawing(LogisticLoss):
    def derivative(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().derivative(outputs, targets) + 0.01 * torch.randn_like(outputs)


class DrawingInPython(LogisticLoss):
    def derivative(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().derivative(outputs, targets) * (1 + 0.01 * random.random())


class Counting(LogisticLoss):
    """Keeps a number beside the models."""

    def __init__(self) -> None:
        self.total = torch.zeros(())

    def derivative(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.total += outputs.detach().mean()
        return super().derivative(outputs, targets)


class Failing(LogisticLoss):
    """Fails wherever its operations are watched, as a library may where it is captured."""

    def derivative(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if torch._C._len_torch_dispatch_stack():
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        return super().derivative(outputs, targets)


class OwnSGD(SGD):
    """Somebody's rule, which computes with numbers."""

    takes_rate_tensors = False


@pytest.mark.parametrize(
    ("loss", "note"),
    [
        (Waiting(), "aten._local_scalar_dense.default waits for numbers"),
        (Masking(), "waits for numbers"),
        (Drawing(), "aten.randn_like.default draws random numbers"),
        (DrawingInPython(), "it draws random numbers"),
        (Counting(), "writes to memory that is not the models'"),
        (Failing(), "RuntimeError: operation not permitted when stream is capturing"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_step_that_breaks_a_rule_is_taken_plainly(loss: LogisticLoss, note: str) -> None:
    data, recipe = images(), STEP_RECIPES["momentum"]
    runs, graphs = runs_of(data, 4), StepGraphs(EmulatedGraph)
    models: list[list[nn.Module]] = []
    for own in (None, graphs):
        models.append([run.randomness.build(small_cnn) for run in runs])
        train_models(models[-1], loss, recipe, data, runs, kind=StackedPack, graphs=own)
    assert graphs.captured == graphs.replayed == 0
    assert note in graphs.notes["StackedPack"]
    assert note in graphs.summary
    assert all(torch.equal(state_of(one), state_of(other)) for one, other in zip(*models, strict=True))


def test_packs_that_are_not_captured() -> None:
    data, graphs, runs = images(), StepGraphs(EmulatedGraph), runs_of(images(), 4)
    models = [Trainer(with_dropout, LogisticLoss(), RECIPES["plain"], data, graphs=own).train_all(runs) for own in (None, graphs)]
    for one, other in zip(*models, strict=True):
        assert isinstance(one, nn.Module)
        assert isinstance(other, nn.Module)
        assert torch.equal(state_of(one), state_of(other))
    assert "aten.bernoulli_.float draws random numbers" in graphs.notes.pop("SharedPack")
    table = StepGraphs(EmulatedGraph)
    Trainer(words, LogisticLoss(), RECIPES["plain"], float_text(torch.float32), graphs=table).train_all(runs[:1] * 2)
    assert not table.notes
    for kind, optimizer, expected in (
        (Solo, make_optimizer(RECIPES["plain"]), "train alone"),
        (StackedPack, OwnSGD(RECIPES["plain"]), "takes_rate_tensors"),
    ):
        pack = kind(small_cnn(), 1, optimizer, FastPaths())
        plain = PackStep(pack, LogisticLoss().derivative, RECIPES["plain"], data, None, str)
        GraphedSteps(plain, pack, graphs, 100)
        assert expected in graphs.notes.pop(kind.__name__)
    on_gpu = StepGraphs(CudaGraph)
    trained(GRAPHED["small cnn"], RECIPES["plain"], runs, on_gpu)
    assert on_gpu.notes == {"StackedPack": "models on cpu"}
    few = StepGraphs(EmulatedGraph)
    trained(GRAPHED["small cnn"], Recipe(1, 64, 0.1), runs, few)
    assert (few.captured, few.summary) == (0, "too few steps of one shape")


def test_sparse_gradients_are_not_captured() -> None:
    def large() -> nn.Module:
        return nn.Sequential(nn.Embedding(30_000, 4), nn.Flatten(), nn.Linear(48, 1))

    data, graphs = float_text(torch.float32), StepGraphs(EmulatedGraph)
    models = [large(), large()]
    runs = [TrainingRun(Randomness(seed)) for seed in range(2)]
    train_models(models, LogisticLoss(), RECIPES["plain"], data, runs, kind=StackedPack, graphs=graphs)
    assert graphs.notes == {"StackedPack": "gradients of embeddings are sparse"}


def test_augmented_rows_are_not_replayed() -> None:
    recipe, graphs = replace(RECIPES["plain"], augment=lambda row, epoch, generator: row), StepGraphs(EmulatedGraph)
    runs = runs_of(images(), 3)
    expected, found = trained(GRAPHED["small cnn"], recipe, runs, None), trained(GRAPHED["small cnn"], recipe, runs, graphs)
    assert graphs.captured == 0
    assert all(map(torch.equal, found[0], expected[0]))


def spoiling(share: float, first: int) -> type[StepGraph]:
    """A graph whose replays end elsewhere, from replay ``first`` on."""

    class Spoiling(EmulatedGraph):
        def __init__(self, function: Callable[[], Tensor], device: torch.device) -> None:
            super().__init__(function, device)
            self._count = 0

        def replay(self, hidden: Sequence[Tensor]) -> None:
            super().replay(hidden)
            self._count += 1
            if self._count >= first:
                self.result *= 1 + share

    return Spoiling


@pytest.mark.parametrize("first", [1, 2, 3])
def test_a_first_replay_with_other_numbers_ends_the_graphs(first: int) -> None:
    """At half the rate, or one of the first two: the training goes on plainly, with the bits of a plain one."""
    case, recipe, graphs = GRAPHED["small cnn"], STEP_RECIPES["momentum"], StepGraphs(spoiling(0.01, first))
    runs = runs_of(case[2](), 4)
    expected, found = trained(case, recipe, runs, None), trained(case, recipe, runs, graphs)
    assert "a captured step differs from the plain one by 0.01" in graphs.notes["StackedPack"]
    assert all(map(torch.equal, found[0], expected[0]))
    assert torch.equal(found[1], expected[1])


class Scaled(LogisticLoss):
    """Its derivative is scaled by a number that changes in Python."""

    scale = 1.0

    def derivative(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().derivative(outputs, targets) * self.scale


class ScalesLater(TrackingImportance):
    def __init__(self, loss: Scaled, epoch: int) -> None:
        super().__init__()
        self._loss, self._epoch = loss, epoch

    def epoch_end(self, epoch: int, model: nn.Module, next_step: int) -> None:
        self._loss.scale = 0.5 if epoch >= self._epoch else 1.0


@pytest.mark.parametrize("epoch", [1, 3])
def test_what_changes_later_in_python_is_an_error(epoch: int) -> None:
    """A replay goes on with the number of its capture: the next one that is compared says so, at the latest in the last step."""
    data, loss, graphs = images(), Scaled(), StepGraphs(EmulatedGraph)
    runs, recipe = [TrainingRun(Randomness(seed)) for seed in range(3)], replace(RECIPES["plain"], epochs=4)
    models = [run.randomness.build(small_cnn) for run in runs]
    with pytest.raises(ProblemError, match=r"no longer gives the numbers of the plain step[\s\S]*cuda_graphs: false"):
        train_models(models, loss, recipe, data, runs, kind=StackedPack, observers=[ScalesLater(loss, epoch)], graphs=graphs)
    assert graphs.replayed == (8 if epoch == 1 else 22)


def test_a_model_that_diverges_leaves_a_replayed_pack() -> None:
    data, recipe = images(), replace(RECIPES["plain"], epochs=4)
    weights = torch.ones(len(data.ids), dtype=torch.float64)
    other = Dataset(data.inputs.clone(), data.targets, data.ids)
    other.inputs[3] = 1e30
    kept = torch.arange(len(data.ids)) != 3
    runs = [TrainingRun(Randomness(1), kept), TrainingRun(Randomness(2)), TrainingRun(Randomness(3), kept, weights=weights)]
    found: list[tuple[list[str | None], list[Tensor]]] = []
    graphs = StepGraphs(EmulatedGraph)
    for own in (None, graphs):
        models = [run.randomness.build(small_cnn) for run in runs]
        errors = train_models(models, LogisticLoss(), recipe, other, runs, kind=StackedPack, graphs=own)
        assert isinstance(errors[1], NonFiniteError)
        found.append(([None if error is None else str(error) for error in errors], [state_of(models[0]), state_of(models[2])]))
    assert graphs.replayed
    assert found[0][0] == found[1][0]
    assert all(map(torch.equal, found[0][1], found[1][1]))


def test_a_replayed_training_that_is_killed_goes_on() -> None:
    recipe, runs = replace(STEP_RECIPES["adamw"], epochs=4), runs_of(images(), 4)
    plain, replayed = (Trainer(small_cnn, LogisticLoss(), recipe, images(), graphs=own) for own in (None, StepGraphs(EmulatedGraph)))
    memory = Memory(kill_after=2)
    with pytest.raises(Killed):
        replayed.train_all(runs, memory)
    for one, other in zip(plain.train_all(runs), replayed.train_all(runs, memory), strict=True):
        assert isinstance(one, nn.Module)
        assert isinstance(other, nn.Module)
        assert torch.equal(state_of(one), state_of(other))


def test_the_calls_of_a_cuda_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order that torch documents: warm up on a side stream, wait for it, capture, replay. The stream and the graph are stand-ins."""
    calls: list[str] = []

    class Stream:
        def __init__(self, name: str = "side") -> None:
            self.name = name

        def wait_stream(self, other: Stream) -> None:
            calls.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def noted(name: str) -> Iterator[None]:
        calls.append(f"begin {name}")
        yield
        calls.append(f"end {name}")

    class Graph:
        def replay(self) -> None:
            calls.append("replay")

    monkeypatch.setattr(torch.cuda, "device", lambda device: noted(str(device)))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream("current"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: noted(stream.name))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: noted("capture"))

    def step() -> Tensor:
        calls.append("step")
        return torch.ones(2)

    graph = CudaGraph(step, torch.device("cuda"))
    graph.replay([])
    warm_up = ["side waits for current", "begin side", *["step"] * WARM_UP, "end side", "current waits for side"]
    assert calls == ["begin cuda", *warm_up, "begin capture", "step", "end capture", "end cuda", "replay"]
    assert torch.equal(graph.result, torch.ones(2))
