"""What the user asked for: one experiment, read from YAML, checked and frozen."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import ErrorDetails

from genrep_dist.config.metrics import METRICS, complete_settings
from genrep_dist.config.sections import (
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
    ResourcesSection,
    Section,
    StopSection,
    SurrogateSection,
    TargetSection,
    TracInSection,
    TrackingSection,
    TuneSection,
    counted_seeds,
)
from genrep_dist.core.methods import KERNELS, NAMED_METHODS, Method, parse_method
from genrep_dist.errors import ConfigError, MethodError

_UNION_BRANCH = re.compile(r"constrained-\w+|tuple\[.*\]|literal\[.*\]")
"""How pydantic marks, in the place of a fault, which of several types it was held against."""


class Experiment(Section):
    """One experiment. ``recipe`` holds changes to the problem's recipe; all other fields are complete."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Names the results.")
    profile: str | None = Field(None, description="Which of `profiles` was chosen; filled in by it.")
    profiles: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], dict[str, Any]] = Field(
        default_factory=dict, description="Sizes of one experiment: name -> changes to its fields. One is chosen with --profile."
    )
    problem: ProblemSection
    recipe: RecipeSection = RecipeSection.model_validate({})
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1, description="A number n for the seeds 0..n-1, or a list of seeds.")
    test_points: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=0)], ...] = Field(
        10, description="How many test points, drawn uniformly from the test set by each seed; or a list of sample ids, for all seeds."
    )
    kernels: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], KernelSection] = Field(
        default_factory=dict,
        description="Kernels of your own, by the name under which `methods` speaks of them: {name}-{checkpoint}/{importance}.",
    )
    external: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")], ExternalSection] = Field(
        default_factory=dict, description="Scores from elsewhere, by the name under which `methods` speaks of them."
    )
    methods: tuple[str, ...] = Field(min_length=1, description="Attribution methods; `genrep methods` lists them.")
    baseline: str | None = Field(None, description="A method that all others are compared with, besides `random`.")
    last_layer: str | None = Field(None, description="Name of the model's last linear layer; default: found by its output.")
    target: TargetSection = TargetSection.model_validate({})
    surrogate: SurrogateSection = SurrogateSection.model_validate({})
    descent: DescentSection = DescentSection.model_validate({})
    influence: InfluenceSection = InfluenceSection.model_validate({})
    projection: ProjectionSection | None = Field(
        None, description="Random projection of the NTK's features, where they are too large otherwise. Lossy; default: none."
    )
    tracincp: TracInSection = TracInSection.model_validate({})
    blocks: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="How tables are divided: title -> methods, of which one may stand in several blocks."
    )
    deletion: DeletionSection = DeletionSection.model_validate({})
    lds: LdsSection | None = None
    loo: LooSection | None = None
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
    def _count_of_seeds(cls, data: object) -> object:
        if isinstance(data, dict) and isinstance(data.get("stop"), dict) and isinstance(data["stop"].get("max_seeds", 200), int):
            if "seeds" in data:
                raise ValueError("stop: or seeds:, not both (stop takes the seeds 0 to max_seeds - 1, as many as it needs)")
            return {**data, "seeds": list(range(data["stop"].get("max_seeds", 200)))}
        return counted_seeds(data)

    @field_validator("profiles")
    @classmethod
    def _one_was_chosen(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if value:
            raise ValueError(f"one of the profiles chosen: {', '.join(value)} (--profile, or load_experiment(..., profile=))")
        return value

    @field_validator("seeds")
    @classmethod
    def _distinct_seeds(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) != len(value):
            raise ValueError("no seed twice")
        return value

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("no method twice")
        for name in value:
            try:
                parse_method(name, info.data.get("kernels", {}), info.data.get("external", {}))
            except MethodError as error:
                raise ValueError(f"{error.what} ({error.expected})") from error
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
    def _baseline_is_there(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and value not in info.data.get("methods", ()):
            raise ValueError("a method of this experiment")
        return value

    @field_validator("test_points")
    @classmethod
    def _distinct_points(cls, value: int | tuple[int, ...]) -> int | tuple[int, ...]:
        if isinstance(value, tuple) and (not value or len(set(value)) != len(value)):
            raise ValueError("at least one test id, none twice")
        return value

    @field_validator("external")
    @classmethod
    def _no_name_of_ours(cls, value: dict[str, ExternalSection]) -> dict[str, ExternalSection]:
        for name in value:
            if name in NAMED_METHODS:
                raise ValueError(f"a name that is not taken ({', '.join(NAMED_METHODS)} are)")
        return value

    @field_validator("metrics")
    @classmethod
    def _settings_of_known_metrics(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return complete_settings(value)

    @field_validator("tune")
    @classmethod
    def _tuned_on_other_seeds(cls, value: TuneSection | None, info: ValidationInfo) -> TuneSection | None:
        shared = sorted(set(info.data.get("seeds", ())) & set(value.seeds)) if value is not None else []
        if shared:
            raise ValueError(f"seeds that are not reported; {shared[:5]} are seeds of this experiment")
        return value

    @model_validator(mode="after")
    def _metrics_of_this_experiment(self) -> Self:
        for name, section in (("stop", self.stop), ("tune", self.tune)):
            if section is not None and section.metric not in self.metric_names:
                raise ValueError(f"{name}.metric: a metric of this experiment ({', '.join(self.metric_names)}), not {section.metric!r}")
        return self

    @field_validator("kernels")
    @classmethod
    def _not_a_shipped_kernel(cls, value: dict[str, KernelSection]) -> dict[str, KernelSection]:
        for name in value:
            if name in KERNELS or name == "none":
                raise ValueError(f"a name that is not taken ({', '.join(KERNELS)} are)")
        return value

    @property
    def parsed_methods(self) -> tuple[Method, ...]:
        return tuple(self.method(name) for name in self.methods)

    def method(self, name: str) -> Method:
        """The method of that name, the user's own kernels included."""
        return parse_method(name, self.kernels, self.external)

    @property
    def num_test_points(self) -> int:
        """Test points of each seed."""
        return self.test_points if isinstance(self.test_points, int) else len(self.test_points)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the numbers that the metrics of this experiment measure."""
        return tuple(name for metric in METRICS.values() for name in metric.measured(self))

    @property
    def judged(self) -> tuple[str, ...]:
        """Names of the methods whose scores come from elsewhere."""
        return tuple(name for name in self.methods if name in self.external)

    def resolved(self) -> dict[str, Any]:
        """Plain data, every default filled in, which gives this experiment again; what ``config.yaml`` of the results holds."""
        data = self.model_dump(mode="json", by_alias=True)
        del data["profiles"]
        if data["stop"] is not None:
            del data["seeds"]
        if not data["metrics"]:
            del data["metrics"]
        return data

    def plain(self, **changes: Any) -> Experiment:
        """The same experiment with ``changes`` to its fields, and without what is found out while it runs: tuning and stopping."""
        data = {**self.resolved(), "seeds": list(self.seeds), "stop": None, "tune": None, **changes}
        return Experiment.model_validate(data)

    def question(self) -> dict[str, Any]:
        """The part that can change a number: all but where files lie, where and how work runs and how tables look."""
        question = {key: value for key, value in self.resolved().items() if key not in ("resources", "tracking", "blocks", "profile")}
        question["external"] = {name: {**section, "path": None} for name, section in question["external"].items()}
        if "metrics" in question:
            question["metrics"] = {name: [METRICS[name].version, section] for name, section in question["metrics"].items()}
        return question

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.resolved(), sort_keys=False, default_flow_style=None, width=120)


def json_digest(value: Any) -> str:
    """sha256 of the canonical JSON of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


def experiment_folders() -> list[Path]:
    """Where shipped experiments lie: inside an installed package, or in a checkout."""
    here = Path(__file__).parent.parent
    return [folder for folder in (here / "experiments", here.parent / "jobs" / "experiments") if folder.is_dir()]


def shipped_experiments() -> list[str]:
    """Names of the experiments that ship; those in a folder have its name before theirs, as in paper/mnist."""
    return sorted(
        {path.relative_to(folder).with_suffix("").as_posix() for folder in experiment_folders() for path in folder.rglob("*.yaml")}
    )


def profiles_of(source: str | Path) -> tuple[str, ...]:
    """Names of the profiles of an experiment, in the file's order; none for one that has a single size."""
    found = _read(_find(source))[0].get("profiles") or {}
    return tuple(found) if isinstance(found, dict) else ()


def load_experiment(source: str | Path, overrides: Sequence[str] = (), profile: str | None = None) -> Experiment:
    """Read an experiment from a YAML file or by the name of one that ships.

    ``profile`` names one of the file's ``profiles``: its fields replace or, where they have fields of their own, complete the file's,
    and ``name`` becomes ``name-profile``. An experiment that has profiles needs one to be chosen.
    ``overrides`` are ``a.b=value`` with YAML values, applied in order and last. Raises ConfigError that names the file, the line, the
    field, what is expected and what was found, for every fault at once.
    """
    path = _find(source)
    data, lines = _read(path)
    if profile is not None:
        _choose(data, profile, path, lines)
    for override in overrides:
        _apply(data, override, lines)
    try:
        return Experiment.model_validate(data)
    except ValidationError as error:
        raise _explain(error, path, lines) from error


def _read(path: Path) -> tuple[dict[str, Any], dict[tuple[str, ...], int]]:
    """What the file says, and the line of each field."""
    try:
        text = path.read_text(encoding="utf-8")
        data = yaml.safe_load(text)
        lines = _line_numbers(yaml.compose(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise ConfigError("the experiment is not YAML", where=str(path), got=str(error).replace("\n", " ")) from error
    except UnicodeDecodeError as error:
        raise ConfigError("the experiment is not UTF-8 text", where=str(path), got=str(error)) from error
    if not isinstance(data, dict):
        raise ConfigError("the experiment is empty or no mapping", where=str(path), expected="key: value lines", got=type(data).__name__)
    return data, lines


def _choose(data: dict[str, Any], profile: str, path: Path, lines: dict[tuple[str, ...], int]) -> None:
    """Put the fields of one of the file's profiles in the place of the file's own."""
    profiles = data.pop("profiles", None) or {}
    if not isinstance(profiles, dict) or not isinstance(profiles.get(profile), dict):
        known = ", ".join(map(str, profiles)) if isinstance(profiles, dict) and profiles else "none: this experiment has one size"
        raise ConfigError("there is no such profile", where=f"{path}: profiles", expected=known, got=repr(profile))
    _merge(data, profiles[profile])
    start = ("profiles", profile)
    for key in [key for key in lines if key[:2] == start and len(key) > 2]:
        lines[key[2:]] = lines[key]
    data["name"] = f"{data.get('name')}-{profile}"
    data["profile"] = profile


def _merge(into: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _find(source: str | Path) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    for folder in experiment_folders():
        if (folder / f"{source}.yaml").is_file():
            return folder / f"{source}.yaml"
    raise ConfigError(
        "no such experiment",
        where=str(source),
        expected="a YAML file, or one of " + ", ".join(shipped_experiments()),
        got="neither",
        remedy="check the path; shipped experiments are named without .yaml",
    )


def _line_numbers(node: yaml.Node | None, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], int]:
    """Line (from 1) of every field and list item."""
    found: dict[tuple[str, ...], int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, str(key.value))
            found[here] = key.start_mark.line + 1
            found |= _line_numbers(value, here)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            here = (*path, str(index))
            found[here] = item.start_mark.line + 1
            found |= _line_numbers(item, here)
    return found


def _apply(data: dict[str, Any], override: str, lines: dict[tuple[str, ...], int]) -> None:
    name, sign, text = override.partition("=")
    if not sign or not name:
        raise ConfigError("an override is not readable", where=f"--set {override}", expected="a.b=value", got=override)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError("an override's value is not YAML", where=f"--set {override}", got=text) from error
    *parents, last = name.split(".")
    place = data
    for parent in parents:
        inner = place.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ConfigError("an override goes below a field that has no fields", where=f"--set {override}", got=f"{parent} = {inner!r}")
        place = inner
    place[last] = value
    prefix = tuple(name.split("."))
    for key in [key for key in lines if key[: len(prefix)] == prefix]:
        lines[key] = 0
    lines[prefix] = 0


def _explain(error: ValidationError, path: Path, lines: Mapping[tuple[str, ...], int]) -> ConfigError:
    texts: list[str] = []
    for location, fault in _faults(error):
        known = max((location[:length] for length in range(len(location) + 1) if location[:length] in lines), key=len, default=())
        line = lines.get(known)
        source = str(path) if line is None else "the command line" if line == 0 else f"{path}, line {line}"
        field = ".".join(location) or "the experiment"
        expected, got = fault["msg"].removeprefix("Value error, "), repr(fault["input"])
        if fault["type"] == "extra_forbidden":
            expected = "no such field" + _did_you_mean(location)
        elif fault["type"] == "missing":
            expected, got = "this field, which is required", "nothing"
        if len(got) > 80:
            got = got[:77] + "..."
        texts.append(f"{source}: field {field}: expected {expected}; got {got}")
    count = "a fault" if len(texts) == 1 else f"{len(texts)} faults"
    return ConfigError(f"the experiment has {count}\n  " + "\n  ".join(texts), remedy="`genrep schema` prints every field with its type")


def _faults(error: ValidationError) -> list[tuple[tuple[str, ...], ErrorDetails]]:
    """Each fault with its place. Of a field that may be of several types, only what the type that was meant says of it."""
    found: dict[tuple[str, ...], list[ErrorDetails]] = {}
    for fault in error.errors():
        location = tuple(str(part) for part in fault["loc"] if not _UNION_BRANCH.fullmatch(str(part)))
        found.setdefault(location, []).append(fault)
    return [
        (location, fault)
        for location, faults in found.items()
        for fault in ([f for f in faults if not f["type"].endswith("_type")] or faults[:1] if len(faults) > 1 else faults)
    ]


def _did_you_mean(location: tuple[str, ...]) -> str:
    """The nearest fields of the section in which an unknown one stands."""
    section: type[BaseModel] = Experiment
    for part in location[:-1]:
        inner = section.model_fields.get(part)
        if inner is None or not isinstance(inner.annotation, type) or not issubclass(inner.annotation, BaseModel):
            return ""
        section = inner.annotation
    names = [field.alias or name for name, field in section.model_fields.items()]
    near = difflib.get_close_matches(location[-1], names, n=2)
    return f" (did you mean {' or '.join(near)}?)" if near else f" (fields here: {', '.join(names)})"
