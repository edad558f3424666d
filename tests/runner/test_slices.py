"""A run in slices of time: each ends cleanly, says what is left, and all together compute what one run computes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer import BadParameter
from typer.testing import CliRunner

import genrep_dist as gr
from genrep_dist.cli.main import app
from genrep_dist.cli.options import parse_seconds
from genrep_dist.errors import OutOfTimeError
from genrep_dist.runner.heartbeat import read_state
from genrep_dist.runner.progress import NoProgress, ProgressCounter
from tests.experiments import experiment, experiment_file

FIELDS: dict[str, Any] = {"methods": ["ntk-final/surrogate", "random"], "lds": {"subsets": 12}}


class Units(NoProgress):
    """A clock that counts the units that have ended."""

    def __init__(self) -> None:
        self.ended = 0.0

    def advance(self, units: int, statistics: Mapping[str, float]) -> None:
        self.ended += units


def one_slice(store: Path, units: int) -> gr.Run:
    clock = Units()
    counter = ProgressCounter(clock, clock=lambda: clock.ended)
    return gr.run(experiment(**FIELDS), str(store), serial=True, progress=counter, max_seconds=units)


def test_slices_compute_what_one_run_computes(tmp_path: Path) -> None:
    whole = gr.run(experiment(**FIELDS), str(tmp_path / "whole"), serial=True)
    said: list[str] = []
    while len(said) < 200:
        try:
            sliced = one_slice(tmp_path / "sliced", 4)
            break
        except OutOfTimeError as error:
            said.append(str(error))
            state = read_state(whole.store.__class__(str(tmp_path / "sliced")), "toy", watch=False)
            assert state is not None
            assert state.state == "stopped"
    assert len(said) > 5
    assert "left: train" not in said[-1]
    assert "retrain at most" in said[0]
    assert "retrain " in said[-1]
    for name in ("deletion", "points"):
        assert getattr(sliced, name)().collect().equals(getattr(whole, name)().collect()), name
    rows = [run.store.ledger(run.plan.keys.training).scan().select(pl.len()).collect().item() for run in (whole, sliced)]
    assert rows[0] == rows[1], "nothing was trained twice"


def test_the_command_says_what_is_left_and_how_to_go_on(tmp_path: Path) -> None:
    toy = experiment_file(tmp_path / "toy.yaml", **FIELDS)
    command = ["run", str(toy), "--serial", "--store", str(tmp_path / "store")]
    stopped = CliRunner().invoke(app, [*command, "--for", "0.001s"])
    assert stopped.exit_code == 75, stopped.output
    assert "the time of this run is over; done and kept: train 0 of 2; left: train 2" in stopped.output
    assert "to resume: " in stopped.output
    done = CliRunner().invoke(app, [*command, "--for", "1h"])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(("text", "seconds"), [("40m", 2400), ("1h30m", 5400), ("1.5h", 5400), ("90", 90), ("2d", 172_800), ("1m5s", 65)])
def test_times(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-5m", "m", "5 parsecs", "nan", "inf", "30m1h", "1e3", "1h30"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(BadParameter, match="40m"):
        parse_seconds(text)


def test_a_slice_that_ends_while_values_are_tried_says_which_value_it_was(tmp_path: Path) -> None:
    tune = {"parameter": "lambda", "values": [10.0, 0.01], "seeds": [7]}
    toy = experiment_file(tmp_path / "toy.yaml", methods=["ntk-final/surrogate", "random"], seeds=1, tune=tune)
    stopped = CliRunner().invoke(app, ["run", str(toy), "--serial", "--store", str(tmp_path / "store"), "--for", "0.001s"])
    assert stopped.exit_code == 75, stopped.output
    words = " ".join(stopped.output.split())
    assert "tuning, 1 of 2: surrogate.lambda = 10.0" in words
    assert "left: train 1" in words
    assert "of this value alone" in words
    told = CliRunner().invoke(app, ["status", "toy", "--store", str(tmp_path / "store")]).output
    assert "it had come to: tuning, 1 of 2: surrogate.lambda = 10.0" in told
    gr.run(toy, str(tmp_path / "store"), serial=True)
    assert "it had come to" not in CliRunner().invoke(app, ["status", "toy", "--store", str(tmp_path / "store")]).output
