"""What will be done, as data: stages, units, bytes. A plan can be printed and refuses what cannot fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from genrep_dist.config import Experiment
from genrep_dist.config.keys import Keys, checkpoint_epoch
from genrep_dist.core.methods import SOLVED, Method
from genrep_dist.core.solvers.nystrom import nystrom_bytes
from genrep_dist.errors import PlanError
from genrep_dist.units import (
    AttributionUnit,
    DiagonalUnit,
    GradientUnit,
    GramUnit,
    ImportanceUnit,
    InfluenceUnit,
    KernelUnit,
    StageName,
    TrainUnit,
)

SHARD_BYTES = 64 * 2**20
"""No shard of features is larger: a unit of work that is lost costs seconds."""
MAX_BLOCK_ROWS = 512
GPU_FLOP_PER_SECOND, DISK_BYTES_PER_SECOND = 1e13, 1e9
"""Guesses, for plans: float32 on one GPU, and a disk that is written to and read."""
FLOAT_BYTES = 4
TILES_HELD = 6
"""Tiles of a gram that fit half the budget. Three are held at once (the sum, its encoded file, what is read back); the rest is for
the store's upload buffers, for what the allocator keeps, and for a process whose libraries and data take more than the other half."""
PANEL = 2
"""Left blocks of features that a tile of the gram keeps, ready to be multiplied, while the right ones pass by."""
BLOCKS_HELD = PANEL + 3
"""Blocks of features that a tile has in memory at once: the panel, a right block, the one that is being read, and what reading takes."""


@dataclass(frozen=True)
class Shape:
    """The sizes that a plan needs. ``last_layer_width`` is L with the bias feature; 0 where the model has no last linear layer.

    Of the NTK's features for one sample: ``ntk_held`` numbers as factors, ``ntk_spelled`` when they are made ready to be multiplied,
    ``ntk_products`` multiply-adds with those of another, ``ntk_bytes`` in the store, as measured on a few rows. 0: dense rows.
    ``ntk_slow`` tells the layers whose gradients take a slower way. ``forward_flop`` are the floating-point operations of a sample's
    forward pass, 0 where they are not known; ``on_gpu``: whether workers compute on GPUs. ``arithmetic`` is how a CPU trains models
    ("stacked", "mapped" or "solo"), ``step_bytes`` what a step of one takes beside its parameters, and ``pack`` how many share one: at
    most, or always where they are mapped.
    """

    num_train: int
    num_test: int
    num_outputs: int
    num_parameters: int
    last_layer_width: int
    ntk_held: int = 0
    ntk_spelled: int = 0
    ntk_products: int = 0
    ntk_bytes: int = 0
    ntk_slow: tuple[str, ...] = ()
    forward_flop: int = 0
    on_gpu: bool = False
    arithmetic: str = "solo"
    step_bytes: int = 0
    pack: int = 1

    def feature_width(self, kernel: str) -> int:
        """Numbers that one training sample takes in the features of ``kernel``; a kernel of the user's own has none that we know."""
        return {"ntk": self.num_outputs * self.num_parameters, "last-layer": self.last_layer_width}.get(kernel, 1)

    def feature_bytes(self, kernel: str) -> int:
        """Bytes that one training sample's features take in the store."""
        return self.ntk_bytes if kernel == "ntk" and self.ntk_bytes else FLOAT_BYTES * self.feature_width(kernel)

    def kept_numbers(self, kernel: str) -> int:
        """Numbers that one sample takes while it waits to be multiplied: its features, ready."""
        return self.ntk_held + self.ntk_spelled if kernel == "ntk" and self.ntk_held else self.feature_width(kernel)

    def block_numbers(self, kernel: str) -> int:
        """Numbers that one row of a block takes at work: BLOCKS_HELD blocks; of factors a panel is held twice while its blocks are joined,
        and what is made ready of a panel and of the right block besides.
        """
        if kernel == "ntk" and self.ntk_held:
            return (BLOCKS_HELD + PANEL) * self.ntk_held + (PANEL + 1) * self.ntk_spelled
        return BLOCKS_HELD * self.feature_width(kernel)

    @property
    def gradient_flop(self) -> int:
        """Floating-point operations of one sample's gradients: a pass there, and for each output one back, which takes twice as many."""
        return self.forward_flop * (1 + 2 * self.num_outputs)

    def products(self, kernel: str) -> int:
        """Multiply-adds of one sample with another."""
        if kernel == "ntk":
            return self.ntk_products or self.num_outputs**2 * self.num_parameters
        return self.feature_width(kernel)

    def gram_rows(self, kernel: str) -> int:
        """Rows of the train-by-train gram: N C for the matrix-valued NTK; N where all outputs share one scalar kernel."""
        return self.num_train * (self.num_outputs if kernel == "ntk" else 1)


