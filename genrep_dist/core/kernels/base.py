"""What a kernel is. Three kinds: feature kernels, pairwise kernels, and kernels derived from another one's gram.

Code outside a kernel's own file asks for its kind, never for its name. This module and the kernels' files import torch inside the
methods that compute, so that names, needs and sizes are known without it.

B and N count training samples, M test points, C the model's outputs, P its parameters. A kernel between a training sample and one
declared output of a test point is a vector of C numbers, so blocks have the shape (B, C, M). For a scalar model C = 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from genrep_dist.extension import Extension

if TYPE_CHECKING:
    from torch import Tensor, nn

    from genrep_dist.core.gradients.factored import FactoredGradients
    from genrep_dist.core.losses import Loss

    Rows = Tensor | FactoredGradients
    """Features of B samples: dense, (B, L) or (B, C, P), or factored."""

Kind = Literal["feature", "pairwise", "derived"]
RowWriter = Callable[[int, "Tensor"], None]
"""Takes K (B, C, M) of the training rows from a number on."""


@dataclass(frozen=True)
class KernelSizes:
    """What the planner needs to know of a feature or pairwise kernel of one model, as plain data. Counts of numbers are for one sample.

    - ``gram_rows``: rows of the gram, C for a matrix-valued kernel and 1 for a scalar kernel that all outputs share.
    - ``held``: numbers of the features as computed; ``expanded``: further numbers while they are prepared for products.
    - ``products``: multiply-adds with another sample. ``stored_bytes``: bytes in the store.
    - ``factored``: features are stored as factors of varying length, else as ``held`` float32 numbers.
    - ``storable``: whether there are features to store.
    - ``gradient_passes``: cost of computing the features, in units of all per-sample gradients.
    - ``slow_layers``: layers whose gradients need more than one batched backward pass, with the reason.
    - ``pair_bytes``: memory that one pair of samples takes in a pairwise kernel; 0 where it is unknown.
    - ``dimension``: numbers of the feature vector of one output, where ``held`` counts others, as it does for factors; else 0.
    - ``modules``: modules with parameters of their own.
    - ``kronecker_numel``: numbers of the covariances of all layers' inputs and output gradients, of the model and not of a sample;
      ``kronecker_work_numel``: numbers at work while they are summed.
    """

    gram_rows: int = 1
    held: int = 1
    expanded: int = 0
    products: int = 1
    stored_bytes: int = 4
    factored: bool = False
    storable: bool = True
    gradient_passes: float = 1.0
    slow_layers: tuple[str, ...] = ()
    pair_bytes: int = 0
    dimension: int = 0
    modules: int = 0
    kronecker_numel: int = 0
    kronecker_work_numel: int = 0

    @property
    def row_width(self) -> int:
        """Numbers of the feature vector of one row of the gram. 0 where it is unknown, and where there are no features."""
        return self.dimension or (0 if self.factored or not self.storable else self.held // self.gram_rows)

    def width(self, num_outputs: int) -> int:
        """Dimension of the space of features: where all C outputs share features, each has its own copy of them. 0 where it is unknown."""
        return self.row_width * (num_outputs // self.gram_rows)


@dataclass(frozen=True)
class Work:
    """Cost of a computation: float ``multiply_adds``, and training rows whose ``gradient_rows`` are computed."""

    multiply_adds: float = 0.0
    gradient_rows: float = 0.0


class Kernel(Extension, ABC):
    """A kernel by its configured settings.

    ``formula``, ``source`` and ``needs`` are for people (`genrep methods`). ``settings`` names the fields of an experiment that the
    kernel is built from, which the constructor takes as keyword arguments.
    """

    name: ClassVar[str]
    kind: ClassVar[Kind]
    formula: ClassVar[str]
    source: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    settings: ClassVar[tuple[str, ...]] = ()
    is_baseline: ClassVar[bool] = False
    """Whether its methods are simple ones that others should beat."""

    @classmethod
    def supports(cls, checkpoint: str, *, needs_gram: bool) -> bool:
        """Whether the kernel exists at a checkpoint ("initial", "middle", "final", "epoch<k>") for importances that need its gram."""
        del checkpoint, needs_gram
        return True

    def key_settings(self) -> tuple[str, ...]:
        """Those of :attr:`settings` that change the kernel's numbers as it is configured: they enter its content address."""
        return self.settings

    def notes(self) -> list[str]:
        """What limits the reading of the kernel's numbers as it is configured, each a sentence or two."""
        return []


