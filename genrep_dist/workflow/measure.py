"""The sizes of a problem and of its kernels, from one model and a few rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from genrep_dist.config import Experiment
from genrep_dist.core.gradients.factored import FactoredGradients
from genrep_dist.core.gradients.model import check_model, num_parameters
from genrep_dist.core.kernels.base import DerivedKernel, FeatureKernel, Kernel, KernelSizes, PairwiseKernel, computed_pairs
from genrep_dist.core.losses import get_loss, is_linear
from genrep_dist.errors import MethodError
from genrep_dist.extension import is_shipped_class, require_returned, returned
from genrep_dist.plan import FLOAT_BYTES, Shape, kernel_names
from genrep_dist.problems.protocol import Dataset, Problem, Recipe
from genrep_dist.store.feature_codec import pack
from genrep_dist.training.batches import padded_rows
from genrep_dist.training.flop_count import backward_bytes, forward_bytes, forward_flop
from genrep_dist.training.loop import predict
from genrep_dist.training.optimizers import has_preconditioner, identity_gap_reasons, state_copies
from genrep_dist.training.randomness import Randomness
from genrep_dist.training.torch_private import peak_tensor_bytes
from genrep_dist.training.trainer import choose_pack_kind, max_models_per_step, training_step_bytes
from genrep_dist.workflow.blocks import numbers_at_work
from genrep_dist.workflow.returned import checked_features, checked_tensor

INSPECTED_ROWS = 3
"""Training rows on which the kernels' ways to compute are tried."""
OWN_TRAINING = ("the problem's own function trains the models, by steps that only it knows",)
MEASURED_ROWS = 16
"""Training rows on which the size of stored features is measured, and the loss is tried."""


def measure(
    problem: Problem,
    train: Dataset,
    test: Dataset,
    recipe: Recipe,
    kernels: Mapping[str, Kernel],
    derived: Sequence[DerivedKernel] = (),
    *,
    on_gpu: bool = False,
    own_training: bool = False,
    memory_budget_bytes: int = 2**31,
) -> Shape:
    """The sizes of a problem and of the feature and pairwise ``kernels`` of its model, from one model and a few rows.

    Of rows whose features do not fit ``memory_budget_bytes`` fewer are measured. ``derived``: the kernels that are derived from the
    curvature of the loss. ``own_training``: the problem's own function trains. ProblemError for a kernel that is not defined for the model.
    """
    _require_preconditioner(recipe, kernels, own_training)
    model = Randomness(0).build(problem.model)
    check_model(model)
    num_outputs = predict(model, train.inputs[:2]).shape[1]
    model.eval()
    parameters = [p for p in model.parameters() if p.requires_grad]
    item_bytes, few = max(p.element_size() for p in parameters), train.inputs[torch.arange(2) % len(train.inputs)]
    loss, rows = get_loss(problem.loss), _some_rows(train.inputs)
    # A GPU's own memory says how many models it takes.
    pack_kind = "solo" if on_gpu or own_training else choose_pack_kind(problem.model, loss, recipe, train)[0]
    step_rows = min(recipe.batch_size, len(train.inputs))
    step_rows = padded_rows(step_rows) if pack_kind != "solo" else step_rows
    tried = (train.inputs[:INSPECTED_ROWS], train.targets[:INSPECTED_ROWS])
    return Shape(
        len(train.ids),
        len(test.ids),
        num_outputs,
        num_parameters(model),
        {name: kernel_sizes(kernel, model, train.inputs, memory_budget_bytes) for name, kernel in kernels.items()},
        forward_flop=forward_flop(model, train.inputs[:2]),
        on_gpu=on_gpu,
        pack_kind=pack_kind,
        step_bytes=training_step_bytes(pack_kind, model, recipe, few, step_rows) or step_rows * backward_bytes(model, few),
        pack=max_models_per_step(pack_kind, sum(p.numel() * p.element_size() for p in parameters)),
        identity_gap_reasons=OWN_TRAINING if own_training else tuple(identity_gap_reasons(recipe)),
        slow_derived=tuple(note for kernel in derived for note in kernel.model_notes(model, loss, *tried)),
        is_loss_linear=bool(derived) and is_linear(loss, predict(model, train.inputs[rows]).cpu(), train.targets[rows]),
        state_bytes=sum(tensor.nbytes for tensor in model.state_dict().values()),
        item_bytes=item_bytes,
        forward_bytes=forward_bytes(model, few),
        backward_bytes=backward_bytes(model, few),
        optimizer_copies=state_copies(recipe),
        own_training=own_training,
        fixed_start=_same_state(Randomness(1).build(problem.model), Randomness(2).build(problem.model)),
    )


def _same_state(one: nn.Module, other: nn.Module) -> bool:
    """Whether the parameters and buffers of two models are equal: they are loaded, and no seed changes them."""
    states = [{name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)} for model in (one, other)]
    return states[0].keys() == states[1].keys() and all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def prediction_shape(train: Dataset, test: Dataset, num_outputs: int, *, on_gpu: bool) -> Shape:
    """The sizes of a problem whose models are no torch modules: samples and outputs, which numpy gives in float64."""
    return Shape(
        len(train.ids),
        len(test.ids),
        num_outputs,
        0,
        on_gpu=on_gpu,
        identity_gap_reasons=OWN_TRAINING,
        item_bytes=2 * FLOAT_BYTES,
        own_training=True,
        has_module=False,
    )