@dataclass(frozen=True)
class StagePlan:
    """One line of the plan. ``units`` counts what the stage consists of, whether or not it is done already."""

    name: StageName
    what: str
    units: int
    bytes_written: int
    peak_bytes: int


@dataclass(frozen=True)
class Plan:
    """All that an experiment will do. Retrainings are counted as asked and at most unique; equal sets are trained once."""

    experiment: Experiment
    keys: Keys
    shape: Shape
    block_rows: dict[str, int]
    gram_tiles: dict[str, int]
    stages: tuple[StagePlan, ...] = field(default=())

    @property
    def bytes_written(self) -> int:
        return sum(stage.bytes_written for stage in self.stages)

    @property
    def retrainings_asked(self) -> int:
        """Models that the metrics ask for, the originals (nothing removed) and every repetition included."""
        return self._retrainings(originals=True)

    @property
    def retrainings_at_most(self) -> int:
        """Retrainings when no two removal sets coincide; one original model per seed is trained by the first stage anyway."""
        return self._retrainings(originals=False)

    def removals_of_a_method(self, *, originals: bool = False) -> int:
        """Retrainings that one method asks for with one seed, and with ``originals`` the originals that it is compared with."""
        experiment = self.experiment
        count = 0
        for section, signs in ((experiment.deletion, len(experiment.deletion.signs)), (experiment.brittleness, 1)):
            if section is not None:
                removals = section.removals(self.shape.num_train)
                removing = sum(removed > 0 for _, removed in removals)
                count += experiment.num_test_points * signs * removing * section.replicates
                count += experiment.num_test_points * signs * (len(removals) - removing) * originals
        return count

    def _retrainings(self, *, originals: bool) -> int:
        experiment = self.experiment
        count = len(experiment.methods) * self.removals_of_a_method(originals=originals)
        if experiment.lds is not None:
            count += experiment.lds.subsets * experiment.lds.replicates
        if experiment.loo is not None:
            count += experiment.loo.samples * experiment.loo.replicates
        return len(experiment.seeds) * count

    def most_removed(self) -> int:
        """Samples in the largest removed set."""
        experiment, num_train = self.experiment, self.shape.num_train
        counts = [count for section in (experiment.deletion, experiment.brittleness) if section for _, count in section.removals(num_train)]
        if experiment.lds is not None:
            counts.append(num_train - round(experiment.lds.fraction * num_train))
        return max(counts)

    @property
    def warnings(self) -> list[str]:
        """What limits the reading of the numbers to come, each a sentence or two."""
        found = []
        momentum, decay = self.keys.recipe["momentum"], self.keys.recipe["weight_decay"]
        names = {method.name for method in self.experiment.parsed_methods if method.importance in ("tracking", "descent")}
        if (momentum or decay) and (names or "tracincp" in self.experiment.methods):
            found.append(
                f"The models are trained with momentum {momentum:g} and weight decay {decay:g}: Eq. 10's tracked importances then no "
                "longer sum up what training did, even for a linear model, nor does TracInCP."
            )
        if self.keys.recipe["precision"] != "full" and (names or "tracincp" in self.experiment.methods):
            found.append(
                f"The models are trained in {self.keys.recipe['precision']}, and explained and judged in their own dtype: what Eq. 10 "
                "tracks, and the trajectory that TracInCP samples, are true to that rounding."
            )
        if self.experiment.problem.flip_labels is not None:
            unknown = [name for name in self.experiment.methods if not self.has_self_influence(self.experiment.method(name))]
            if unknown:
                found.append(
                    f"No self-influence is known of {', '.join(unknown)}, so these are not judged by the labels that were flipped: "
                    "scores from elsewhere have no training samples as test points, and the true Hessian would need a solve for each."
                )
        if self.shape.ntk_slow and any(kernel == "ntk" for kernel, _ in self.kernels_needed()):
            found.append(
                f"Per-sample gradients of these layers take a slower way than one batched backward pass: {'; '.join(self.shape.ntk_slow)}."
            )
        projection = self.experiment.projection
        if projection is not None and any(kernel == "ntk" for kernel, _ in self.kernels_needed()):
            found.append(
                f"Features of the NTK are projected to {projection.dim:,} random numbers ({projection.kind}, seed {projection.seed}): its "
                f"kernels are off by about {projection.dim**-0.5:.2g} of |g_i| |g_j|, and so is all that is made of them."
            )
        unverified = [name for name in self.experiment.judged if self.experiment.external[name].unverified]
        if unverified:
            found.append(
                f"The scores of {', '.join(unverified)} need not say which models they were computed for (unverified: true): nothing "
                "here can tell whether they are scores of the models that are judged."
            )
        if self.experiment.deletion.retrain == "fresh":
            found.append(
                "Retrained models draw fresh random numbers (retrain: fresh): every difference holds the noise of two trainings, so "
                "intervals are several times wider than with common random numbers (retrain: same)."
            )
        return found

    # -- what is needed --------------------------------------------------------------------------------------------------------

    def kernels_needed(self) -> list[tuple[str, int]]:
        """(kernel, epoch) of every K(train, test) that is a product of features."""
        wanted = {(m.kernel, e) for m in self.experiment.parsed_methods for e in self.keys.method_epochs(m)}
        return sorted({pair for pair in wanted if pair[0] != "influence"} | set(self._under_influence()))

    def influence_epochs(self) -> list[int]:
        """Epochs at which the influence kernel is needed."""
        return sorted({e for m in self.experiment.parsed_methods if m.kernel == "influence" for e in self.keys.method_epochs(m)})

    def solved_needed(self) -> list[tuple[str, str, int]]:
        """(importance, kernel, epoch) of the importances that are solved for on a gram."""
        methods = [method for method in self.experiment.parsed_methods if method.importance in SOLVED]
        return sorted({(method.importance, method.kernel, epoch) for method in methods for epoch in self.keys.method_epochs(method)})

    def grams_needed(self) -> list[tuple[str, int]]:
        """(kernel, epoch) of every train-by-train gram: solved importances need one, and so does the influence's dual system."""
        return sorted({*((kernel, epoch) for _, kernel, epoch in self.solved_needed()), *self._under_influence()})

    def has_self_influence(self, method: Method) -> bool:
        """Whether phi(x_i -> x_i) of the method can be had for all training samples."""
        if method.kernel == "influence":
            return self.experiment.influence.base_kernel is not None
        return method.kernel != "external"

    def diagonals_needed(self) -> list[tuple[str, int]]:
        """(kernel, epoch) of every K(x_i, x_i): only self-influence asks for them, and only flipped labels for that."""
        if self.experiment.problem.flip_labels is None:
            return []
        methods = [method for method in self.experiment.parsed_methods if self.has_self_influence(method)]
        return sorted({(method.kernel, epoch) for method in methods for epoch in self.keys.method_epochs(method)})

    def _under_influence(self) -> list[tuple[str, int]]:
        """The kernel whose gram and K(train, test) the influence kernel is computed from; the true Hessian needs neither."""
        base = self.experiment.influence.base_kernel
        return [(base, epoch) for epoch in self.influence_epochs()] if base else []

    def features_stored(self) -> list[tuple[str, int]]:
        """(kernel, epoch) whose per-sample features go to the store.

        K(train, test) passes over them once, and streams. A gram passes over them several times, so storing pays there, unless a GPU
        computes them anew in less time than a disk takes to keep them and to give them back. (A CPU takes about as long as a disk, and
        what is stored outlives a kill.)
        """
        choice = self.experiment.resources.features
        if choice == "stream":
            return []
        pairs = self.kernels_needed() if choice == "store" else [pair for pair in self.grams_needed() if self._storing_pays(*pair)]
        return [pair for pair in pairs if pair[0] not in self.experiment.kernels]

    def _storing_pays(self, kernel: str, epoch: int) -> bool:
        computed = self.shape.gradient_flop / GPU_FLOP_PER_SECOND
        if kernel != "ntk" or not self.shape.on_gpu or not computed:
            return True
        passed, passes = self.shape.feature_bytes(kernel) / DISK_BYTES_PER_SECOND, self.feature_passes(kernel, epoch)
        return computed + (1 + passes) * passed <= passes * computed

    def feature_passes(self, kernel: str, epoch: int) -> float:
        """How often each training sample's features are asked for, on average: by K(train, test), and by the tiles of a gram."""
        passes = float((kernel, epoch) in self.kernels_needed())
        if (kernel, epoch) in self.grams_needed():
            # A tile asks for its left rows once, and for its right ones once for every panel of these; on the diagonal for half of them.
            tile = self.gram_tiles[kernel]
            tiles, panels = -(-self.shape.num_train // tile), -(-tile // (PANEL * self.block_rows[kernel]))
            passes += tiles * (1 + panels) / 2
        return passes

    # -- units -----------------------------------------------------------------------------------------------------------------

    def train_units(self) -> Iterator[TrainUnit]:
        return (TrainUnit(seed) for seed in self.experiment.seeds)

    def gradient_units(self, seed: int, kernel: str, epoch: int) -> Iterator[GradientUnit]:
        return (GradientUnit(seed, kernel, epoch, a, b) for a, b in self._blocks(kernel))

    def kernel_units(self, seed: int, kernel: str, epoch: int) -> Iterator[KernelUnit]:
        stored = (kernel, epoch) in self.features_stored()
        return (KernelUnit(seed, kernel, epoch, a, b, stored) for a, b in self._blocks(kernel))

    def gram_units(self, seed: int, kernel: str, epoch: int) -> Iterator[GramUnit]:
        stored = (kernel, epoch) in self.features_stored()
        tile, block = self.gram_tiles[kernel], self.block_rows[kernel]
        tiles = -(-self.shape.num_train // tile)
        return (GramUnit(seed, kernel, epoch, i, j, tile, block, stored) for i in range(tiles) for j in range(i, tiles))

    def influence_units(self) -> Iterator[InfluenceUnit]:
        return (InfluenceUnit(seed, epoch, self.dense_rows) for seed in self.experiment.seeds for epoch in self.influence_epochs())

    @property
    def dense_rows(self) -> int:
        """Training rows whose whole Jacobians are held at once, where products with a true Hessian need them; three fit half the budget."""
        row_bytes = 3 * FLOAT_BYTES * self.shape.feature_width("ntk")
        return max(1, min(self.block_rows["ntk"], self.experiment.resources.memory_budget // 2 // row_bytes))

    def importance_units(self) -> Iterator[ImportanceUnit]:
        budget = self.experiment.resources.memory_budget
        return (ImportanceUnit(s, i, k, e, budget) for s in self.experiment.seeds for i, k, e in self.solved_needed())

    def attribution_units(self) -> Iterator[AttributionUnit]:
        """(Scores from elsewhere are there before any work begins.)"""
        methods = [method for method in self.experiment.methods if method not in self.experiment.judged]
        return (AttributionUnit(seed, method) for seed in self.experiment.seeds for method in methods)

    def diagonal_units(self) -> Iterator[DiagonalUnit]:
        rows = {kernel: self.block_rows["ntk" if kernel == "influence" else kernel] for kernel, _ in self.diagonals_needed()}
        return (DiagonalUnit(seed, k, e, rows[k]) for seed in self.experiment.seeds for k, e in self.diagonals_needed())

    def _blocks(self, kernel: str) -> Iterator[tuple[int, int]]:
        rows, total = self.block_rows[kernel], self.shape.num_train
        return ((start, min(start + rows, total)) for start in range(0, total, rows))


def make_plan(keys: Keys, shape: Shape) -> Plan:
    """Lay out the work of an experiment; refuses what is impossible.

    Raises PlanError when more test points are asked for than there are, when a fraction removes everything, when a method needs
    an epoch that is never reached or a last layer that is not there, and when one block does not fit the memory budget.
    """
    experiment = keys.experiment
    _refuse_impossible(keys, shape)
    kernels = {method.kernel for method in experiment.parsed_methods} - {"none", "influence", "external"}
    if any(method.kernel == "influence" for method in experiment.parsed_methods):
        kernels |= {"ntk", experiment.influence.base_kernel or "ntk"}
    budget = experiment.resources.memory_budget
    block_rows = {kernel: _block_rows(kernel, shape, budget, experiment.num_test_points) for kernel in sorted(kernels)}
    gram_tiles = {kernel: _gram_tile(kernel, shape, budget, block_rows[kernel]) for kernel in kernels}
    plan = Plan(experiment, keys, shape, block_rows, gram_tiles)
    return Plan(experiment, keys, shape, block_rows, gram_tiles, tuple(_stages(plan)))


def _stages(plan: Plan) -> Iterator[StagePlan]:
    shape, experiment = plan.shape, plan.experiment
    seeds, n, c = len(experiment.seeds), shape.num_train, shape.num_outputs
    stored, kernels, grams = plan.features_stored(), plan.kernels_needed(), plan.grams_needed()
    saved = len(plan.keys.saved_epochs())
    per_model = FLOAT_BYTES * (saved * (shape.num_parameters + n * c) + shape.num_test * c) + 8 * n * c
    trained = 8 * FLOAT_BYTES * shape.num_parameters + shape.step_bytes
    yield StagePlan("train", f"{seeds} models, {saved} checkpoints each", seeds, seeds * per_model, trained)
    if stored:
        blocks = sum(-(-n // plan.block_rows[kernel]) for kernel, _ in stored)
        written = sum(n * shape.feature_bytes(kernel) for kernel, _ in stored)
        peak = max(_block_bytes(plan, kernel) for kernel, _ in stored)
        what = f"per-sample features of {', '.join(f'{k} (epoch {e})' for k, e in stored)}"
        yield StagePlan("gradients", what, seeds * blocks, seeds * written, peak)
    if kernels:
        blocks = sum(-(-n // plan.block_rows[kernel]) for kernel, _ in kernels)
        tiles = sum(sum(1 for _ in plan.gram_units(0, kernel, epoch)) for kernel, epoch in grams)
        written = len(kernels) * FLOAT_BYTES * n * c * experiment.num_test_points
        written += sum(_gram_bytes(plan, kernel) for kernel, _ in grams)
        peak = max([_block_bytes(plan, kernel) for kernel, _ in kernels] + [_tile_bytes(plan, kernel) for kernel, _ in grams])
        streamed = len(kernels) - len([pair for pair in kernels if pair in stored])
        what = f"{len(kernels)} K(train, test) ({streamed} streamed), {len(grams)} grams in {tiles} tiles"
        yield StagePlan("kernels", what, seeds * (blocks + tiles), seeds * written, peak)
    influences, solved = plan.influence_epochs(), plan.solved_needed()
    if influences:
        written = len(influences) * FLOAT_BYTES * n * c * experiment.num_test_points
        what = f"influence kernel, curvature {experiment.influence.curvature}, damping {experiment.influence.damping:g}"
        yield StagePlan("influence", what, seeds * len(influences), seeds * written, _influence_bytes(plan))
    if solved:
        written = sum(8 * n * c for _ in solved)
        what = ", ".join(f"{importance} on {kernel} (epoch {epoch})" for importance, kernel, epoch in solved)
        yield StagePlan("importances", what, seeds * len(solved), seeds * written, _importance_bytes(plan))
    methods = len(experiment.methods)
    written = methods * 3 * 8 * n * experiment.num_test_points
    what = f"{methods} methods x {experiment.num_test_points} test points"
    if experiment.judged:
        what += f", {len(experiment.judged)} of them from elsewhere"
    yield StagePlan("attributions", what, seeds * (methods - len(experiment.judged)), seeds * written, 2 * written // methods)
    diagonals = plan.diagonals_needed()
    if diagonals:
        peak = max(_block_bytes(plan, "ntk" if kernel == "influence" else kernel) for kernel, _ in diagonals)
        if any(kernel == "influence" for kernel, _ in diagonals):
            peak = max(peak, _influence_bytes(plan))
        written = len(diagonals) * 8 * n * c
        yield StagePlan("diagonals", f"self-influence on {len(diagonals)} kernels", seeds * len(diagonals), seeds * written, peak)
    count = plan.retrainings_at_most
    row = 8 * shape.num_test * c + 8 * plan.most_removed()
    yield StagePlan("retrain", f"{plan.retrainings_asked} asked, at most {count} unique", count, count * row, shape.pack * trained)


def _gram_bytes(plan: Plan, kernel: str) -> int:
    """Half of the tiles, and the diagonal ones."""
    size = plan.shape.gram_rows(kernel)
    edge = plan.gram_tiles[kernel] * (size // plan.shape.num_train)
    return FLOAT_BYTES * size * (size + edge) // 2


def _importance_bytes(plan: Plan) -> int:
    vectors = 12 * 8 * plan.shape.num_train * plan.shape.num_outputs
    if any(importance == "surrogate" for importance, _, _ in plan.solved_needed()):
        vectors += nystrom_bytes(plan.shape.num_train * plan.shape.num_outputs)
    return vectors + max(_tile_bytes(plan, kernel) for _, kernel, _ in plan.solved_needed())


def _influence_bytes(plan: Plan) -> int:
    """Three float64 matrices of the gram's size for the dual system; for the true Hessian the columns of conjugate gradients."""
    shape = plan.shape
    if plan.experiment.influence.base_kernel is None:
        return 6 * 8 * shape.num_parameters * plan.experiment.num_test_points + 2 * _dense_bytes(plan)
    rows = shape.num_train * shape.num_outputs
    # For self-influence every training sample is a test point.
    columns = shape.num_train if any(kernel == "influence" for kernel, _ in plan.diagonals_needed()) else 0
    return 3 * 8 * rows**2 + 8 * 8 * rows * columns


def _block_bytes(plan: Plan, kernel: str) -> int:
    rows, points = plan.block_rows[kernel], plan.experiment.num_test_points
    return FLOAT_BYTES * (plan.shape.block_numbers(kernel) * rows + plan.shape.kept_numbers(kernel) * points)


def _dense_bytes(plan: Plan) -> int:
    """A block of whole Jacobians, as the true Hessian is multiplied with, and the gradients of the test points."""
    width = plan.shape.feature_width("ntk")
    return FLOAT_BYTES * width * (3 * plan.dense_rows + plan.experiment.num_test_points)


def _tile_bytes(plan: Plan, kernel: str) -> int:
    shape = plan.shape
    edge = min(plan.gram_tiles[kernel], shape.num_train) * (shape.gram_rows(kernel) // shape.num_train)
    return TILES_HELD * FLOAT_BYTES * edge * edge + FLOAT_BYTES * plan.block_rows[kernel] * shape.block_numbers(kernel)


def _block_rows(kernel: str, shape: Shape, budget_bytes: int, test_points: int) -> int:
    """Training rows in one block of features: what is held of them at work and the test rows fit half the budget."""
    row_bytes, test_bytes = FLOAT_BYTES * shape.block_numbers(kernel), FLOAT_BYTES * shape.kept_numbers(kernel)
    # No more is ever stored of a sample than its factors as they are.
    stored_bytes = FLOAT_BYTES * (shape.ntk_held if kernel == "ntk" and shape.ntk_held else shape.feature_width(kernel))
    room = budget_bytes // 2 - test_points * test_bytes
    rows = min(room // row_bytes, SHARD_BYTES // stored_bytes, MAX_BLOCK_ROWS, shape.num_train)
    if room < row_bytes:
        raise PlanError(
            "the memory budget is too small for one training sample's features",
            where=f"resources.memory_budget, kernel {kernel}",
            expected=f"at least {2 * (row_bytes + test_points * test_bytes):,} bytes (a row of {row_bytes:,} bytes and "
            f"{test_points} test rows of {test_bytes:,} bytes in half of it)",
            got=f"{budget_bytes:,} bytes",
            remedy="raise resources.memory_budget, or explain fewer test points at once",
        )
    return max(1, rows)


def _gram_tile(kernel: str, shape: Shape, budget_bytes: int, block_rows: int) -> int:
    """Training rows along a tile's edge, a whole number of blocks: TILES_HELD tiles fit half the budget."""
    per_row = shape.gram_rows(kernel) // shape.num_train
    edge = int((budget_bytes / 2 / (TILES_HELD * FLOAT_BYTES)) ** 0.5) // per_row
    if edge < 1:
        raise PlanError(
            "the memory budget is too small for one tile of the gram",
            where=f"resources.memory_budget, kernel {kernel}",
            expected=f"at least {2 * TILES_HELD * FLOAT_BYTES * per_row * per_row:,} bytes",
            got=f"{budget_bytes:,} bytes",
            remedy="raise resources.memory_budget",
        )
    if edge >= shape.num_train:
        return shape.num_train
    return edge // block_rows * block_rows if edge >= block_rows else edge


def _refuse_impossible(keys: Keys, shape: Shape) -> None:
    experiment = keys.experiment
    if experiment.num_test_points > shape.num_test:
        raise PlanError(
            "more test points than there are",
            where="test_points",
            expected=f"at most {shape.num_test}",
            got=str(experiment.num_test_points),
        )
    for name, section in (("deletion", experiment.deletion), ("brittleness", experiment.brittleness)):
        largest = max((count for _, count in section.removals(shape.num_train)), default=0) if section is not None else 0
        if largest >= shape.num_train:
            raise PlanError(
                "a removal would take the whole training set",
                where=f"{name}.fractions or {name}.counts",
                expected=f"fewer than {shape.num_train} samples removed",
                got=f"{largest} of {shape.num_train}",
            )
    if experiment.loo is not None and experiment.loo.samples > shape.num_train:
        raise PlanError(
            "more samples are to be left out than there are",
            where="loo.samples",
            expected=f"at most {shape.num_train}",
            got=str(experiment.loo.samples),
        )
    output = experiment.target.output
    if isinstance(output, int) and output >= shape.num_outputs:
        raise PlanError(
            "the declared target is not an output of the model",
            where="target.output",
            expected=f"0 to {shape.num_outputs - 1}",
            got=str(output),
        )
    for name, method in zip(experiment.methods, experiment.parsed_methods, strict=True):
        beyond = [epoch for epoch in keys.method_epochs(method) if epoch > keys.epochs]
        if beyond:
            where = "tracincp.checkpoints" if method.checkpoint == "all" else f"methods: {name}"
            raise PlanError(
                "a checkpoint beyond the end of training", where=where, expected=f"epochs 0 to {keys.epochs}", got=f"epoch {beyond[0]}"
            )
        last_layer = method.kernel == "last-layer" or (method.kernel == "influence" and experiment.influence.curvature == "last-layer")
        if last_layer and not shape.last_layer_width:
            raise PlanError(
                "a last-layer method needs a model whose output is computed by a torch.nn.Linear",
                where=f"methods: {name}",
                expected="a final Linear layer",
                got="none",
                remedy="use an ntk method, or end the model in a Linear layer",
            )


def named_checkpoint(checkpoint: str | int, epochs: int) -> int:
    """Epoch of a checkpoint given by name or by number."""
    return checkpoint if isinstance(checkpoint, int) else checkpoint_epoch(checkpoint, epochs)