class FeatureKernel(Kernel):
    """K(x, z) = <Phi(x), Phi(z)>, with features of one model's samples.

    ``factored``: features are :class:`~genrep_dist.core.gradients.factored.FactoredGradients`, stored as factors of varying length;
    else they are tensors (B, L), stored as they are. ``takes_weights``: :meth:`features` and :meth:`block` also take weights (B, C) of the
    outputs, floating point, in place of declared ``outputs`` (B,), for a target that depends on several outputs; without it such a target's
    K is combined from those of all outputs, at C times the cost. Where outputs do not share features (``gram_rows`` of :meth:`sizes` is C),
    importances alpha (B, C) that are known are taken as weights of training samples: :meth:`block` then gets features of one output, with
    ``num_outputs`` 1, and returns sum_c alpha_c K_c (B, 1, M).
    """

    kind = "feature"
    factored: ClassVar[bool] = False
    takes_weights: ClassVar[bool] = False
    needs_preconditioner: ClassVar[bool] = False
    """Whether features are taken by :meth:`at_preconditioner`, which needs an optimizer that has one."""

    def at_preconditioner(self, preconditioner: Tensor) -> FeatureKernel:
        """The kernel in the metric of an optimizer at one checkpoint: ``preconditioner`` (P,) float64, positive."""
        del preconditioner
        return self

    @abstractmethod
    def sizes(self, model: nn.Module, inputs: Tensor) -> KernelSizes:
        """The kernel's sizes for the model in evaluation mode, measured on a few ``inputs`` (B, ...).

        Raises ProblemError for a model that the kernel is not defined for.
        """

    @abstractmethod
    def num_parameters(self, model: nn.Module, inputs: Tensor) -> int:
        """Parameters whose gradients are the features."""

    @abstractmethod
    def features(self, model: nn.Module, inputs: Tensor, outputs: Tensor | None = None) -> Rows:
        """Features of ``inputs`` (B, ...): of all outputs, or only of output ``outputs[b]`` (B,) of each.

        Inputs of several tensors are rows of :class:`~genrep_dist.core.inputs.PackedInputs`; ``model_outputs`` unpacks them.
        """

    def rows_per_pass(self, model: nn.Module, inputs: Tensor) -> int | None:
        """How many rows are best computed at once; None: as many as memory allows."""
        del model, inputs
        return None

    @abstractmethod
    def block(self, train: Rows, test: Any, outputs: Tensor, num_outputs: int) -> Tensor:
        """K (B, C, M) of training features with :func:`prepare_rows` of test features for the declared ``outputs`` (M,)."""

    @abstractmethod
    def diagonal(self, rows: Rows, outputs: Tensor, num_outputs: int) -> Tensor:
        """K (B, C), K[b, c] = K_c(x_b, x_b) with the declared ``outputs`` (B,)."""

    @abstractmethod
    def reference(self, model: nn.Module, train: Tensor, test: Tensor, outputs: Tensor, num_outputs: int) -> tuple[Tensor, Tensor]:
        """K (B, C, M) float64 by the slowest plain computation, one sample at a time, and the product of the features' norms there."""

    def tolerance(self) -> tuple[float, str] | None:
        """Declared error of K relative to the product of norms, with its reason; None: rounding alone."""
        return None


class PairwiseKernel(Kernel):
    """K(x, z) computed from pairs of inputs: symmetric, positive semi-definite, continuous; the same for each of the C outputs."""

    kind = "pairwise"

    @abstractmethod
    def pairs(self, model: nn.Module, left: Tensor, right: Tensor) -> Tensor:
        """K (A, B), floating point, of ``left`` (A, ...) and ``right`` (B, ...) inputs. Called without gradients.

        Inputs of several tensors come as the problem gives them: a dictionary, tuple or dataclass.
        """


def computed_pairs(kernel: PairwiseKernel, model: nn.Module, left: Tensor, right: Tensor) -> Tensor:
    """K (A, B) of inputs in rows, which the kernel gets in the form in which the problem gives them."""
    from genrep_dist.core.inputs import unpacked

    return kernel.pairs(model, unpacked(left), unpacked(right))


class KernelFunction(Protocol):
    """A user's own pairwise kernel: any object that is called so. It must not change the model, which is in evaluation mode."""

    def __call__(self, model: nn.Module, left: Tensor, right: Tensor) -> Tensor: ...


