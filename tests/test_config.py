from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from genrep_dist.config import Experiment, load_experiment, profile_names, shipped_experiments
from genrep_dist.config.resources import parse_bytes
from genrep_dist.config.yaml_text import parse_yaml
from genrep_dist.core.importances import IMPORTANCES
from genrep_dist.core.kernels import KERNELS
from genrep_dist.core.methods import NAMED_METHODS
from genrep_dist.core.reserved import RESERVED_NAMES
from genrep_dist.errors import ConfigError
from tests.experiments import ROOT

GOOD = """\
name: mine
problem: {name: digits}
seeds: 3
test_points: 2
methods: [ntk-final/tracking, random]
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "experiment.yaml"
    path.write_text(text)
    return path


def test_defaults_are_filled_in_and_frozen(tmp_path: Path) -> None:
    experiment = load_experiment(write(tmp_path, GOOD))
    assert experiment.seeds == (0, 1, 2)
    assert experiment.deletion.fractions == (0.0, 0.02, 0.04, 0.06, 0.08, 0.10)
    assert experiment.deletion.retrain == "same"
    with pytest.raises(Exception, match="frozen"):
        experiment.test_points = 3


def test_resolved_experiment_reads_back_as_itself(tmp_path: Path) -> None:
    experiment = load_experiment(write(tmp_path, GOOD), ["surrogate.lambda=0.5", "seeds=[4, 9]"])
    again = load_experiment(write(tmp_path, experiment.to_yaml()))
    assert again == experiment
    assert again.surrogate.lam == 0.5
    assert again.seeds == (4, 9)


def test_a_full_experiment_reads_back_as_itself(tmp_path: Path) -> None:
    text = """\
name: full
problem: {name: digits, flip_labels: {share: 0.1, seed: 4}}
stop: {metric: lds, half_width: 0.2, max_seeds: 40}
test_points: [7, 3]
external: {mine: {path: scores, positive_raises: false, layout: captum}}
methods: [ntk-final/tracking, mine, random]
baseline: mine
deletion: {counts: [0, 2, 9], retrain: fresh, replicates: 3, signs: [positive]}
lds: {subsets: 8}
loo: {samples: 9}
brittleness: {counts: [0, 5]}
tune: {parameter: surrogate.lambda, values: [0.1, 1.0], seeds: 3, metric: auc_del_positive}
"""
    experiment = load_experiment(write(tmp_path, text))
    assert load_experiment(write(tmp_path, experiment.to_yaml())) == experiment
    assert (len(experiment.seeds), experiment.num_test_points, experiment.external_methods) == (40, 2, ("mine",))
    assert experiment.tune is not None
    assert not set(experiment.tune.seeds) & set(experiment.seeds)
    assert experiment.deletion.removals(100) == [(0.0, 0), (0.02, 2), (0.09, 9)]
    plain = experiment.with_fixed_seeds(seeds=[0, 1])
    assert (plain.stop, plain.tune, plain.seeds, plain.lds) == (None, None, (0, 1), experiment.lds)
    moved = experiment.with_fixed_seeds(external={"mine": {"path": "elsewhere", "positive_raises": False, "layout": "captum"}})
    assert moved.result_fields() == experiment.with_fixed_seeds().result_fields(), "where a file lies changes no number"


@pytest.mark.parametrize("name", shipped_experiments())
def test_shipped_experiments_are_valid(name: str) -> None:
    last = name.rpartition("/")[2]
    for profile in profile_names(name) or (None,):
        experiment = load_experiment(name, profile=profile)
        assert experiment.name == (last if profile is None else f"{last}-{profile}")


def test_the_papers_experiments_have_the_papers_size() -> None:
    """27,500 retrainings for the images, 10,000 for each method of texts."""
    for name in ("mnist", "cifar10", "toxicity", "agnews", "newsgroups"):
        assert profile_names(f"paper/{name}") == ("smoke", "cpu", "desk", "gpu", "paper")
        experiment = load_experiment(f"paper/{name}", profile="paper")
        seeds = 50 if name in ("mnist", "cifar10") else 200
        assert (len(experiment.seeds), experiment.test_points, len(experiment.methods)) == (seeds, 10, 11)
        assert experiment.deletion.fractions == (0.0, 0.02, 0.04, 0.06, 0.08, 0.10)


PROFILES = """
profiles:
  small: {test_points: 1, problem: {options: {train_size: 40}}, deletion: {fractions: [0.0, 0.5]}}
  large: {seeds: 100}
