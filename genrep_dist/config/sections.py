"""The sections of an experiment file: each a frozen, checked model; ``genrep schema`` prints them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_bytes(text: object) -> object:
    """'512MiB', '2 GiB', '1e9' or a number -> bytes; anything else is returned for the validator to refuse."""
    if not isinstance(text, str):
        return text
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError("a number of bytes such as 512MiB, 2GiB or 1000000000")
    return int(float(match[1]) * _UNITS[match[2].upper()])


StageName = Literal["train", "gradients", "kernels", "influence", "importances", "attributions", "diagonals", "retrain"]

FIRST_TUNING_SEED = 1_000_000_000
"""Where the seeds of ``tune: {seeds: n}`` begin: far from any that is reported."""

Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class FlipSection(Section):
    """Mislabelled training data, made on purpose: the metric is how well self-influence finds them."""

    share: float = Field(gt=0, lt=1, description="Share of the training samples whose label is replaced by another class's.")
    seed: int = Field(0, ge=0, description="Which samples, and which wrong labels; the same for all seeds of the experiment.")


class ProblemSection(Section):
    """What is explained: data, model, loss and recipe."""

    name: str = Field(
        min_length=1,
        description="The name of a shipped problem (digits, mnist, cifar10, toxicity, agnews, newsgroups), or module:Class of your own.",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Arguments of the problem's class.")
    flip_labels: FlipSection | None = Field(None, description="Give some training samples wrong labels, and see which methods find them.")


class KernelSection(Section):
    """A kernel of the user's own: a class whose objects are called with (model, left inputs, right inputs) -> K (A, B)."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, populate_by_name=True)

    class_: str = Field(alias="class", min_length=3, description="module:Class in a file of your own.")
    options: dict[str, Any] = Field(default_factory=dict, description="Arguments of the class.")


class RecipeSection(Section):
    """What to change in the problem's own training recipe; fields left out keep the problem's value."""

    epochs: int | None = Field(None, ge=1)
    batch_size: int | None = Field(None, ge=1)
    learning_rate: float | None = Field(None, gt=0, allow_inf_nan=False)
    schedule: Literal["constant", "cosine"] | None = None
    momentum: float | None = Field(None, ge=0, lt=1)
    weight_decay: float | None = Field(None, ge=0, allow_inf_nan=False)
    precision: Literal["full", "tf32", "bfloat16"] | None = Field(
        None, description="Of training: tf32 (GPU) or bfloat16 round its products. What is explained and judged is computed in full."
    )


class TargetSection(Section):
    """The explained number f(x): a raw logit, the same for explainer and judge."""

    output: Literal["predicted"] | Annotated[int, Field(ge=0)] = Field(
        "predicted",
        description="Which output's logit: the class that the original model predicts, or a fixed class number.",
    )


class SurrogateSection(Section):
    """The projection of Eq. 5."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, populate_by_name=True)

    lam: float = Field(1e-2, gt=0, allow_inf_nan=False, alias="lambda", description="The regularisation parameter lambda of Eq. 4.")
    tolerance: float = Field(1e-6, gt=0, lt=1, description="Largest relative stationarity residual that counts as converged.")
    max_iterations: int = Field(50, ge=1, description="Newton iterations.")
    allow_unconverged: bool = Field(False, description="Take what the solver has after max_iterations, instead of refusing it.")


class DescentSection(Section):
    """Kernel gradient descent (Eq. 8-9): by default with the batches, the rates and the epochs of the model's own training."""

    learning_rate: float | None = Field(None, gt=0, allow_inf_nan=False, description="Instead of the recipe's; its schedule stays.")
    epochs: int | None = Field(None, ge=1, description="Instead of the recipe's.")
    batches: Literal["recipe", "full"] = Field("recipe", description="full: every step takes all samples, one step an epoch.")


