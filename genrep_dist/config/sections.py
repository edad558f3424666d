"""The sections of an experiment file, as frozen pydantic models. ``genrep schema`` prints them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from genrep_dist.config.score_layouts import SCORE_LAYOUTS
from genrep_dist.config.section import Section, require_registered
from genrep_dist.core.optimizers import OPTIMIZERS
from genrep_dist.core.policies import RetrainPolicy, fresh_policy, is_fresh
from genrep_dist.core.schedules import SCHEDULES
from genrep_dist.core.targets import TARGETS, Target
from genrep_dist.errors import ConfigError
from genrep_dist.extension import build
from genrep_dist.redaction import redact

MAX_SEEDS = 1_000_000
"""Each is an entry of a list."""

Seeds = tuple[Annotated[int, Field(ge=0)], ...]


class FlipSection(Section):
    """Wrong labels for some training samples. The metric is how well self-influence finds them."""

    share: float = Field(gt=0, lt=1, description="Share of the training samples whose label is replaced by another class.")
    seed: int = Field(0, ge=0, description="Selects the samples and their wrong labels. The same for all seeds of the experiment.")


class ProblemSection(Section):
    """What is explained: data, model, loss and recipe."""

    name: str = Field(
        min_length=1,
        description="A shipped problem (digits, mnist, mnist-benchmark, cifar10, toxicity, agnews, newsgroups, concrete), or module:Class "
        "of your own.",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Arguments of the problem's class.")
    flip_labels: FlipSection | None = Field(
        None, description="Give some training samples wrong labels and measure which methods find them."
    )


class KernelSection(Section):
    """A user's own kernel: a subclass of Kernel, or a class whose objects map (model, left inputs, right inputs) to K (A, B)."""

    class_: str = Field(alias="class", min_length=3, description="module:Class in a file of your own.")
    options: dict[str, Any] = Field(default_factory=dict, description="Arguments of the class.")


class ParamGroupSection(Section):
    """Parameters with a learning rate or a weight decay of their own."""

    params: str = Field(min_length=1, description="A pattern of parameter names, such as *.bias.")
    learning_rate: float | None = Field(None, gt=0, allow_inf_nan=False, description="Replaces the recipe's rate. Its schedule is kept.")
    weight_decay: float | None = Field(None, ge=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if self.learning_rate is None and self.weight_decay is None:
            raise ValueError("a learning_rate or a weight_decay of its own")
        return self


class RecipeSection(Section):
    """Changes to the problem's own training recipe. Fields that are left out keep the problem's value."""

    optimizer: str | None = Field(None, min_length=1, description="sgd, adam, adamw, rmsprop, or one that a package registers.")
    epochs: int | None = Field(None, ge=1)
    batch_size: int | None = Field(None, ge=1)
    drop_last: bool | None = Field(None, description="Leave out the last batch of an epoch where it is smaller than the others.")
    learning_rate: float | None = Field(None, gt=0, allow_inf_nan=False)
    schedule: str | None = Field(None, description="constant, cosine, linear, step, one_cycle, or one that a package registers.")
    warmup: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="Steps in which the rate rises linearly at the start; below 1 a share of all steps."
    )
    step_size: int | None = Field(None, ge=1, description="schedule: step multiplies the rate by gamma every so many epochs.")
    gamma: float | None = Field(None, gt=0, allow_inf_nan=False)
    momentum: float | None = Field(None, ge=0, lt=1)
    dampening: float | None = Field(None, ge=0, le=1)
    nesterov: bool | None = None
    weight_decay: float | None = Field(None, ge=0, allow_inf_nan=False)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] | None = None
    eps: float | None = Field(None, ge=0, allow_inf_nan=False)
    amsgrad: bool | None = None
    alpha: float | None = Field(None, ge=0, lt=1)
    centered: bool | None = None
    clip_norm: float | None = Field(None, gt=0, allow_inf_nan=False, description="Largest norm of a model's gradient in a step.")
    param_groups: tuple[ParamGroupSection, ...] | None = Field(
        None, description="Parameters with settings of their own. A parameter belongs to the first group whose pattern matches its name."
    )
    augment: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$",
        description="module:function that changes each row before it is trained on: (row, epoch, generator) -> row.",
    )
    precision: Literal["full", "tf32", "bfloat16"] | None = Field(
        None, description="Precision of training only: tf32 (GPU) or bfloat16 round its products. Explanations use full precision."
    )

    @field_validator("optimizer")
    @classmethod
    def _registered_optimizer(cls, value: str | None) -> str | None:
        return value if value is None else require_registered(OPTIMIZERS, value)

    @field_validator("schedule")
    @classmethod
    def _registered_schedule(cls, value: str | None) -> str | None:
        return value if value is None else require_registered(SCHEDULES, value)

    @field_validator("warmup")
    @classmethod
    def _steps_or_share(cls, value: float | None) -> float | None:
        if value is not None and value > 1 and value != int(value):
            raise ValueError("a whole number of steps, or a share of all steps below 1")
        return value


