"""Wrong input of every kind: its exit code, and the words that the user must read. Never a traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import genrep_dist as gr
from tests.cli.calls import FEW, Genrep
from tests.experiments import experiment_fields

FIELDS = experiment_fields("tests.toys:Blobs") | FEW


def text(**changes: Any) -> str:
    return yaml.safe_dump(FIELDS | changes)


EXPERIMENTS: dict[str, tuple[str, list[str], list[str]]] = {
    # What is wrong: the file, more options, the words.
    "percent": (
        text(deletion={"fractions": [0, 2, 10]}),
        [],
        ["fractions.1", "share of at least 0 and less than 1, not percent (0.02 is 2 %)"],
    ),
    "percent sign": (text(deletion={"fractions": ["2%"]}), [], ["an error\n", "fractions.0", "not percent", "got '2%'"]),
    "percent of a subset": (text(lds={"subsets": 4, "fraction": 50}), [], ["lds.fraction", "greater than 0 and less than 1, not percent"]),
    "a name with a space": (text(name="my run"), [], ["field name", "letters, digits", "without spaces", "such as my-run"]),
    "a name with a slash": (text(name="a/b"), [], ["field name", "such as a-b", "got 'a/b'"]),
    "a name of a kernel": (text(kernels={"Mine": {"class": "a:B"}}), [], ["kernels.Mine", "lower-case letters"]),
    "a tab": ("name: x\nproblem:\n\tname: digits\n", [], ["line 3, column 1", "spaces", "a tab", "replace the tab by spaces"]),
    "a colon in a value": ("name: x: y\n", [], ["line 1, column 8", "quotes"]),
    "an open bracket": ("name: [x\n", [], ["line 2", "the end of the file", "close what was opened"]),
    "a key twice": ("name: x\nseeds: 2\nseeds: 3\n", [], ["'seeds' is there twice", "lines 2 and 3", "remove one"]),
    "a nested key twice": ("lds:\n  subsets: 2\n  subsets: 3\n", [], ["lds.subsets", "line 2 and line 3"]),
    "no such profile": (text(profiles={"cpu": {}, "gpu": {}}), ["--profile", "cup"], ["one of cpu, gpu", "did you mean cpu?"]),
    "a profile of none": (text(), ["--profile", "cpu"], ["this experiment has one size", "leave out --profile"]),
    "no profile of several": (text(profiles={"cpu": {"seeds": 1}}), [], ["the choice of a profile: cpu", "--profile"]),
    "a method misspelt": (text(methods=["ntk-final/trackng"]), [], ["unknown method 'ntk-final/trackng'", "nearest: ntk-final/tracking"]),
    "no method at all": (text(methods=["zzz"]), [], ["unknown method 'zzz'", "`genrep methods` lists them all"]),
    "influence without a gram": (
        text(methods=["influence-final/surrogate"]),
        [],
        [
            "unknown method 'influence-final/surrogate': surrogate is",
            "solved for on a kernel of all pairs",
            "influence-final/target",
            "ntk-final/surrogate",
        ],
    ),
    "influence elsewhere": (
        text(methods=["influence-initial/target"]),
        [],
        ["influence is defined at final only", "influence-final/target"],
    ),
    "adam before it began": (text(methods=["ntk-adam-initial/target"]), [], ["defined at middle and final only"]),
    "several wrong methods": (
        text(methods=["tracin", "random", "ntk-final/trakcing"]),
        [],
        ["unknown method 'tracin'", "unknown method 'ntk-final/trakcing'", "nearest: tracincp", "ntk-final/tracking"],
    ),
    "no seeds": (text(seeds=0), [], ["field seeds", "from 1 to 1,000,000", "got 0"]),
    "seeds as a word": (text(seeds="three"), [], ["field seeds", "a number of seeds, or a list of seeds"]),
    "half a seed": (text(seeds=1.5), [], ["field seeds", "a number of seeds"]),
    "no test points": (text(test_points=0), [], ["field test_points", "a number of at least 1"]),
    "an unknown field": (text(seed=3), [], ["field seed", "did you mean seeds?"]),
    "an unknown optimizer": (text(recipe={"optimizer": "adamm"}), [], ["recipe.optimizer", "did you mean adam"]),
    "a word for a number": (text(recipe={"epochs": "ten"}), [], ["recipe.epochs", "a whole number", "got 'ten'"]),
    "a negative count": (text(deletion={"counts": [-1]}), [], ["an error\n", "deletion.counts.0", "of at least 0"]),
    "memory in words": (text(resources={"memory_budget": "lots"}), [], ["512MiB", "got 'lots'"]),
    "an override without a value": (text(), ["--set", "seeds"], ["--set seeds", "a.b=value"]),
    "an override in percent": (text(), ["--set", "deletion.fractions=[50]"], ["the command line", "not percent"]),
}


@pytest.mark.parametrize("case", EXPERIMENTS)
def test_a_wrong_experiment_is_refused_in_words(genrep: Genrep, tmp_path: Path, case: str) -> None:
    content, options, words = EXPERIMENTS[case]
    (tmp_path / "wrong.yaml").write_text(content)
    for command in ("run", "plan"):
        ended = genrep(command, tmp_path / "wrong.yaml", "--store", tmp_path / "store", *options)
        assert ended.code == 1
        assert ended.error.startswith("error: ")
        assert "wrong.yaml" in ended.error or "--set" in ended.error or "command line" in ended.error
        assert [word for word in words if word not in ended.error] == []
        for foreign in ("Traceback", "pydantic", "Input should", "Value error", "validation error", "^["):
            assert foreign not in ended.error
        assert ended.output == ""


COMMANDS: dict[str, tuple[list[str], int, list[str]]] = {
    # `{store}`: that with the finished experiments; `{tmp}`: an empty folder.
    "no such experiment": (["run", "nowhere.yaml"], 1, ["no such experiment", "a YAML file, or one of", "check the path"]),
    "no such run": (["status", "nope", "--store", "{store}"], 1, ["no such experiment", "one of first, second, third"]),
    "a path for a name": (["status", "../toy", "--store", "{store}"], 1, ["no such experiment", "got: ../toy"]),
    "a store that is not there": (["list", "--store", "{tmp}/no"], 1, ["there is no store", "{tmp}/no", "check --store"]),
    "a file for a store": (["list", "--store", "{store}/mlflow.txt"], 1, ["there is no store"]),
    "a misspelt module": (
        ["plan", "smoke", "--store", "{tmp}/store", "--set", "problem.name=tests.toyss:Blobs"],
        1,
        ["no such module", "expected: tests/toyss.py in one of ", "did you mean tests.toys:Blobs?"],
    ),
    "an unknown option": (["run", "smoke", "--sereal"], 2, ["No such option", "--sereal", "--serial"]),
    "an unknown command": (["runs"], 2, ["No such command", "run"]),
    "two ways to run": (["run", "smoke", "--serial", "--address", "auto"], 2, ["--serial and --address exclude each other"]),
    "serial and Ray": (["run", "smoke", "--serial", "--ray"], 2, ["--serial and --ray exclude each other"]),
    "a wrong number": (["status", "first", "--every", "soon"], 2, ["--every", "valid"]),
    "no such method": (["methods", "tracin"], 1, ["unknown method 'tracin'", "nearest: tracincp"]),
    "no such shell": (["completion", "tcsh"], 2, ["tcsh", "bash"]),
    "one run twice": (["compare", "first", "first", "--store", "{store}"], 1, ["this is one run, not two"]),
    "a log in no folder": (
        ["list", "--store", "{store}", "--log-file", "{tmp}/no/run.log"],
        1,
        ["the log file cannot be written", "--log-file"],
    ),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_a_wrong_command_is_refused_in_words(genrep: Genrep, finished: Path, tmp_path: Path, case: str) -> None:
    arguments, code, words = COMMANDS[case]
    places = {"store": str(finished), "tmp": str(tmp_path)}
    ended = genrep(*(argument.format(**places) for argument in arguments))
    assert ended.code == code
    said = " ".join(ended.error.replace("│", " ").split())
    assert [word for word in words if word.format(**places) not in said] == []
    assert "Traceback" not in ended.error


def test_an_export_into_the_folder_of_another_run_is_refused(genrep: Genrep, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    for _ in range(2):
        assert genrep("export", "first", "--to", folder, "--store", finished).code == 0
    before = (folder / "summary.csv").read_bytes()
    refused = genrep("export", "third", "--to", folder, "--store", finished)
    assert refused.code == 1
    assert "this folder has the export of another run" in refused.error
    assert "experiment first" in refused.error
    assert "choose another folder (--to)" in refused.error
    assert (folder / "summary.csv").read_bytes() == before
    (folder / "export.json").unlink()
    assert genrep("export", "first", "--to", folder, "--store", finished).code == 1, "nobody knows of which run it is"


@pytest.mark.parametrize("other", ["second", "third"])
def test_a_ground_truth_does_not_replace_that_of_another_experiment(genrep: Genrep, finished: Path, tmp_path: Path, other: str) -> None:
    folder = tmp_path / "truth"
    for _ in range(2):
        assert genrep("export", "truth", "first", "--to", folder, "--store", finished).code == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    refused = genrep("export", "truth", other, "--to", folder, "--store", finished)
    assert refused.code == 1
    assert "this folder has the export of another run" in refused.error
    assert "experiment first" in refused.error
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


WRONG_CALLS: dict[str, tuple[Callable[[gr.Run], object], list[str]]] = {
    "method": (lambda run: run.attributions("ntk-final/trackng", 0), ["not a method of this run", "ntk-final/target, random"]),
    "seed": (lambda run: run.attributions("random", 9), ["not a seed of this run", "one of [0, 1]"]),
    "kernel of no method": (
        lambda run: run.kernel("last-layer", "final", 0),
        ["kernel last-layer-final is not part of this run", "add a method with it, such as last-layer-final/target, and run"],
    ),
    "kernel elsewhere": (lambda run: run.kernel("ntk", 1, 0), ["ntk-epoch1 is not part of this run", "such as ntk-epoch1/target"]),
    "unknown kernel": (lambda run: run.kernel("nope", "final", 0), ["there is no kernel 'nope'", "one of ntk"]),
    "unknown checkpoint of a kernel": (lambda run: run.kernel("ntk", "last", 0), ["no such checkpoint", "initial, middle, final"]),
    "epoch beyond the last": (lambda run: run.kernel("ntk", 99, 0), ["no such checkpoint", "an epoch from 0 to 4", "epoch 99"]),
    "unknown checkpoint": (lambda run: run.checkpoint(0, "last"), ["no such checkpoint", "initial, middle, final"]),
    "importance of no method": (
        lambda run: run.importance("ntk-final/surrogate", 0),
        ["ntk-final/surrogate is not part of this run", "add ntk-final/surrogate to the methods and run"],
    ),
    "unknown importance": (lambda run: run.importance("nope", 0), ["no such importance", "one of target"]),
    "importance of random": (lambda run: run.importance("random/", 0), ["unknown method"]),
    "inputs that are no numbers": (lambda run: run.explain("ntk-final/target", 0, inputs="abc"), ["not of the form", "str"]),
    "unknown test sample": (lambda run: run.explain("ntk-final/target", 0, test_ids=[999]), ["no such test samples", "999"]),
    "a number for an experiment": (lambda _: gr.run(5), ["this is no experiment", "int 5"]),  # type: ignore[arg-type]
    "a dictionary": (lambda _: gr.load_experiment({"name": "x"}), ["no experiment", "gr.Experiment.model_validate"]),  # type: ignore[arg-type]
    "fields missing": (lambda _: gr.Experiment.model_validate({"name": "x"}), ["field problem", "which is required"]),
    "fields missing in a call": (lambda _: gr.Experiment(name="x"), ["field problem", "which is required"]),  # type: ignore[call-arg]
    "a store that is not there": (lambda _: gr.open_run("nowhere", "first"), ["there is no store", "nowhere"]),
    "texts to pad": (lambda _: gr.pad_rows(["ab"]), ["pad_rows", "numbers"]),
    "no rows to pad": (lambda _: gr.pad_rows(None), ["pad_rows", "numbers"]),  # type: ignore[arg-type]
    "a length in letters": (lambda _: gr.pad_rows([[1]], "a"), ["pad_rows", "whole number"]),  # type: ignore[arg-type]
    "rows of two dtypes": (lambda _: gr.pad_rows([[1.0], [2]]), ["pad_rows", "one dtype"]),
    "nothing for a store": (lambda _: gr.open_run(None, "first"), ["no address of a store", "None"]),  # type: ignore[arg-type]
    "nothing for a name": (lambda run: gr.open_run(run.store, None), ["no such experiment", "one of first, second, third"]),  # type: ignore[arg-type]
    "a number for a problem": (lambda _: gr.load_problem(5), ["no name of a problem", "5"]),  # type: ignore[arg-type]
    "an unknown problem": (lambda _: gr.load_problem("digit"), ["no such problem", "digits"]),
}


@pytest.mark.parametrize("case", WRONG_CALLS)
def test_a_wrong_call_raises_our_error_in_words(finished: Path, case: str) -> None:
    call, words = WRONG_CALLS[case]
    with pytest.raises(gr.GenRepError) as caught:
        call(gr.open_run(str(finished), "first"))
    assert [word for word in words if word not in str(caught.value)] == []


def test_paths_and_single_overrides_are_understood(finished: Path) -> None:
    run = gr.open_run(finished, "first")
    assert np.isfinite(run.attributions("random", 0)).all()
    assert gr.load_experiment("smoke", "seeds=[7]").seeds == (7,)