class InfluenceSection(Section):
    """The influence kernel (Eq. 15)."""

    curvature: Literal["ggn", "last-layer", "hessian"] = Field(
        "ggn",
        description="ggn: exact generalized Gauss-Newton of all parameters, by the n x n system; last-layer: the last layer's alone; "
        "hessian: the true Hessian, by Hessian-vector products.",
    )
    damping: float = Field(0.1, gt=0, allow_inf_nan=False, description="delta, which is added to H's diagonal.")
    damping_unit: Literal["absolute", "mean-eigenvalue"] = Field("absolute", description="What damping counts: itself, or trace(H)/P.")
    solver: Literal["cg", "lissa"] = Field("cg", description="For the true Hessian: conjugate gradients, or LiSSA.")
    tolerance: float = Field(1e-4, gt=0, lt=1, description="For the true Hessian: largest relative residual that counts as solved.")
    max_iterations: int = Field(1000, ge=1, description="For the true Hessian: steps of conjugate gradients, or LiSSA's depth.")
    scale: float | None = Field(None, gt=0, description="LiSSA's scale; default: 1.1 times the largest eigenvalue, estimated.")
    allow_unconverged: bool = Field(False, description="For the true Hessian: take what the solver has, instead of refusing it.")

    @property
    def base_kernel(self) -> Literal["ntk", "last-layer"] | None:
        """The kernel from whose gram the dual system is built; None for the true Hessian, which has none."""
        bases: dict[str, Literal["ntk", "last-layer"]] = {"ggn": "ntk", "last-layer": "last-layer"}
        return bases.get(self.curvature)


class ProjectionSection(Section):
    """Random projection of the NTK's features: k numbers a sample instead of one for every parameter. Lossy."""

    dim: int = Field(4096, ge=1, description="k, the numbers that are kept: products are off by about 1/sqrt(k) of |g_i| |g_j|.")
    kind: Literal["rademacher", "sparse"] = Field("rademacher", description="Random signs, or a few of them for each parameter.")
    seed: int = Field(0, ge=0, description="Of the projection's random numbers, the same for all models.")


class TracInSection(Section):
    """The checkpoints of TracInCP (Eq. 14)."""

    checkpoints: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=0)], ...] = Field(
        5, description="How many checkpoints, evenly spread from the initial to the final parameters; or a list of epoch numbers."
    )


class RetrainSection(Section):
    """How models are retrained for one metric; a base for the settings of metrics."""

    retrain: Literal["same", "fresh"] = Field(
        "same",
        description="same: the original run's initialisation and order (common random numbers); fresh: new ones for each set.",
    )
    replicates: int = Field(1, ge=1, description="For fresh: how often each set is retrained; the mean counts, the spread is kept.")

    @model_validator(mode="after")
    def _replicates_are_fresh(self) -> Self:
        if self.replicates > 1 and self.retrain == "same":
            raise ValueError("retrain: fresh with several replicates (with common random numbers they would all be equal)")
        return self


class RemovalSection(RetrainSection):
    """How many samples are removed, in the order of a method's scores; a base for the settings of metrics."""

    fractions: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = Field(
        (0.0, 0.02, 0.04, 0.06, 0.08, 0.10), min_length=1, description="Shares of the training set to remove."
    )
    counts: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, min_length=1, description="Instead of fractions: numbers of samples to remove."
    )

    @field_validator("fractions", "counts")
    @classmethod
    def _ascending(cls, value: tuple[float, ...] | None, info: ValidationInfo) -> tuple[float, ...] | None:
        if value is not None and list(value) != sorted(set(value)):
            raise ValueError(f"{info.field_name} in ascending order, none twice")
        return value

    @model_validator(mode="before")
    @classmethod
    def _one_of_them(cls, data: object) -> object:
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
        """(share, number of samples) of each removal; a share is rounded to the nearest whole number of samples."""
        if self.counts is not None:
            return [(count / num_train, count) for count in self.counts]
        return [(fraction, round(fraction * num_train)) for fraction in self.fractions]


class DeletionSection(RemovalSection):
    """Case-deletion diagnostics: the AUC is the mean of DEL over all the removals."""

    signs: tuple[Literal["negative", "positive"], ...] = Field(("negative",), min_length=1)

    @field_validator("signs")
    @classmethod
    def _once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("each sign at most once")
        return value


class LdsSection(RetrainSection):
    """Linear datamodeling score: models trained on random subsets, against sums of scores."""

    subsets: int = Field(64, ge=2, description="Subsets for each seed.")
    fraction: float = Field(0.5, gt=0, lt=1, description="Share of the training set that each subset keeps.")


class LooSection(RetrainSection):
    """Leave-one-out: models trained without one sample each, against that sample's score."""

    samples: int = Field(32, ge=2, description="Training samples for each seed, drawn uniformly, each left out once.")


class BrittlenessSection(RemovalSection):
    """The smallest removal, in a method's order, that flips the predicted class."""