class TargetSection(Section):
    """The explained number f(x), the same for the methods and the evaluation."""

    kind: str = Field(
        "logit",
        min_length=1,
        description="What is explained; logit: one of the model's outputs as it is; margin: log(p / (1 - p)); log_probability; "
        "probability; loss: the training loss; problem: the problem's own attribute `target`.",
    )
    output: Literal["predicted", "label"] | Annotated[int, Field(ge=0)] = Field(
        "predicted",
        description="Which output: that of the class that the original model predicts, of the test point's own label, or the number "
        "of one. Default: label for margin and loss, predicted for all others. With several outputs that are not those of classes "
        "(the squared loss) a number is required.",
    )
    group: Literal["mean"] | None = Field(
        None,
        description="mean: explain the mean over groups of test points: over the lists in test_points, or else over all of a seed. "
        "Default: each test point by itself.",
    )

    @model_validator(mode="before")
    @classmethod
    def _default_output(cls, data: object) -> object:
        if not isinstance(data, dict) or "output" in data:
            return data
        kind = data.get("kind", "logit")
        if not isinstance(kind, str) or kind not in TARGETS:
            return data
        try:
            return {**data, "output": TARGETS.get(kind).default_output}
        except ConfigError as error:
            raise ValueError(f"a target that can be loaded, where loading this one failed with {error.got}") from error

    @field_validator("kind")
    @classmethod
    def _registered_target(cls, value: str) -> str:
        return require_registered(TARGETS, value)

    def make(self) -> Target:
        """The target of this kind and output."""
        return build(TARGETS.get(self.kind), self.output)

    def description(self, num_outputs: int) -> str:
        """The explained number in words."""
        each = self.make().description(num_outputs)
        return each if self.group is None else f"the mean over each group of test points of: {each}"


class SurrogateSection(Section):
    """The surrogate projection of Eq. 5."""

    lam: float = Field(1e-2, gt=0, allow_inf_nan=False, alias="lambda", description="The regularisation parameter lambda of Eq. 4.")
    system: Literal["auto", "dual", "primal"] = Field(
        "dual",
        description="What products with K are made of: dual, the gram of the training samples; primal, K alpha = Phi (Phi^T alpha) with "
        "the kernel's features Phi, and no gram; auto: what has fewer numbers. The result is the same to rounding.",
    )
    tolerance: float = Field(1e-6, gt=0, lt=1, description="Largest relative stationarity residual that counts as converged.")
    max_iterations: int = Field(50, ge=1, description="Largest number of Newton iterations.")
    allow_unconverged: bool = Field(False, description="Use an unconverged solution instead of raising an error.")


class DescentSection(Section):
    """Kernel gradient descent (Eq. 8-9). By default it uses the batches, rates and epochs of the model's own training."""

    learning_rate: float | None = Field(None, gt=0, allow_inf_nan=False, description="Replaces the recipe's rate. Its schedule is kept.")
    epochs: int | None = Field(None, ge=1, description="Replaces the recipe's epochs.")
    batches: Literal["recipe", "full"] = Field("recipe", description="full: each step uses all samples, one step per epoch.")
    system: Literal["auto", "dual", "primal"] = Field(
        "dual",
        description="What products with K are made of: dual, the gram of the training samples; primal, K alpha = Phi (Phi^T alpha) with "
        "the kernel's features Phi, and no gram; auto: what has fewer numbers. The result is the same to rounding.",
    )


