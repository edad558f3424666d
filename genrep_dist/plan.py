"""What will be done, as data: sizes, what the methods need, blocks, stages and their bytes. A plan can be printed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from genrep_dist.config import Experiment
from genrep_dist.config.keys import Keys
from genrep_dist.config.metrics import needs_self_influence
from genrep_dist.core.importances.base import needs_gram
from genrep_dist.core.kernels.base import DerivedKernel, FeatureKernel, KernelSizes
from genrep_dist.core.methods import Method
from genrep_dist.units import StageName

FLOAT_BYTES = 4
MAX_BLOCK_ROWS = 512
MAX_PRODUCT_ROWS = 4096
"""Pairs of a row and a vector in a pass of a product with a true Hessian, of networks with many parameters and outputs."""
MAX_PREDICTION_ROWS = 1024
"""Rows that pass through a model at once where memory allows. Last bits of outputs depend on it."""
KernelAt = tuple[str, int]
"""A kernel's name and the epoch of its parameters."""
TermAt = tuple[str, int, str, int]
"""A kernel's name and epoch, and the importance with the epoch of the model that it is taken of."""


@dataclass(frozen=True)
class Shape:
    """The sizes that a plan needs.

    ``kernels``: sizes of each feature and pairwise kernel in use, by name. ``forward_flop``: floating-point operations of one sample's
    forward pass, 0 where they are unknown. ``on_gpu``: whether workers compute on GPUs. ``pack_kind`` is how a CPU trains models
    ("stacked", "mapped" or "solo"), ``step_bytes`` what a step of one takes beside its parameters, and ``pack`` how many models share a
    step: at most, or always where they are mapped. ``optimizer_copies``: tensors of a parameter's size that the optimizer keeps for it.
    ``identity_gap_reasons``: why the optimizer breaks the tracking identities of the paper; empty if it does not. ``slow_derived``: what
    takes a slower way in derived kernels, with the reason. ``is_loss_linear``: the loss's second derivative in the outputs is zero
    wherever it was tried. ``own_training``: the problem's own function trains; ``fixed_start``: models of all seeds start from the same
    parameters; ``has_module``: the models are torch modules, and not only predictions.

    Bytes: ``state_bytes`` of a checkpoint, with frozen parameters and buffers; ``item_bytes`` of one number of the parameters;
    ``forward_bytes`` of one row's forward pass without gradients, ``backward_bytes`` of one with gradients; 0 where they are unknown.
    """

    num_train: int
    num_test: int
    num_outputs: int
    num_parameters: int
    kernels: dict[str, KernelSizes] = field(default_factory=dict)
    forward_flop: int = 0
    on_gpu: bool = False
    pack_kind: str = "solo"
    step_bytes: int = 0
    pack: int = 1
    identity_gap_reasons: tuple[str, ...] = ()
    slow_derived: tuple[str, ...] = ()
    is_loss_linear: bool = False
    state_bytes: int = 0
    item_bytes: int = FLOAT_BYTES
    forward_bytes: int = 0
    backward_bytes: int = 0
    optimizer_copies: int = 0
    own_training: bool = False
    has_module: bool = True
    fixed_start: bool = False

    @property
    def parameter_bytes(self) -> int:
        """Bytes of the trained parameters."""
        return self.item_bytes * self.num_parameters

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of all that a checkpoint holds."""
        return max(self.state_bytes, self.parameter_bytes)

    @property
    def jacobian_numbers(self) -> int:
        """Numbers of one sample's whole Jacobian, C x P."""
        return self.num_outputs * self.num_parameters

    @property
    def gradient_flop(self) -> int:
        """Floating-point operations of one sample's gradients: a forward pass, and for each output a backward pass of twice its cost."""
        return self.forward_flop * (1 + 2 * self.num_outputs)

    def gram_rows(self, kernel: str) -> int:
        """Rows of the train-by-train gram: N C for a matrix-valued kernel; N where all outputs share one scalar kernel."""
        return self.num_train * self.kernels[kernel].gram_rows

    def width(self, kernel: str | None) -> int:
        """Numbers of a feature vector of a kernel (:meth:`KernelSizes.width`); 0 where they are unknown."""
        return self.kernels[kernel].width(self.num_outputs) if kernel in self.kernels else 0

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Shape:
        """The shape of its plain data, as ``dataclasses.asdict`` gives it."""
        kernels = {name: KernelSizes(**{**sizes, "slow_layers": tuple(sizes["slow_layers"])}) for name, sizes in record["kernels"].items()}
        lists = {name: tuple(record.get(name, ())) for name in ("identity_gap_reasons", "slow_derived")}
        return cls(**{**record, **lists, "kernels": kernels})