"""


def test_a_profile_changes_fields_and_the_name(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + PROFILES)
    plain = load_experiment(path, profile="large").model_copy(update={"name": "mine", "seeds": (0, 1, 2)})
    small = load_experiment(path, ["deletion.signs=[positive]"], profile="small")
    assert (small.name, small.profile, small.test_points) == (f"{plain.name}-small", "small", 1)
    assert small.problem.options == {**plain.problem.options, "train_size": 40}
    assert small.deletion.fractions == (0.0, 0.5)
    assert (small.seeds, small.methods, small.deletion.signs) == (plain.seeds, plain.methods, ("positive",))
    assert load_experiment(path, ["name=mine"], profile="large").name == "mine"
    assert len(load_experiment(path, profile="large").seeds) == 100
    assert "profile: small" in small.to_yaml()
    assert load_experiment(write(tmp_path, small.to_yaml())) == small, "the resolved experiment needs no profile"
    moved = small.model_copy(update={"profile": None})
    assert moved.result_fields() == small.result_fields(), "how the fields were chosen changes no number"


def test_a_profile_must_be_there_and_be_chosen(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + PROFILES)
    with pytest.raises(ConfigError, match=r"field profiles: expected the choice of a profile: small, large"):
        load_experiment(path)
    with pytest.raises(ConfigError, match=r"no such profile[\s\S]*small, large[\s\S]*'huge'"):
        load_experiment(path, profile="huge")
    with pytest.raises(ConfigError, match="has one size"):
        load_experiment(write(tmp_path, GOOD), profile="small")
    bad = PROFILES.replace("test_points: 1", "test_points: 0")
    with pytest.raises(ConfigError, match=r"line 8: field test_points"):
        load_experiment(write(tmp_path, GOOD + bad), profile="small")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("test_pionts: 2\n", r"line 6: field test_pionts: expected no such field \(did you mean test_points\?\); got 2"),
        ("deletion:\n  fractoins: [0.1]\n", r"line 7: field deletion\.fractoins: expected no such field \(did you mean fractions\?\)"),
        ("deletion:\n  fractions: [0.0, 0.1, big]\n", r"line 7: field deletion\.fractions\.2: expected a share.*not percent.*; got 'big'"),
        ("deletion: {fractions: [0.1, 0.0]}\n", r"line 6: field deletion\.fractions: expected fractions in ascending order"),
        ("surrogate: {lambda: -1}\n", r"line 6: field surrogate\.lambda: expected .*greater than 0.*; got -1"),
        ("resources: {memory_budget: much}\n", r"line 6: field resources\.memory_budget: expected a number of bytes such as 512MiB"),
        ("target: {output: first}\n", r"line 6: field target\.output"),
        ("deletion: {fractions: [0.1], counts: [1]}\n", r"line 6: field deletion: expected fractions or counts, not both"),
        ("deletion: {counts: [3, 1]}\n", r"line 6: field deletion\.counts: expected counts in ascending order"),
        ("deletion: {replicates: 2}\n", r"line 6: field deletion: expected retrain: fresh with several replicates"),
        ("lds: {replicates: 2}\n", r"line 6: field lds: expected retrain: fresh with several replicates"),
        ("baseline: tracincp\n", r"line 6: field baseline: expected a method of this experiment; got 'tracincp'"),
        (
            "external: {random: {path: a, positive_raises: true}}\n",
            r"line 6: field external\.random: expected another name: 'random' is reserved",
        ),
        (
            "external: {mine: {path: a, positive_raises: true, layout: kronfluense}}\n",
            r"line 6: field external\.mine\.layout: expected one of .*plain.* \(did you mean kronfluence\?\); got 'kronfluense'",
        ),
        ("external: {mine: {path: a}}\n", r"line 6: field external\.mine\.positive_raises: expected this field"),
        ("tune: {parameter: damping, values: [1, 2], seeds: [0]}\n", r"line 6: field tune: expected seeds that are not reported; \[0\]"),
        ("tune: {parameter: damping, values: [1], seeds: 2}\n", r"line 6: field tune\.values: expected .*at least 2"),
        ("kernels: [rbf]\n", r"line 6: field kernels: expected a table \(lines of key: value\); got \['rbf'\]"),
        ("deletion: often\n", r"line 6: field deletion: expected a table \(lines of key: value\); got 'often'"),
        ("lds: [3]\n", r"line 6: field lds: expected a table"),
        ("surrogate: {tolerance: 2}\n", r"line 6: field surrogate\.tolerance: expected a number greater than 0 and less than 1; got 2"),
        ("lds: {fraction: 0}\n", r"line 6: field lds\.fraction: expected a share greater than 0 and less than 1, not percent.*; got 0"),
        ("recipe: {momentum: 1}\n", r"line 6: field recipe\.momentum: expected a number of at least 0 and less than 1; got 1"),
        (
            "recipe: {schedule: cosin}\n",
            r"line 6: field recipe\.schedule: expected one of .*\(did you mean cosine\?\); got 'cosin'",
        ),
        ("recipe: {warmup: 1.5}\n", r"line 6: field recipe\.warmup: expected a whole number of steps.*; got 1\.5"),
        ("recipe: {betas: [0.9, 1]}\n", r"line 6: field recipe\.betas\.1: expected a number .*less than 1.*; got 1"),
        (
            "recipe: {param_groups: [{params: '*.bias'}]}\n",
            r"line 6: field recipe\.param_groups\.0: expected a learning_rate or",
        ),
        ("recipe: {augment: flip}\n", r"line 6: field recipe\.augment: expected a name that matches"),
        ("recipe: {epochs: 2.5}\n", r"line 6: field recipe\.epochs: expected a whole number, without a fraction; got 2\.5"),
        ("recipe: {learning_rate: .inf}\n", r"line 6: field recipe\.learning_rate: expected a finite number"),
        ("last_layer: 3\n", r"line 6: field last_layer: expected text; got 3"),
        ("blocks: {a: 3}\n", r"line 6: field blocks\.a: expected a list \(\[a, b\]\); got 3"),
        ("deletion: {fractions: []}\n", r"line 6: field deletion\.fractions: expected a list of at least 1 item; this one has 0"),
        ("target: {kind: logits}\n", r"line 6: field target\.kind: expected one of logit,.*did you mean logit or loss\?\); got 'logits'"),
        ("recipe: {optimizer: sdg}\n", r"line 6: field recipe\.optimizer: expected one of .*sgd.*\(did you mean sgd\?\); got 'sdg'"),
        (
            "metrics: {mine: {class: '__main__:Metric'}}\n",
            r"line 6: field metrics: expected a class in a file that other processes can import",
        ),
    ],
)
def test_a_bad_field_is_named_with_file_line_and_remedy(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"experiment\.yaml, {message}") as caught:
        load_experiment(write(tmp_path, GOOD + change))
    assert "genrep schema" in str(caught.value)


@pytest.mark.parametrize("name", sorted({*RESERVED_NAMES, *KERNELS, *IMPORTANCES}))
@pytest.mark.parametrize("section", ["kernels", "external"])
def test_reserved_names_are_refused(tmp_path: Path, section: str, name: str) -> None:
    entry = "{class: 'mine:Kernel'}" if section == "kernels" else "{path: a, positive_raises: true}"
    if section == "external" and name in NAMED_METHODS and name not in RESERVED_NAMES:
        pytest.skip("scores of another tool may have the name of a method")
    text = GOOD.replace("random]", f"{name}-final/target]") + f"{section}:\n  {name}: {entry}\n"
    with pytest.raises(ConfigError) as caught:
        load_experiment(write(tmp_path, text))
    message = str(caught.value)
    assert "line 7" in message
    assert f"field {section}.{name}: expected" in message
    if section == "external" or "-" not in name:  # a kernel's name has no hyphen
        assert f"{name!r} is reserved, as are " in message
        assert all(other in message for other in RESERVED_NAMES)
        assert "unknown method" not in message, "the methods are checked once the names are right"


def test_an_epoch_is_a_reserved_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'epoch3' is reserved, .*epoch<k>"):
        load_experiment(write(tmp_path, GOOD + "kernels: {epoch3: {class: 'mine:Kernel'}}\n"))


def test_all_errors_are_reported_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("test_points: 2", "test_points: 0").replace("random]", "randon]") + "colour: red\n"
    with pytest.raises(ConfigError, match="3 errors") as caught:
        load_experiment(write(tmp_path, text))
    message = str(caught.value)
    assert "line 4: field test_points" in message
    assert "line 5: field methods" in message
    assert "unknown method 'randon'" in message
    assert "line 6: field colour" in message


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="field problem: expected this field, which is required; got nothing"):
        load_experiment(write(tmp_path, GOOD.replace("problem: {name: digits}\n", "")))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("test_points=none", "the command line: field test_points"),
        ("resources.wrokers=2", "the command line: field resources.wrokers"),
        ("test_points", "an override cannot be read"),
        ("name.inner=2", "a field below one that has no fields"),
    ],
)
def test_bad_overrides_name_the_command_line(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_experiment(write(tmp_path, GOOD), [override])


@pytest.mark.parametrize(
    ("more", "key", "lines"),
    [
        ("seeds: 4\n", "seeds", (3, 6)),
        ("deletion:\n  fractions: [0.0, 0.5]\n  signs: [negative]\n  fractions: [0.1]\n", "deletion.fractions", (7, 9)),
        ("deletion: {counts: [1], counts: [2]}\n", "deletion.counts", (6, 6)),
        ("profiles:\n  small: {seeds: 1}\n  large: {seeds: 9}\n  small: {seeds: 2}\n", "profiles.small", (7, 9)),
        ("profiles:\n  small:\n    seeds: 1\n    seeds: 2\n", "profiles.small.seeds", (8, 9)),
        ("metrics:\n  a: {b: [{c: 1,\n c: 2}]}\n", "metrics.a.b.0.c", (7, 8)),
        ("'problem': {name: mnist}\n", "problem", (2, 6)),
    ],
)
def test_a_key_that_is_there_twice_is_refused_with_both_lines(tmp_path: Path, more: str, key: str, lines: tuple[int, int]) -> None:
    name = key.rpartition(".")[2]
    message = rf"the key '{name}' is there twice[\s\S]*experiment\.yaml, lines {lines[0]} and {lines[1]}: field {key}\n"
    for read in (load_experiment, profile_names):
        with pytest.raises(ConfigError, match=message):
            read(write(tmp_path, GOOD + more))


def test_an_override_with_a_key_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--set deletion=[\s\S]*line 1 and line 1"):
        load_experiment(write(tmp_path, GOOD), ["deletion={counts: [1], counts: [2]}"])


def test_merged_keys_and_keys_of_other_types_are_not_twice(tmp_path: Path) -> None:
    problem = "problem: {name: digits, options: &base {a: 1, 1: x, '1': y}}\n"
    kernels = "kernels: {rbf: {class: 'm:K', options: {<<: *base, a: 2}}}\n"
    data, _ = parse_yaml(problem + kernels, "a file", "not YAML")
    assert data["kernels"]["rbf"]["options"] == {"a": 2, 1: "x", "1": "y"}


@pytest.mark.parametrize("path", sorted([*ROOT.glob("jobs/**/*.yaml"), *ROOT.glob("cluster/**/*.yaml")]), ids=lambda path: path.name)
def test_no_file_that_ships_has_a_key_twice(path: Path) -> None:
    for part in path.read_text(encoding="utf-8").split("\n---\n"):
        parse_yaml(part, str(path), "not YAML")


@pytest.mark.parametrize("override", ["deletion=3", "problem.name=7", "colour=red"])
def test_the_model_itself_raises_our_error(override: str) -> None:
    name, _, value = override.partition("=")
    data = yaml.safe_load(GOOD)
    section, _, last = name.rpartition(".")
    (data[section] if section else data)[last] = yaml.safe_load(value)
    with pytest.raises(ConfigError, match=rf"field {name}: expected"):
        Experiment.model_validate(data)


@pytest.mark.parametrize("text", ["a: [1, 2", "- 1\n- 2\n", "", "\tname: x", "# a comment\n", "name: 2024-99-99\n", "a: &a [*a]\n"])
def test_what_is_not_an_experiment_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"experiment\.yaml"):
        load_experiment(write(tmp_path, text))


def test_an_unknown_name_lists_the_shipped_ones() -> None:
    with pytest.raises(ConfigError, match=r"demo, .*smoke"):
        load_experiment("no-such-experiment")


def test_yaml_cannot_build_objects(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not YAML"):
        load_experiment(write(tmp_path, GOOD + "tracking: !!python/object/apply:os.system ['true']\n"))


def test_resources_and_tracking_do_not_change_the_question(tmp_path: Path) -> None:
    plain = load_experiment(write(tmp_path, GOOD))
    path = write(tmp_path, GOOD)
    elsewhere = load_experiment(
        path, ["resources.workers=7", "resources.memory_budget=1GiB", "resources.cuda_graphs=true", "tracking.uri=http://localhost:1"]
    )
    assert plain.result_fields() == elsewhere.result_fields()
    assert plain.result_fields() != load_experiment(path, ["surrogate.lambda=0.3"]).result_fields()


@pytest.mark.parametrize(("text", "value"), [("512MiB", 512 * 2**20), ("2 GiB", 2 * 2**30), ("1e9", 10**9), ("3kb", 3000), (17, 17)])
def test_sizes(tmp_path: Path, text: object, value: int) -> None:
    assert parse_bytes(text) == value
    assert load_experiment(write(tmp_path, GOOD), [f"resources.memory_budget={text}"]).resources.memory_budget == value


def test_the_schema_describes_every_field() -> None:
    schema = Experiment.model_json_schema(by_alias=True)
    assert json.dumps(schema)
    assert set(yaml.safe_load(GOOD)) <= set(schema["properties"])
    assert "lambda" in schema["$defs"]["SurrogateSection"]["properties"]
    budget = schema["$defs"]["ResourcesSection"]["properties"]["memory_budget"]
    assert {option["type"] for option in budget["anyOf"]} == {"integer", "string"}, "512MiB is complete in an editor"