class DerivedInputs(Protocol):
    """What a derived kernel is computed from: one model at one epoch with its training set, and M test points. Each call computes."""

    loss: Loss
    train_inputs: Tensor
    targets: Tensor
    block_rows: int
    """Training rows whose whole Jacobians may be held at once."""
    product_rows: int
    """Pairs of a training row and a vector that a pass of a product with the Hessian may hold."""

    def model(self) -> nn.Module:
        """The model in evaluation mode."""

    def gram(self, kernel: str) -> Tensor:
        """The gram of a feature kernel over the training set, (N C, N C) float64 on the CPU: scalar kernels are expanded to C outputs."""

    def cross(self, kernel: str) -> Tensor:
        """K (N, C, M) of a feature kernel with the test points."""

    def outputs(self) -> Tensor:
        """Outputs (N, C) float64 on the training set, on the CPU."""

    def num_parameters(self, kernel: str) -> int:
        """Parameters whose gradients are the kernel's features."""

    def width(self, kernel: str) -> int:
        """D, the numbers of a feature vector (:meth:`KernelSizes.width`)."""

    def train_features(self, kernel: str, start: int, stop: int) -> Tensor:
        """Features of training rows on the CPU: (rows, C, D), or (rows, L) where all outputs share them and D = C L."""

    def test_features(self, kernel: str) -> Tensor:
        """Features (M, D) float64 of the explained outputs of the test points, on the CPU."""

    def train_gradients(self, start: int, stop: int) -> Tensor:
        """Jacobians (rows, C, P) of training rows."""

    def test_gradients(self) -> Tensor:
        """Gradients (M, P) of the explained outputs of the test points."""

    def seed(self, purpose: str) -> int:
        """A seed derived for one purpose."""


class DerivedKernel(Kernel):
    """A kernel computed as a whole, from the gram of a ``base`` kernel or from products with the model's Hessian."""

    kind = "derived"

    @classmethod
    def supports(cls, checkpoint: str, *, needs_gram: bool) -> bool:
        """At every checkpoint, for importances that need no gram: a derived kernel has none of its own."""
        del checkpoint
        return not needs_gram

    @property
    @abstractmethod
    def base(self) -> str | None:
        """The feature kernel whose gram and K(train, test) are needed at the same epoch; None: none is."""

    def at_base(self, sizes: KernelSizes) -> DerivedKernel:
        """The kernel with the ``sizes`` of its base, for the planner. By default itself."""
        del sizes
        return self

    def at_sizes(self, num_train: int, num_outputs: int, width: int) -> DerivedKernel:
        """The kernel as it is computed for these sizes; ``width``: D of the base's features, 0 where it is unknown. By default itself."""
        del num_train, num_outputs, width
        return self

    @property
    def reads_gram(self) -> bool:
        """Whether the base's gram and K(train, test) are read, and one factorisation serves :meth:`columns` and :meth:`diagonal`.

        Otherwise they are not computed: the kernel is made of the base's features.
        """
        return self.base is not None

    @property
    def has_diagonal(self) -> bool:
        """Whether K_c(x_i, x_i) of all training samples can be computed."""
        return self.base is not None

    def check_curvature(self, flat_share: float) -> None:
        """Raise MethodError if the kernel says nothing for a loss that is linear in the outputs on this share of the samples."""
        del flat_share

    def model_notes(self, model: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor) -> list[str]:
        """What takes a slower way for this model in evaluation mode, with the reason, from a few training rows.

        Raises ProblemError for a model that the kernel is not defined for.
        """
        del model, loss, inputs, targets
        return []

    @abstractmethod
    def columns(self, inputs: DerivedInputs, own_outputs: Tensor | None = None) -> tuple[Tensor, dict[str, Any]]:
        """K (N, C, M) float64 and the solver's certificate.

        With ``own_outputs`` (N,) the training samples follow as N more points, each with that output: (N, C, M + N).
        """

    @property
    def is_blockwise(self) -> bool:
        """Whether :meth:`write_rows` holds no more of K than some rows."""
        return False

    def write_rows(self, inputs: DerivedInputs, write: RowWriter) -> dict[str, Any]:
        """Pass K (N, C, M) to ``write`` in blocks of consecutive rows and return the certificate. By default :meth:`columns` as one block.

        Called only if :attr:`is_blockwise`. A call with row 0 restarts the writing: all rows follow again. The numbers are those of
        :meth:`columns`.
        """
        block, certificate = self.columns(inputs)
        write(0, block)
        return certificate

    @abstractmethod
    def diagonal(self, inputs: DerivedInputs, own_outputs: Tensor) -> Tensor:
        """K_c(x_i, x_i) (N, C) float64 with the declared ``own_outputs`` (N,)."""

    @abstractmethod
    def peak_bytes(self, num_train: int, num_outputs: int, num_parameters: int, num_test: int, dense_bytes: int, *, diagonal: bool) -> int:
        """Memory of :meth:`columns`, or of :meth:`write_rows` without the block that is handed over, if :attr:`is_blockwise`.

        ``dense_bytes``: a block of whole Jacobians and the test points' gradients.
        """

    def alternatives(self) -> str:
        """What to choose where :meth:`peak_bytes` is above the memory budget, for the error's remedy; "" if there is nothing."""
        return ""

    @abstractmethod
    def work(self, num_train: int, num_outputs: int, num_test: int) -> Work:
        """Cost of :meth:`columns`."""

    @abstractmethod
    def summary(self) -> str:
        """The settings in a few words, for the plan."""