@dataclass(frozen=True)
class Needs:
    """What the methods of an experiment need of each seed, every list sorted and without repeats.

    ``cross``: K(train, test) of feature and pairwise kernels; ``grams``: train-by-train grams; ``derived``: kernels that are derived
    from another's gram or from the Hessian; ``solved``: (importance, kernel, epoch) solved for on a gram; ``diagonals``: K(x_i, x_i);
    ``terms``: products of an importance and a kernel that are computed without K(train, test) (:func:`direct_terms`); ``primal``: those of
    ``solved`` whose products with K are made of the kernel's features, so that they need no gram. ``streamed``: feature and pairwise
    kernels whose K(train, test) is multiplied block by block and not stored, because only the strongest scores are kept.
    """

    cross: tuple[KernelAt, ...]
    grams: tuple[KernelAt, ...]
    derived: tuple[KernelAt, ...]
    solved: tuple[tuple[str, str, int], ...]
    diagonals: tuple[KernelAt, ...]
    terms: tuple[TermAt, ...] = ()
    primal: tuple[tuple[str, str, int], ...] = ()
    streamed: tuple[KernelAt, ...] = ()

    @property
    def features(self) -> tuple[KernelAt, ...]:
        """Feature and pairwise kernels of which something is computed with the test points, sorted."""
        return tuple(sorted({*self.cross, *self.streamed, *((kernel, epoch) for kernel, epoch, _, _ in self.terms)}))

    @classmethod
    def from_keys(cls, keys: Keys, shape: Shape) -> Needs:
        experiment = keys.experiment
        found = {name: derived_kernel(keys, name, shape) for name in kernel_names(experiment)}
        derived_kernels = {name: kernel for name, kernel in found.items() if kernel is not None}
        # Of subnetworks nothing is stored.
        methods = [(m, epoch) for m in experiment.parsed_methods if not m.averages_masks for epoch in keys.method_epochs(m)]
        pairs = {(method.kernel, epoch) for method, epoch in methods}
        streamed = {method for method in experiment.parsed_methods if is_streamed(keys, method)}
        terms = {m: [] if m in streamed or m.averages_masks else direct_terms(keys, shape, m) for m in experiment.parsed_methods}
        read = {(method.kernel, epoch) for method, epoch in methods if not terms[method] and method not in streamed}
        derived = {pair for pair in pairs if pair[0] in derived_kernels}
        bases = {(base, epoch) for name, epoch in derived if (base := gram_base(derived_kernels[name])) is not None}
        solved = {(method.importance, method.kernel, epoch) for method, epoch in methods if method.needs_gram}
        primal = {one for one in solved if not reads_gram(keys, shape, *one[:2])}
        # Diagonals serve self-influence alone.
        wanted = {(m.kernel, e) for m, e in methods if has_self_influence(keys, m)} if needs_self_influence(experiment) else set()
        return cls(
            cross=tuple(sorted((read - derived) | bases)),
            grams=tuple(sorted({(kernel, epoch) for _, kernel, epoch in solved - primal} | bases)),
            derived=tuple(sorted(derived)),
            solved=tuple(sorted(solved)),
            diagonals=tuple(sorted(wanted)),
            terms=tuple(sorted({term for found_terms in terms.values() for term in found_terms})),
            primal=tuple(sorted(primal)),
            streamed=tuple(sorted({(method.kernel, epoch) for method, epoch in methods if method in streamed})),
        )


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
    """All that an experiment will do.

    ``block_rows``: training rows of one block of each feature or pairwise kernel; ``gram_tiles``: training rows along a gram tile's edge;
    ``stored_features``: kernels whose per-sample features go to the store; ``warnings``: what limits the reading of the results.
    ``retrainings_requested`` counts every model that the metrics request, originals and repetitions included, ``retrainings_at_most``
    the retrainings when no two removal sets coincide, and ``most_removed`` the samples in the largest removal set.
    """

    experiment: Experiment
    keys: Keys
    shape: Shape
    needs: Needs
    block_rows: dict[str, int] = field(default_factory=dict)
    gram_tiles: dict[str, int] = field(default_factory=dict)
    stored_features: tuple[KernelAt, ...] = ()
    retrainings_requested: int = 0
    retrainings_at_most: int = 0
    most_removed: int = 0
    stages: tuple[StagePlan, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def bytes_written(self) -> int:
        return sum(stage.bytes_written for stage in self.stages)

    @property
    def budget_bytes(self) -> int:
        return self.experiment.resources.memory_budget

    @property
    def top(self) -> int | None:
        """Training samples of each sign that are kept of a test point's scores; None: the scores of all are kept."""
        declared = self.experiment.attributions.top
        return None if declared is None else min(declared, self.shape.num_train)

    @property
    def dense_rows(self) -> int:
        """Training rows whose whole Jacobians are held at once, for a kernel of the true Hessian: three such blocks fit half the budget, or
        a quarter of it where they are cut to it, which leaves room for the rest of what the kernel takes.
        """
        return max(1, self._held_jacobians // 2 if self._cuts_jacobians else self._product_rows(MAX_BLOCK_ROWS))

    @property
    def product_rows(self) -> int:
        """Pairs of a training row and a vector in a pass of a product with the true Hessian: as many as their activations, which are
        float64 and differentiated twice, fit a quarter of the budget.
        """
        # Other plans keep the pass that they have always had: last bits depend on it.
        return self._product_rows(MAX_PRODUCT_ROWS if self._cuts_jacobians else MAX_BLOCK_ROWS)

    @property
    def _held_jacobians(self) -> int:
        return self.budget_bytes // 2 // (3 * self.shape.item_bytes * self.shape.jacobian_numbers)

    @property
    def _cuts_jacobians(self) -> bool:
        """Whether fewer rows of whole Jacobians fit than a block would have."""
        return self._held_jacobians < self._product_rows(MAX_BLOCK_ROWS)

    def _product_rows(self, most: int) -> int:
        return min(_pass_rows(self.budget_bytes // 4, self.curvature_row_bytes, most), self.shape.num_train)

    @property
    def curvature_row_bytes(self) -> int:
        """Bytes of the activations of one row in a product with the true Hessian: float64, forward over reverse."""
        return 4 * 8 // self.shape.item_bytes * self.shape.backward_bytes

    @property
    def prediction_rows(self) -> int:
        """Rows of one forward pass without gradients, a power of two: they fit half the budget, or it is one."""
        return _pass_rows(self.budget_bytes // 2, self.shape.forward_bytes, MAX_PREDICTION_ROWS)

    @property
    def gradient_rows(self) -> int:
        """Rows of one pass for per-sample gradients, a power of two: they fit a quarter of the budget, or it is one."""
        return _pass_rows(self.budget_bytes // 4, self.gradient_row_bytes, MAX_BLOCK_ROWS)

    @property
    def gradient_row_bytes(self) -> int:
        """Bytes of one row in a pass for per-sample gradients: activations, and twice the largest factors, by output and put together."""
        held = max((sizes.held for sizes in self.shape.kernels.values() if sizes.factored), default=0)
        return self.shape.backward_bytes + 2 * self.shape.item_bytes * held

    @property
    def prediction_bytes(self) -> int:
        """Memory of a forward pass without gradients."""
        return self.shape.forward_bytes * min(self.prediction_rows, max(self.shape.num_train, self.shape.num_test))

    def blocks(self, kernel: str) -> list[tuple[int, int]]:
        """(start, stop) of the blocks of training rows of a feature or pairwise kernel."""
        rows, total = self.block_rows[kernel], self.shape.num_train
        return [(start, min(start + rows, total)) for start in range(0, total, rows)]

    def tiles(self, kernel: str) -> list[tuple[int, int]]:
        """(row, column) of the stored tiles of a gram: the upper half and the diagonal."""
        count = -(-self.shape.num_train // self.gram_tiles[kernel])
        return [(row, column) for row in range(count) for column in range(row, count)]

    def with_changes(self, **changes: Any) -> Plan:
        return replace(self, **changes)


def _pass_rows(room_bytes: int, row_bytes: int, most: int) -> int:
    """Rows of ``row_bytes`` each that fit ``room_bytes``, a power of two from 1 to ``most`` (itself one)."""
    fitting = most if row_bytes <= 0 else min(most, room_bytes // row_bytes)
    return 1 << max(0, fitting.bit_length() - 1)


def kernel_names(experiment: Experiment) -> list[str]:
    """Names of the kernels that the methods use, those of scorers included, sorted; base kernels of derived ones are not among them."""
    methods = experiment.parsed_methods
    scorers = [scorer for method in methods if (scorer := method.scorer_class) is not None]
    return sorted({*(m.kernel for m in methods if m.has_kernel), *(scorer.base for scorer in scorers if scorer.base is not None)})


def derived_kernel(keys: Keys, name: str, shape: Shape | None = None) -> DerivedKernel | None:
    """The kernel of that name if it is a derived one; a user's own functions are not, and need not be importable.

    With a ``shape`` as it is computed for these sizes.
    """
    kernel = None if name in keys.own_kernels else keys.experiment.kernel(name)
    if not isinstance(kernel, DerivedKernel):
        return None
    if shape is None:
        return kernel
    if kernel.base in shape.kernels:
        kernel = kernel.at_base(shape.kernels[kernel.base])
    return kernel.at_sizes(shape.num_train, shape.num_outputs, shape.width(kernel.base))


def direct_terms(keys: Keys, shape: Shape, method: Method) -> list[TermAt]:
    """The products that a method's scores are the sum of, where they are computed without K(train, test); else none.

    The importances are then weights of the outputs, so that a training sample takes one vector-Jacobian product instead of C. So it is
    where they are known before the kernel, and outputs do not share features. It does not depend on the other methods of the experiment.
    """
    if not method.has_kernel or method.needs_gram or method.kernel in keys.own_kernels:
        return []
    kernel, sizes = keys.experiment.kernel(method.kernel), shape.kernels.get(method.kernel)
    if not isinstance(kernel, FeatureKernel) or not kernel.takes_weights or sizes is None or sizes.gram_rows == 1:
        return []
    return [(method.kernel, term.kernel_epoch, method.importance, term.importance_epoch) for term in keys.terms(method)]


def is_streamed(keys: Keys, method: Method) -> bool:
    """Whether a method's strongest scores are taken from blocks of training rows, and K(train, test) is not stored.

    A derived kernel is computed as a whole; scorers and random scores have none; a subnetwork's outputs are those of all samples.
    """
    if keys.experiment.attributions.top is None or not method.has_kernel or method.averages_masks:
        return False
    return derived_kernel(keys, method.kernel) is None


def reads_gram(keys: Keys, shape: Shape, importance: str, kernel: str) -> bool:
    """Whether an importance that is solved for on a kernel reads its gram; else it multiplies with the kernel's features."""
    system = getattr(keys.experiment.importance(importance), "system", "dual")
    if system == "dual" or kernel not in shape.kernels:
        return True
    has_features = kernel not in keys.own_kernels and isinstance(keys.experiment.kernel(kernel), FeatureKernel)
    return needs_gram(system, shape.gram_rows(kernel), shape.kernels[kernel].row_width if has_features else 0)


def gram_base(kernel: DerivedKernel) -> str | None:
    """The base of a derived kernel whose gram and K(train, test) it needs; None where it needs none."""
    return kernel.base if kernel.reads_gram else None


def has_self_influence(keys: Keys, method: Method) -> bool:
    """Whether phi(x_i -> x_i) of the method can be computed for all training samples."""
    if method.networks > 1:
        return False
    scorer = method.scorer_class
    if scorer is not None or not method.has_kernel:
        return method.is_random if scorer is None else scorer.has_self_scores
    derived = derived_kernel(keys, method.kernel)
    return derived is None or derived.has_diagonal