class StopSection(Section):
    """Run seeds in rounds, until every method's clustered interval is narrow."""

    metric: str = Field("auc_del_negative", description="A metric of this experiment.")
    half_width: float = Field(gt=0, allow_inf_nan=False, description="Half the width of the widest method's 95% clustered interval.")
    min_seeds: int = Field(10, ge=2)
    max_seeds: int = Field(200, ge=2)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_seeds > self.max_seeds:
            raise ValueError("min_seeds up to max_seeds")
        return self


class TuneSection(Section):
    """Choose one parameter on seeds that are not reported."""

    parameter: str = Field(description="A number of the experiment, by its path (influence.damping), or by its name where that is clear.")
    values: tuple[float | int | str, ...] = Field(min_length=2, description="What to try.")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1, description="A number n or a list of seeds; none may be reported.")
    metric: str = Field("auc_del_negative", description="What the chosen value is best in, on average over the methods that it changes.")

    @model_validator(mode="before")
    @classmethod
    def _count_of_seeds(cls, data: object) -> object:
        return counted_seeds(data, first=FIRST_TUNING_SEED)


class ExternalSection(Section):
    """Scores that another tool computed, for exactly the models that are judged (`genrep export problem`)."""

    path: str = Field(
        min_length=1,
        description="A file; or a folder with one file for each seed (seed-3.npy); relative to the experiment file. {seed} is replaced.",
    )
    positive_raises: bool = Field(description="true: a positive score says that the training sample raises the explained logit.")
    layout: Literal["plain", "captum", "dattri", "trak", "kronfluence", "pydvl", "quanda"] = Field(
        "plain", description="Whose files: sets the defaults of key and transposed, and which file of a tool's output folder is read."
    )
    key: str | None = Field(
        None,
        description="The array's name in a file that holds several (.npz, .pt, .safetensors, Zarr); in a Parquet of pairs, the column.",
    )
    transposed: bool | None = Field(None, description="true: (test x train); default: as the layout has it, (train x test) for plain.")
    train_ids: str | None = Field(None, description="Name of the ids of the rows in the file; default: ids as saved, else row order.")
    test_ids: str | None = Field(None, description="Name of the ids of the columns in the file; default: ids as saved, else order.")
    unverified: bool = Field(False, description="Take scores that do not say which model they are of. The report says so.")


class StageResources(Section):
    """What the workers of one stage take; what is not given is as for all."""

    num_cpus: float | None = Field(None, gt=0, allow_inf_nan=False)
    num_gpus: float | None = Field(None, ge=0, allow_inf_nan=False)
    memory: Bytes | None = None
    workers: int | None = Field(None, ge=1)
    min_workers: int | None = Field(None, ge=1)


class ResourcesSection(Section):
    """Where and how work runs; changes no number."""

    workers: int | None = Field(None, ge=1, description="Processes at once; default: as many as the cluster or the machine has slots.")
    memory_budget: Bytes = Field(2 * 2**30, description="Bytes of arrays that one process may hold, for example 512MiB.")
    features: Literal["auto", "store", "stream"] = Field(
        "auto",
        description="Keep per-sample gradients in the store, or compute them where they are used; auto: store what a gram needs, "
        "unless GPUs compute it anew in less time than a disk takes.",
    )
    retries: int = Field(3, ge=0, description="How often a failed unit of work is tried again.")
    task_seconds: float = Field(5.0, gt=0, description="About how long one task of retrainings should take.")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_cpus: float = Field(1.0, gt=0, allow_inf_nan=False, description="CPUs (or a fraction of one) that each worker takes.")
    num_gpus: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="GPUs (or a fraction of one) that each worker takes; default: one where the cluster has any and device is not cpu.",
    )
    memory: Bytes | None = Field(None, description="Bytes that the cluster sets aside for each worker; default: none are counted.")
    min_workers: int = Field(1, ge=1, description="Workers that there must be room for; a pool of actors does not shrink below it.")
    stages: dict[StageName, StageResources] = Field({}, description="Stages whose workers take something else.")


class TrackingSection(Section):
    """MLflow."""

    uri: str | None = Field(None, description="Tracking URI; default: an SQLite database in the store.")


def counted_seeds(data: object, first: int = 0) -> object:
    """``seeds: n`` -> n seeds from ``first`` on."""
    if isinstance(data, dict) and isinstance(data.get("seeds"), int) and not isinstance(data.get("seeds"), bool):
        if data["seeds"] < 1:
            raise ValueError("seeds: at least 1")
        return {**data, "seeds": list(range(first, first + data["seeds"]))}
    return data
