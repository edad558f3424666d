"""The experiment: a frozen pydantic model of what the user declares."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any, Self

import yaml
from pydantic import AfterValidator, BaseModel, Field, ValidationError, ValidationInfo, field_validator, model_validator

from genrep_dist.config.attributions import AttributionsSection
from genrep_dist.config.damping import with_default_damping
from genrep_dist.config.digests import non_default_fields
from genrep_dist.config.ekfac import EkfacSection
from genrep_dist.config.ensembles import EnsembleSection, defined_at_checkpoints
from genrep_dist.config.features import FeaturesSection
from genrep_dist.config.field_errors import Location, describe_errors
from genrep_dist.config.metrics import METRICS, complete_settings, measured_numbers, with_metric_settings
from genrep_dist.config.relabel import RelabelSection
from genrep_dist.config.resources import ResourcesSection
from genrep_dist.config.section import Section
from genrep_dist.config.sections import (
    MAX_SEEDS,
    BrittlenessSection,
    DeletionSection,
    DescentSection,
    ExternalSection,
    InfluenceSection,
    KernelSection,
    LdsSection,
    LooSection,
    ProblemSection,
    ProjectionSection,
    RecipeSection,
    Seeds,
    StopSection,
    SurrogateSection,
    TargetSection,
    TracInSection,
    TrackingSection,
    expand_seeds,
)
from genrep_dist.config.tuning import TuneSection
from genrep_dist.core.importances import IMPORTANCES
from genrep_dist.core.importances.base import Importance
from genrep_dist.core.kernels import KERNELS
from genrep_dist.core.kernels.base import Kernel
from genrep_dist.core.kernels.user import build_kernel
from genrep_dist.core.methods import NAMED_METHODS, Method, parse_method
from genrep_dist.core.reserved import RESERVED_NAMES
from genrep_dist.core.scorers import SCORERS
from genrep_dist.core.scorers.base import Scorer
from genrep_dist.core.targets import Target
from genrep_dist.errors import MethodError
from genrep_dist.extension import build, declared_settings
from genrep_dist.redaction import redact
from genrep_dist.registry import import_object

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)


def _not_reserved(name: str) -> str:
    return _free_of(name, {*KERNELS, *IMPORTANCES, *SCORERS, *RESERVED_NAMES})


def _not_reserved_for_scores(name: str) -> str:
    # Scores of another tool may have the name of a method, such as trak: `methods` then means these.
    return _free_of(name, {*KERNELS, *IMPORTANCES, *RESERVED_NAMES} - ({*NAMED_METHODS} - {*RESERVED_NAMES}))


def _not_a_method(name: str) -> str:
    return _free_of(name, {*KERNELS, *IMPORTANCES, *SCORERS, *RESERVED_NAMES, *NAMED_METHODS})


def _free_of(name: str, words: Iterable[str]) -> str:
    reserved = sorted(words)
    if name in reserved or re.fullmatch(r"epoch\d+", name):
        raise ValueError(
            f"another name: {name!r} is reserved, as are {', '.join(other for other in reserved if other != name)} and epoch<k>"
        )
    return name


EXPERIMENT_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
KernelName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$"), AfterValidator(_not_reserved)]
ExternalName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$"), AfterValidator(_not_reserved_for_scores)]


EnsembleName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$"), AfterValidator(_not_a_method)]


TestIds = tuple[Annotated[int, Field(ge=0)], ...]


class _RaisesConfigError(ModelMetaclass):
    """A class whose constructor raises ConfigError where that of pydantic raises ValidationError."""

    def __call__(self, *arguments: Any, **fields: Any) -> Any:
        try:
            return super().__call__(*arguments, **fields)
        except ValidationError as error:
            raise describe_errors(error, Experiment) from error


class Experiment(Section, metaclass=_RaisesConfigError):
    """One experiment. ``recipe`` holds changes to the problem's recipe. All other fields are complete."""

    name: str = Field(pattern=EXPERIMENT_NAME, description="Names the results.")
    profile: str | None = Field(None, description="The profile that was chosen. Set by --profile.")
    profiles: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], dict[str, Any]] = Field(
        default_factory=dict, description="Sizes of one experiment: name -> changes to its fields. --profile chooses one."
    )
    problem: ProblemSection
    recipe: RecipeSection = RecipeSection.model_validate({})
    seeds: Seeds = Field(min_length=1, description="A number n for the seeds 0..n-1, or a list of seeds.")
    test_points: Annotated[int, Field(ge=1)] | TestIds | tuple[TestIds, ...] = Field(
        10,
        description="Number of test points, drawn uniformly from the test set for each seed; or a list of sample ids for all seeds; or, "
        "with target.group, a list of such lists.",
    )
    kernels: dict[KernelName, KernelSection] = Field(
        default_factory=dict, description="Kernels of your own by name. `methods` names them as {name}-{checkpoint}/{importance}."
    )
    external: dict[ExternalName, ExternalSection] = Field(
        default_factory=dict, description="Scores from other tools, by the name that `methods` uses for them."
    )
    ensembles: dict[EnsembleName, EnsembleSection] = Field(
        default_factory=dict, description="Means of a method's scores over several models, by the name that `methods` uses for them."
    )
    methods: tuple[str, ...] = Field(min_length=1, description="Attribution methods. `genrep methods` lists them.")
    baseline: str | None = Field(None, description="A method that all others are compared with, in addition to `random`.")
    last_layer: str | None = Field(None, description="Name of the model's last linear layer. Default: the layer that gives the output.")
    target: TargetSection = TargetSection.model_validate({})
    surrogate: SurrogateSection = SurrogateSection.model_validate({})
    descent: DescentSection = DescentSection.model_validate({})
    influence: InfluenceSection = InfluenceSection.model_validate({})
    ekfac: EkfacSection = EkfacSection.model_validate({})
    projection: ProjectionSection | None = Field(
        None, description="Random projection of the NTK's features, for features that are too large. Lossy. Default: none."
    )
    features: FeaturesSection = FeaturesSection.model_validate({})
    tracincp: TracInSection = TracInSection.model_validate({})
    attributions: AttributionsSection = AttributionsSection.model_validate({})
    blocks: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="Division of the tables: title -> methods. A method may be in several blocks."
    )
    deletion: DeletionSection = DeletionSection.model_validate({})
    lds: LdsSection | None = None
    loo: LooSection | None = None
    relabel: RelabelSection | None = None
    brittleness: BrittlenessSection | None = None
    metrics: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="Metrics of other packages: name -> settings. `class: module:Class` among them names a metric that is not registered.",
    )
    stop: StopSection | None = None
    tune: TuneSection | None = None
    resources: ResourcesSection = ResourcesSection.model_validate({})
    tracking: TrackingSection = TrackingSection.model_validate({})

    @model_validator(mode="before")
    @classmethod
    def _default_damping(cls, data: object) -> object:
        return with_default_damping(data)

    @model_validator(mode="before")
    @classmethod
    def _expand_seeds(cls, data: object) -> object:
        if isinstance(data, dict) and isinstance(data.get("stop"), dict) and isinstance(data["stop"].get("max_seeds", 200), int):
            if data.get("seeds") is not None:
                raise ValueError("stop: stop or seeds, not both (stop uses as many of the seeds 0 to max_seeds - 1 as it needs)")
            return {**data, "seeds": list(range(min(data["stop"].get("max_seeds", 200), MAX_SEEDS)))}
        return expand_seeds(data)

    @field_validator("profiles")
    @classmethod
    def _profile_chosen(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if value:
            raise ValueError(f"the choice of a profile: {', '.join(value)} (--profile, or load_experiment(..., profile=))")
        return value

    @field_validator("seeds")
    @classmethod
    def _distinct_seeds(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) != len(value):
            raise ValueError("different seeds, without duplicates")
        return value

    @field_validator("ensembles")
    @classmethod
    def _ensembles_of_methods(cls, value: dict[str, EnsembleSection], info: ValidationInfo) -> dict[str, EnsembleSection]:
        if "kernels" not in info.data or "external" not in info.data:
            return value  # they are invalid themselves, which is reported
        for name, section in value.items():
            if name in info.data["external"]:
                raise ValueError(f"another name than that of external scores, {name}")
            if section.method in value:
                raise ValueError(f"{name}: a method of one network, not {section.method}, which is an ensemble itself")
            try:
                method = parse_method(section.method, info.data["kernels"], info.data["external"])
            except MethodError as error:
                raise ValueError(f"{name}: a known method, but {error.what} ({error.remedy})") from error
            if method.is_random or method.is_external or method.needs_gram:
                raise ValueError(
                    f"in {name}.method a method whose scores can be averaged over models: no random or external scores, and no "
                    f"importances surrogate or descent; got {section.method}"
                )
            if section.over == "checkpoints" and not defined_at_checkpoints(method):
                raise ValueError(
                    f"in {name}.method, with over: checkpoints, a method at checkpoint final whose kernel is also defined at other "
                    f"checkpoints, such as ntk-final/target; got {section.method}, which can be averaged over seeds"
                )
        return value

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("different methods, without duplicates")
        if not {"kernels", "external", "ensembles"} <= info.data.keys():
            return value  # they are invalid themselves, which is reported
        wrong: list[MethodError] = []
        for name in value:
            if name in info.data.get("ensembles", {}):
                continue
            try:
                parse_method(name, info.data["kernels"], info.data["external"])
            except MethodError as error:
                wrong.append(error)
        if wrong:
            faults = "; ".join(f"{error.what} ({error.remedy})" for error in wrong)
            raise ValueError(f"known methods, but {faults}; expected: {wrong[0].expected}") from wrong[0]
        return value

    @field_validator("blocks")
    @classmethod
    def _methods_of_this_experiment(cls, value: dict[str, tuple[str, ...]], info: ValidationInfo) -> dict[str, tuple[str, ...]]:
        for title, names in value.items():
            unknown = sorted(set(names) - set(info.data.get("methods", names)))
            if unknown or not names:
                raise ValueError(f"methods of this experiment in block {title!r}, not {', '.join(unknown) or 'none'}")
        return value

    @field_validator("baseline")
    @classmethod
    def _known_baseline(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and value not in info.data.get("methods", ()):
            raise ValueError("a method of this experiment")
        return value

    @field_validator("test_points")
    @classmethod
    def _distinct_points(cls, value: int | TestIds | tuple[TestIds, ...]) -> int | TestIds | tuple[TestIds, ...]:
        groups = value if isinstance(value, tuple) and value and isinstance(value[0], tuple) else (value,)
        ids = [sample for group in groups if isinstance(group, tuple) for sample in group]
        if not isinstance(value, int) and (not value or () in groups or len(set(ids)) != len(ids)):
            raise ValueError("at least one test id, without duplicates")
        return value

    @field_validator("tune")
    @classmethod
    def _tuned_on_other_seeds(cls, value: TuneSection | None, info: ValidationInfo) -> TuneSection | None:
        shared = sorted(set(info.data.get("seeds", ())) & set(value.seeds)) if value is not None else []
        if shared:
            raise ValueError(f"seeds that are not reported; {shared[:5]} are seeds of this experiment")
        return value

    @field_validator("metrics")
    @classmethod
    def _settings_of_known_metrics(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return complete_settings(value)

    @model_validator(mode="after")
    def _groups_are_declared(self) -> Self:
        if self.test_groups is not None and self.target.group is None:
            raise ValueError("target.group: mean, as test_points is a list of groups")
        return self

    @model_validator(mode="after")
    def _metrics_of_this_experiment(self) -> Self:
        for name, section in (("stop", self.stop), ("tune", self.tune)):
            if section is not None and section.metric not in self.metric_names:
                raise ValueError(f"{name}.metric: a metric of this experiment ({', '.join(self.metric_names)}), not {section.metric!r}")
        if self.tune is not None and self.tune.settings:
            tried = with_metric_settings(self, self.tune.metric, self.tune.settings, ("tune", "settings"))
            if self.tune.metric not in tried.metric_names:
                raise ValueError(f"tune.settings: settings with which {self.tune.metric} is measured, not {', '.join(tried.metric_names)}")
        return self

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """As pydantic's, but raises ConfigError, which names all fields with what was expected and what was found."""
        return cls.validated(obj, **options)

    @classmethod
    def validated(cls, data: Any, source: Callable[[Location], str] = lambda _: "", **options: Any) -> Self:
        """The experiment of plain data. ``source`` says where a field stands, for the ConfigError of wrong ones."""
        try:
            return super().model_validate(data, **options)
        except ValidationError as error:
            raise describe_errors(error, cls, source) from error

    @property
    def parsed_methods(self) -> tuple[Method, ...]:
        return tuple(self.method(name) for name in self.methods)

    def method(self, name: str) -> Method:
        """The method of that name. Knows the user's own kernels, external scores and ensembles."""
        ensemble = self.ensembles.get(name)
        if ensemble is not None:
            return self.method(ensemble.method).averaged(name, ensemble.over, ensemble.size)
        return parse_method(name, self.kernels, self.external)

    @property
    def baselines(self) -> tuple[str, ...]:
        """The methods that all others are compared with: the declared one, and random scores."""
        return tuple(name for name in dict.fromkeys((self.baseline, "random")) if name in self.methods)

    @property
    def simple_methods(self) -> tuple[str, ...]:
        """The methods that are simple baselines: neighbours, losses, shared words."""
        return tuple(name for name in self.methods if self.method(name).is_simple)

    @property
    def external_methods(self) -> tuple[str, ...]:
        """Names of the methods whose scores another tool computed."""
        return tuple(name for name in self.methods if name in self.external)

    def kernel(self, name: str) -> Kernel:
        """The kernel of that name with this experiment's settings: a registered one, or the user's own.

        The module of the user's own must have been imported before (:func:`genrep_dist.problems.load.load_class`) or be importable.
        """
        own = self.kernels.get(name)
        return build_kernel(KERNELS.get(name) if own is None else import_object(own.class_), self, own.options if own else {})

    def importance(self, name: str) -> Importance:
        """A registered importance with this experiment's settings."""
        importance = IMPORTANCES.get(name)
        return build(importance, **declared_settings(importance, self))

    def scorer(self, name: str) -> Scorer:
        """A registered scorer with this experiment's settings."""
        scorer = SCORERS.get(name)
        return build(scorer, **declared_settings(scorer, self))

    def uses(self, section: str) -> bool:
        """Whether a kernel or importance of the methods is built from that section; of the user's own kernels it is assumed."""
        kernels = [method for method in self.parsed_methods if method.has_kernel]
        return any(m.kernel in self.kernels or section in (*KERNELS.get(m.kernel).settings, *m.importance_class.settings) for m in kernels)

    def make_target(self) -> Target:
        """What is explained."""
        return self.target.make()

    @property
    def test_groups(self) -> tuple[TestIds, ...] | None:
        """The declared groups of test ids; None if ``test_points`` has none."""
        points = self.test_points
        return points if isinstance(points, tuple) and isinstance(points[0], tuple) else None

    @property
    def test_ids(self) -> TestIds | None:
        """The declared test ids, of all groups together; None where they are drawn for each seed."""
        if isinstance(self.test_points, int):
            return None
        return tuple(sample for entry in self.test_points for sample in (entry if isinstance(entry, tuple) else (entry,)))

    @property
    def num_test_points(self) -> int:
        """Number of test points per seed, the members of groups counted one by one."""
        return self.test_points if isinstance(self.test_points, int) else len(self.test_ids or ())

    @property
    def num_explained(self) -> int:
        """Numbers that are explained per seed: one for each test point, or for each group of them."""
        if self.target.group is None:
            return self.num_test_points
        return 1 if self.test_groups is None else len(self.test_groups)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the numbers that the metrics of this experiment measure."""
        return tuple(name for names in measured_numbers(self).values() for name in names)

    def resolved(self) -> dict[str, Any]:
        """The experiment as plain data with all defaults, as in ``config.yaml`` of the results. Validates to an equal experiment."""
        data = self.model_dump(mode="json", by_alias=True)
        del data["profiles"]
        if data["stop"] is not None:
            del data["seeds"]
        if not data["metrics"]:
            del data["metrics"]
        return data

    def with_fixed_seeds(self, **changes: Any) -> Experiment:
        """The same experiment with its seeds as a list, without ``stop`` and ``tune``, and with ``changes`` to its fields."""
        data = {**self.resolved(), "seeds": list(self.seeds), "stop": None, "tune": None, **changes}
        return Experiment.model_validate(data)

    def result_fields(self) -> dict[str, Any]:
        """The fields that can change a number and differ from their defaults: all but where files lie, how work runs, how tables look."""
        fields: dict[str, Any] = non_default_fields(self, leave_out=("resources", "tracking", "blocks", "profile", "profiles"))
        # The default damping is entered like a declared one. It is no part of experiments without influence.
        declared = fields.get("influence")
        if declared == {"damping_unit": "mean-eigenvalue"} and not self.uses("influence"):
            del fields["influence"]
        for section in fields.get("external", {}).values():
            section.pop("path", None)
        if "metrics" in fields:
            fields["metrics"] = {name: [METRICS.get(name).version, section] for name, section in fields["metrics"].items()}
        return fields

    def to_yaml(self) -> str:
        """The experiment as text for people, without passwords in addresses."""
        return redact(yaml.safe_dump(self.resolved(), sort_keys=False, default_flow_style=None, width=120))