def _require_preconditioner(recipe: Recipe, kernels: Mapping[str, Kernel], own_training: bool) -> None:
    """Raise MethodError for kernels in the metric of an optimizer that has none."""
    needing = [name for name, kernel in kernels.items() if isinstance(kernel, FeatureKernel) and kernel.needs_preconditioner]
    if needing and own_training:
        raise MethodError(
            f"the kernel {needing[0]} is taken in the optimizer's metric, which a training function of the problem's own does not give",
            where=f"methods: {needing[0]}-...",
            expected="a problem that is trained by its recipe",
            got="a problem with train()",
            remedy="use the kernel ntk",
        )
    if needing and not has_preconditioner(recipe):
        raise MethodError(
            f"the kernel {needing[0]} is taken in the optimizer's metric, and this optimizer has none",
            where=f"methods: {needing[0]}-...; recipe.optimizer: {recipe.optimizer}",
            expected="an optimizer with a preconditioner, such as adam, adamw or rmsprop",
            got=recipe.optimizer,
            remedy="use the kernel ntk, which is the same with D = 1, or set recipe.optimizer",
        )


def kernel_sizes(kernel: Kernel, model: nn.Module, inputs: Tensor, memory_budget_bytes: int = 2**31) -> KernelSizes:
    """Sizes of a feature or pairwise kernel; factored features are measured as they are stored, on average over a few rows."""
    if isinstance(kernel, PairwiseKernel):
        return KernelSizes(storable=False, pair_bytes=pair_bytes(kernel, model, inputs))
    assert isinstance(kernel, FeatureKernel)
    sizes = returned(KernelSizes, kernel, "sizes", kernel.sizes(model, inputs[:2]))
    if not is_shipped_class(type(kernel)):
        try_kernel(kernel, sizes, model, inputs[:2])
    if sizes.stored_bytes:
        return sizes
    fitting = memory_budget_bytes // 2 // (FLOAT_BYTES * numbers_at_work(sizes))
    rows = _some_rows(inputs, max(1, min(MEASURED_ROWS, fitting)))
    features = checked_features(kernel.features(model, inputs[rows]), len(rows), kernel, "sample rows")
    require_returned(isinstance(features, FactoredGradients), kernel, "sizes", "stored_bytes above 0 for dense features", sizes)
    assert isinstance(features, FactoredGradients)
    return replace(sizes, stored_bytes=-(-pack(features).num_bytes // len(rows)))


def _some_rows(inputs: Tensor, most: int = MEASURED_ROWS) -> Tensor:
    """Positions of at most ``most`` rows, spread evenly."""
    return torch.linspace(0, len(inputs) - 1, min(len(inputs), most)).long()


def pair_bytes(kernel: PairwiseKernel, model: nn.Module, inputs: Tensor) -> int:
    """Bytes that each pair of samples takes, from four pairs and from sixteen; 0 where they cannot be counted."""
    some = inputs[torch.arange(4) % len(inputs)]

    def count(rows: Tensor) -> int | None:
        return peak_tensor_bytes(lambda: computed_pairs(kernel, model, rows, rows))

    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            few, more = count(some[:2]), count(some)
    except Exception:  # whatever a user's kernel raises: its own stage names the kernel and the samples
        return 0
    return 0 if few is None or more is None else max(0, more - few) // 12


def try_kernel(kernel: FeatureKernel, sizes: KernelSizes, model: nn.Module, inputs: Tensor) -> None:
    """Compute a kernel of another package on a few rows, so that what does not fit its ``sizes`` is found before any work begins."""
    count, where = len(inputs), f"the first {len(inputs)} training samples"
    outputs = torch.zeros(count, dtype=torch.int64)
    num_outputs = predict(model, inputs).shape[1]
    rows = checked_features(kernel.features(model, inputs), count, kernel, where)
    points = checked_features(kernel.features(model, inputs, outputs), count, kernel, where, of_points=True)
    if isinstance(rows, Tensor):
        form = f"{sizes.held} numbers a sample and {sizes.gram_rows} rows of the gram, as sizes() says"
        fits = (rows[0].numel(), rows[0].numel() // rows.shape[-1]) == (sizes.held, sizes.gram_rows)
        require_returned(fits, kernel, "features", form, f"{tuple(rows.shape)}", where)
    prepared = points.as_operand() if isinstance(points, FactoredGradients) else points
    checked_tensor(kernel.block(rows, prepared, outputs, num_outputs), (count, num_outputs, count), kernel, "block", where)
    checked_tensor(kernel.diagonal(rows, outputs, num_outputs), (count, num_outputs), kernel, "diagonal", where)


def kernels_in_use(experiment: Experiment, kernels: Mapping[str, Kernel]) -> dict[str, Kernel]:
    """Those feature and pairwise ``kernels`` that an experiment computes, by name: of its methods, and bases of derived ones."""
    used = {name: kernels[name] for name in kernel_names(experiment)}
    names = {kernel.base if isinstance(kernel, DerivedKernel) else name for name, kernel in used.items()}
    return {name: kernels[name] for name in sorted(filter(None, names))}