class InfluenceSection(Section):
    """The influence kernel (Eq. 15)."""

    curvature: Literal["ggn", "last-layer", "hessian"] = Field(
        "ggn",
        description="ggn: the exact generalized Gauss-Newton matrix of all parameters; last-layer: that of the last layer only; hessian: "
        "the true Hessian, by Hessian-vector products.",
    )
    system: Literal["auto", "dual", "primal"] = Field(
        "auto",
        description="Not for the true Hessian. The linear system that is solved: dual, with a row for each training sample and output; "
        "primal, with a row for each parameter (or number of a projection); auto: the one with less memory. The result is the same.",
    )
    damping: float = Field(0.1, gt=0, allow_inf_nan=False, description="delta, added to the diagonal of H.")
    damping_unit: Literal["absolute", "mean-eigenvalue"] = Field(
        "absolute",
        description="Unit of damping: 1, or trace(H)/P. An experiment that declares neither damping nor unit has mean-eigenvalue, or "
        "absolute for the true Hessian, which may be indefinite.",
    )
    solver: Literal["cg", "lissa"] = Field("cg", description="True Hessian only: conjugate gradients, or LiSSA.")
    tolerance: float = Field(1e-4, gt=0, lt=1, description="True Hessian only: largest relative residual that counts as solved.")
    max_iterations: int = Field(1000, ge=1, description="True Hessian only: steps of conjugate gradients, or LiSSA's depth.")
    scale: float | None = Field(None, gt=0, description="LiSSA's scale; default: 1.1 times the estimated largest eigenvalue.")
    allow_unconverged: bool = Field(False, description="True Hessian only: use an unconverged solution instead of raising an error.")
    allow_zero_curvature: bool = Field(
        False,
        description="Not for the true Hessian: accept a loss that is linear in the outputs, such as the hinge loss. The kernel is then the "
        "NTK (or the last layer's kernel) divided by the damping.",
    )

    @property
    def damping_text(self) -> str:
        """The damping, for people."""
        return f"{self.damping:g}" + (" times the mean eigenvalue of H" if self.damping_unit == "mean-eigenvalue" else "")


class ProjectionSection(Section):
    """Random projection of the NTK's features. Lossy."""

    dim: int = Field(
        4096,
        ge=1,
        description="k, the numbers kept per sample, or, with kind: factored, those kept of each layer. Products are off by about "
        "1/sqrt(k) of |g_i| |g_j|; with factored by up to about 2/k^(1/4), and less the more layers and positions there are.",
    )
    kind: Literal["rademacher", "sparse", "factored"] = Field(
        "rademacher",
        description="rademacher: random signs. sparse: a few of them for each parameter. factored: a layer's inputs and output gradients "
        "are projected before they are multiplied, which is the fastest for large layers.",
    )
    seed: int = Field(0, ge=0, description="Seed of the projection, the same for all models.")


class TracInSection(Section):
    """The checkpoints of TracInCP (Eq. 14)."""

    checkpoints: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=0)], ...] = Field(
        5, description="Number of checkpoints, evenly spaced from the initial to the final parameters; or a list of epoch numbers."
    )


class RetrainSection(Section):
    """How models are retrained for one metric; a base for the settings of metrics."""

    retrain: RetrainPolicy = Field(
        "same",
        description="same: the original run's initialisation and order (common random numbers); fresh: new ones for each removed set. "
        "rebatch, fresh-rebatch: like these two, and the remaining rows are divided into new batches: fewer rows take fewer steps.",
    )
    replicates: int = Field(1, ge=1, description="With fresh: retrainings per removed set. Their mean is used, their spread is recorded.")

    @model_validator(mode="after")
    def _replicates_are_fresh(self) -> Self:
        if self.replicates > 1 and not is_fresh(self.retrain):
            raise ValueError(
                f"retrain: {fresh_policy(self.retrain)} with several replicates (with common random numbers they would all be equal)"
            )
        return self


