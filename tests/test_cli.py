from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import genrep_dist as gr
from genrep_dist import cli
from tests.experiments import METHODS, ROOT, experiment_file

pytestmark = pytest.mark.publishes


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an experiment and a store in which it was run."""
    folder = tmp_path_factory.mktemp("cli")
    experiment_file(folder / "toy.yaml")
    result = call("run", folder / "toy.yaml", "--store", folder / "store", "--serial", "--set", "seeds=[0, 3]")
    assert result.exit_code == 0, result.output
    assert "retrain: 0 of" in result.output
    assert "AUC-DEL₋" in result.output
    assert "mlflow" in result.output
    return folder


class Result:
    def __init__(self, exit_code: int, output: str) -> None:
        self.exit_code, self.output = exit_code, output


def call(*arguments: object) -> Result:
    """The command line, from the repository's root (where `tests.toys` is)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Result(result.exit_code, result.output)


def test_plan_before_and_after(place: Path, tmp_path: Path) -> None:
    before = json.loads(call("plan", place / "toy.yaml", "--store", tmp_path, "--json").output)
    stages = {stage["stage"]: stage for stage in before["stages"]}
    assert list(stages) == ["train", "gradients", "kernels", "influence", "importances", "attributions", "retrain"]
    assert all(stage["done"] == 0 and stage["seconds"] > 0 for stage in before["stages"])
    asked = 2 * len(METHODS) * 2 * 2 * 3
    assert before["retrainings"] == {"asked": asked, "unique": asked * 2 // 3, "exact": False, "done": 0}

    after = json.loads(call("plan", place / "toy.yaml", "--store", place / "store", "--set", "seeds=[0, 3]", "--no-probe", "--json").output)
    assert after["retrainings"]["exact"]
    assert after["retrainings"]["done"] == after["retrainings"]["unique"] < asked * 2 // 3
    assert all(stage["done"] == stage["units"] for stage in after["stages"])
    text = call("plan", place / "toy.yaml", "--store", tmp_path)
    assert f"{asked} requested, at most" in text.output
    assert "time: of each stage in one process" in text.output  # as the run would do so little work
    assert before["in_process"]
    workers = json.loads(call("plan", place / "toy.yaml", "--store", tmp_path, "--set", "resources.workers=2", "--json").output)
    assert (workers["in_process"], workers["workers"] >= 2) == (False, True)


def test_a_plan_that_this_machine_can_never_hold_is_refused(tmp_path: Path) -> None:
    experiment_file(tmp_path / "toy.yaml")
    planned = call("plan", tmp_path / "toy.yaml", "--store", tmp_path / "store", "--set", "resources.stages={influence: {num_gpus: 64}}")
    assert "`genrep run` would refuse this plan here: no node of the cluster can ever run a worker" in planned.output
    assert re.search(r"resources.stages.influence.num_gpus[\s\S]*1 CPU and 64 GPU[\s\S]*on any of 1 nodes", planned.output)


def test_status_from_the_store_alone(place: Path) -> None:
    status = json.loads(call("status", "toy", "--store", place / "store", "--json").output)
    assert status["finished"]
    assert all(stage["done"] == stage["total"] and stage["exact"] for stage in status["stages"])
    assert "finished" in call("status", "toy", "--store", place / "store").output


def test_run_again_says_so(place: Path) -> None:
    result = call("run", place / "toy.yaml", "--store", place / "store", "--serial", "--set", "seeds=[0, 3]")
    assert "nothing was computed" in result.output


def test_report_is_written_again(place: Path) -> None:
    page = place / "store" / "results" / "toy" / "report.html"
    page.unlink()
    assert "report.html" in call("report", "toy", "--store", place / "store").output
    assert page.read_text().startswith("<!doctype html>")


def test_a_report_that_would_be_the_same_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "store"
    small = ("--set", "seeds=1", "--set", "methods=[random]", "--set", "blocks={}", "--set", "deletion.fractions=[0.0, 0.1]")
    assert call("run", "smoke", "--store", store, "--serial", *small).exit_code == 0
    page = store / "results" / "smoke" / "report.html"
    text = page.read_text()

    def written(*options: str) -> bool:
        before = page.stat().st_mtime_ns
        output = call("report", "smoke", "--store", store, *options).output
        assert "report.html" in output
        assert ("up to date" in output) == (page.stat().st_mtime_ns == before)
        return page.stat().st_mtime_ns != before

    assert not written()
    assert_unused([["report", "smoke", "--store", str(store)]])
    assert written("--force")
    assert page.read_text() == text
    assert not written()
    page.write_text("changed")
    assert written()
    assert page.read_text() == text
    with monkeypatch.context() as patch:
        patch.setattr("genrep_dist.results.rendered.installation_digest", lambda: "of other versions")
        assert written()
        assert not written()
    (store / "results" / "smoke" / "config.yaml").unlink()
    output = call("report", "smoke", "--store", store).output
    assert "damaged or missing: " in output
    assert "results/smoke/config.yaml" in output


def test_a_report_on_code_of_the_user_is_always_written(place: Path) -> None:
    for _ in range(2):
        assert "up to date" not in call("report", "toy", "--store", place / "store").output


def test_export_is_plain_files(place: Path, tmp_path: Path) -> None:
    result = call("export", "toy", "--store", place / "store", "--to", tmp_path / "out", "--seed", "3")
    assert result.exit_code == 0
    seed = tmp_path / "out" / "seed-3"
    assert np.load(seed / "ntk-final--tracking.npy").shape == (40, 2)
    assert set(torch.load(seed / "final.pt", weights_only=True)) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert not (tmp_path / "out" / "seed-0").exists()
    assert (tmp_path / "out" / "deletion.csv").read_text().startswith("seed,method,")


def test_methods_lists_formula_source_needs_and_cost() -> None:
    entries = {entry["name"]: entry for entry in json.loads(call("methods", "--json").output)}
    assert {"tracincp", "random", "ntk-final/tracking", "last-layer-final/surrogate"} <= set(entries)
    assert "Eq. 10" in entries["ntk-final/tracking"]["source"]
    assert "gram" in entries["ntk-final/surrogate"]["needs"]
    assert "tracincp" in call("methods").output


def test_schema_is_json_schema() -> None:
    schema = json.loads(call("schema").output)
    assert schema["title"] == "Experiment"


def test_data_list_names_what_is_known() -> None:
    output = call("data", "list").output
    for name in ("digits", "mnist", "cifar10", "toxicity", "agnews", "newsgroups", "wordpiece", "huggingface"):
        assert name in output


def test_a_profile_is_planned_run_and_named_in_the_results(tmp_path: Path) -> None:
    text = experiment_file(tmp_path / "toy.yaml").read_text()
    sized = tmp_path / "sized.yaml"
    sized.write_text(text + "profiles:\n  tiny: {seeds: [3], test_points: 1, methods: [random], blocks: {}, baseline: null}\n")
    store = ("--store", tmp_path / "store")
    planned = json.loads(call("plan", sized, "--profile", "tiny", "--json", *store).output)
    assert planned["experiment"] == "toy-tiny"
    assert planned["refusal"] is None
    assert planned["cost"]["device"] == "cpu"
    assert planned["cost"]["worker_hours"] > 0
    assert planned["cost"]["gpu_hours_guess"] > 0
    assert call("run", sized, "--profile", "tiny", "--serial", *store).exit_code == 0
    assert "profile: tiny" in (tmp_path / "store" / "results" / "toy-tiny" / "config.yaml").read_text()
    assert call("status", "toy-tiny", *store).exit_code == 0
    assert call("export", "problem", sized, "--profile", "tiny", "--to", tmp_path / "out", "--serial", *store).exit_code == 0


def test_a_plan_for_a_larger_machine_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = experiment_file(tmp_path / "toy.yaml")
    monkeypatch.setattr("genrep_dist.workflow.room.psutil.disk_usage", lambda _path: type("Usage", (), {"free": 1000})())
    result = call("plan", path, "--store", tmp_path / "store")
    assert result.exit_code == 0
    assert "GPU-hours" in result.output
    assert "worker-hours" in result.output
    assert "would refuse this plan here: the store's disk cannot hold" in result.output


def test_errors_are_one_message_and_exit_code_one(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("name: x\n")
    command = [sys.executable, "-m", "genrep_dist", "run", str(tmp_path / "bad.yaml"), "--store", str(tmp_path / "store")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: the experiment has")
    assert "Traceback" not in result.stderr


def assert_unused(calls: list[list[str]]) -> None:
    """A process that makes these calls, one after the other, imports none of the large libraries."""
    code = (
        "import json, sys; from typer.testing import CliRunner; from genrep_dist.cli import app\n"
        "for call in json.loads(sys.argv[1]):\n"
        "    ended = CliRunner().invoke(app, call)\n"
        "    assert ended.exit_code == 0, ended\n"
        "    print(call[0], [m for m in json.loads(sys.argv[2]) if m in sys.modules])"
    )
    unused = ["torch", "ray", "mlflow", "sklearn", "scipy", "matplotlib", "zarr", "jinja2", "pyarrow.compute"]
    arguments = [json.dumps(calls), json.dumps(unused)]
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [f"{call[0]} []" for call in calls]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from genrep_dist.cli import app; import genrep_dist; "
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0; "
        "print([m for m in ('torch', 'ray', 'mlflow', 'polars', 'zarr', 'sklearn', 'pydantic', 'pyarrow') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_commands_that_compute_nothing_do_without_torch(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes seconds to import. The experiment has scores of every kind, and so all stages. The plan is made before."""
    monkeypatch.setenv("GENREP_DATA", str(tmp_path))  # where no other test writes
    store = ["--store", str(place / "store")]
    call("plan", "smoke", "--no-probe", *store)
    assert_unused(
        [
            ["--version"],
            ["methods"],
            ["schema"],
            ["list", *store],
            ["du", *store],
            ["status", "toy", *store],
            ["status", "toy", "--json", *store],
            ["plan", "smoke", "--no-probe", *store],
            ["plan", "smoke", "--no-probe", "--store", str(place / "a new store")],
        ]
    )


@pytest.mark.parametrize(
    ("call", "unused"),
    [
        (["plan", "smoke", "--no-probe", "--set", "seeds=3"], {"matplotlib", "zarr"}),
        (["report", "toy", "--force"], {"sklearn", "scipy.stats", "matplotlib.pyplot", "pandas"}),
    ],
)
def test_commands_that_read_data_import_only_what_they_use(place: Path, call: list[str], unused: set[str]) -> None:
    """torch alone takes over a second. Each of the others takes a fifth of one or more."""
    code = (
        "import json, sys; from typer.testing import CliRunner; from genrep_dist.cli import app\n"
        "ended = CliRunner().invoke(app, json.loads(sys.argv[1]))\n"
        "assert ended.exit_code == 0, ended\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    arguments = json.dumps([*call, "--store", str(place / "store")])
    result = subprocess.run([sys.executable, "-c", code, arguments], capture_output=True, text=True, check=True)
    imported = set(json.loads(result.stdout))
    assert "torch" in imported
    assert imported & (unused | {"ray", "mlflow", "sympy", "torch._dynamo"}) == set()


@pytest.mark.parametrize("module", ["core.gradients.per_sample", "core.solvers.surrogate", "training.loop", "training.observers"])
def test_mathematics_and_training_need_torch_alone(module: str) -> None:
    code = (
        f"import sys, genrep_dist.{module}; "
        "print([m for m in ('ray', 'mlflow', 'polars', 'zarr', 'obstore', 'sklearn', 'pydantic', 'pyarrow', 'yaml') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_problem_is_exported_before_its_scores_are_there(place: Path, tmp_path: Path) -> None:
    """Only the originals are trained, and scores from elsewhere need not exist yet."""
    external = {"theirs": {"path": "scores", "positive_raises": True}}
    asked = experiment_file(tmp_path / "judged.yaml", name="judged", methods=["theirs"], external=external)
    asked.write_text(asked.read_text().replace("seeds: 2", "stop: {half_width: 0.1, min_seeds: 2, max_seeds: 4}"))
    result = call("export", "problem", asked, "--to", tmp_path / "models", "--store", tmp_path / "store", "--serial", "--seed", 1)
    assert result.exit_code == 0, result.output
    assert str(tmp_path / "models" / "seed-1" / "problem.json") in result.output
    assert not (tmp_path / "models" / "seed-0").exists()
    assert gr.open_exported(tmp_path / "models", 1, [ROOT]).train.inputs.shape == (40, 5)
    with pytest.raises(gr.GenRepError, match="scores"):
        call("run", asked, "--store", tmp_path / "store", "--serial")
    assert call("export", "what", "ever", "--to", tmp_path).exit_code == 2


def test_a_ledger_is_compacted_and_answers_the_same(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "store", tmp_path / "store")
    before = gr.open_run(str(tmp_path / "store"), "toy")
    asked, parts = before.judge()["deletion"], len(before.store.ledger(before.plan.keys.training).parts())
    output = call("ledger", "compact", "toy", "--store", tmp_path / "store").output
    assert f"{parts} parts -> 1" in output
    after = gr.open_run(str(tmp_path / "store"), "toy")
    assert len(after.store.ledger(after.plan.keys.training).parts()) == 1 < parts
    assert after.judge()["deletion"].equals(asked)


def test_a_stopping_rule_is_planned_at_its_worst_and_told_by_status(tmp_path: Path) -> None:
    asked = experiment_file(tmp_path / "stop.yaml", methods=["ntk-final/surrogate", "random"])
    text = asked.read_text().replace("seeds: 2", "stop: {half_width: 0.000001, min_seeds: 2, max_seeds: 3}")
    asked.write_text(text + "tune: {parameter: lambda, values: [0.1, 1.0], seeds: 1}\n")
    planned = call("plan", asked, "--store", tmp_path / "store").output
    assert "worst case, 3 seeds: the run stops after at least 2 seeds" in planned
    assert "3 models" in planned
    assert "lambda is tuned: 2 values on 1 seeds" in planned
    asked.write_text(text)
    output = call("run", asked, "--store", tmp_path / "store", "--serial").output
    assert "after 2 seeds, target ± 1e-06" in output
    assert "not reached with all 3 seeds" in call("status", "toy", "--store", tmp_path / "store").output
    told = json.loads(call("status", "toy", "--store", tmp_path / "store", "--json").output)["choices"]["stop"]
    assert [found["seeds"] for found in told["rounds"]] == [2, 3]