class RemovalSection(RetrainSection):
    """How many samples are removed, in the order of a method's scores; a base for the settings of metrics."""

    fractions: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = Field(
        (0.0, 0.02, 0.04, 0.06, 0.08, 0.10), min_length=1, description="Shares of the training set to remove."
    )
    counts: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, min_length=1, description="Numbers of samples to remove, in place of fractions."
    )

    @field_validator("fractions", "counts")
    @classmethod
    def _ascending(cls, value: tuple[float, ...] | None, info: ValidationInfo) -> tuple[float, ...] | None:
        if value is not None and list(value) != sorted(set(value)):
            raise ValueError(f"{info.field_name} in ascending order, without duplicates")
        return value

    @model_validator(mode="before")
    @classmethod
    def _fractions_or_counts(cls, data: object) -> object:
        if isinstance(data, dict) and data.get("counts") is not None and "fractions" in data:
            raise ValueError("fractions or counts, not both")
        return data

    @model_serializer(mode="wrap")
    def _only_what_was_declared(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        if self.counts is not None:
            del data["fractions"]
        return data

    def removals(self, num_train: int) -> list[tuple[float, int]]:
        """(share, number of samples) of each removal. A share is rounded to the nearest whole number of samples."""
        if self.counts is not None:
            return [(count / num_train, count) for count in self.counts]
        return [(fraction, round(fraction * num_train)) for fraction in self.fractions]


class DeletionSection(RemovalSection):
    """Case-deletion diagnostics. The AUC is the mean of DEL over all removals."""

    signs: tuple[Literal["negative", "positive"], ...] = Field(("negative",), min_length=1)

    @field_validator("signs")
    @classmethod
    def _distinct_signs(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("each sign at most once")
        return value


class SubsetSection(RetrainSection):
    """How samples are left out, in whole or in part; a base for the settings of metrics."""

    weight: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="Weight in the loss of the samples that are left out, relative to 1 of the others."
    )

    @field_validator("weight")
    @classmethod
    def _changes_something(cls, value: float) -> float:
        if value == 1:
            raise ValueError("another weight than 1, with which nothing is left out")
        return value


class LdsSection(SubsetSection):
    """Linear datamodeling score: outputs of models trained on random subsets, against sums of scores."""

    subsets: int = Field(64, ge=2, description="Subsets per seed.")
    fraction: float = Field(0.5, gt=0, lt=1, description="Share of the training set in each subset.")


class LooSection(SubsetSection):
    """Leave-one-out: models trained without one sample each, against that sample's score."""

    samples: int = Field(32, ge=2, description="Training samples per seed, drawn uniformly. Each is left out once.")


class BrittlenessSection(RemovalSection):
    """The smallest removal, in a method's order, that flips the predicted class."""


class StopSection(Section):
    """Run seeds in rounds until the clustered interval of every method is narrow enough."""

    metric: str = Field("auc_del_negative", description="A metric of this experiment.")
    half_width: float = Field(gt=0, allow_inf_nan=False, description="Half-width of the widest 95% clustered interval among the methods.")
    min_seeds: int = Field(10, ge=2)
    max_seeds: int = Field(200, ge=2, le=MAX_SEEDS)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_seeds > self.max_seeds:
            raise ValueError("min_seeds of at most max_seeds")
        return self


class ExternalSection(Section):
    """Scores that another tool computed for exactly the models of this experiment (`genrep export problem`)."""

    path: str = Field(
        min_length=1,
        description="A file, or a folder with one file per seed (seed-3.npy), relative to the experiment file. {seed} is replaced.",
    )
    positive_raises: bool = Field(description="true: a positive score means that the training sample raises the number that was scored.")
    target: TargetSection = Field(
        TargetSection.model_validate({}),
        description="What was scored: a target as that of the experiment, by default the logit of the predicted class. Another target than "
        "the experiment's is judged all the same, and the plan and the report say so.",
    )
    layout: str = Field(
        "plain",
        description="The tool that wrote the files: plain, captum, dattri, trak, kronfluence, pydvl, quanda, or a registered one. Sets the "
        "defaults of key and transposed, and the file that is read from the tool's output folder.",
    )
    key: str | None = Field(
        None,
        description="Name of the array in a file with several arrays (.npz, .pt, .safetensors, Zarr), or of a Parquet column of scores.",
    )
    transposed: bool | None = Field(None, description="true: (test x train). Default: the layout's direction, (train x test) for plain.")
    train_ids: str | None = Field(None, description="Name of the training ids in the file. Default: train_ids, or else the data's order.")
    test_ids: str | None = Field(None, description="Name of the test ids in the file. Default: test_ids, or else the data's order.")
    unverified: bool = Field(False, description="Accept scores that do not name the model they belong to. The report says so.")

    @field_validator("layout")
    @classmethod
    def _registered_layout(cls, value: str) -> str:
        require_registered(SCORE_LAYOUTS, value)
        try:
            SCORE_LAYOUTS.get(value)
        except ConfigError as error:
            raise ValueError(f"{error.expected}, where loading this one failed with {error.got}") from error
        return value


class TrackingSection(Section):
    """MLflow."""

    uri: str | None = Field(None, repr=False, description="Tracking URI. Default: an SQLite database in the store.")
    progress: bool = Field(False, description="Log the counts of each stage over time, as `system/progress.*` of the experiment's run.")
    system_metrics: bool = Field(
        False, description="Log CPU and memory of the driver's machine over time, as `system/*` of the experiment's run."
    )

    def redacted(self) -> TrackingSection:
        """Without the user and password of the address."""
        return self.model_copy(update={"uri": self.uri and redact(self.uri)})


def expand_seeds(data: object, first: int = 0) -> object:
    """``seeds: n`` -> the list of n seeds from ``first`` on. Other data are returned unchanged."""
    if isinstance(data, dict) and isinstance(data.get("seeds"), int) and not isinstance(data.get("seeds"), bool):
        if not 1 <= data["seeds"] <= MAX_SEEDS:
            raise ValueError(f"seeds: from 1 to {MAX_SEEDS:,}")
        return {**data, "seeds": list(range(first, first + data["seeds"]))}
    return data
