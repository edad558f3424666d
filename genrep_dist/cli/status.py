"""The progress of a run, read from its store only."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from genrep_dist.cli.display import seconds_text, table
from genrep_dist.cli.terminal import moves_cursor
from genrep_dist.filesystem import FOLDER, what_is_at
from genrep_dist.results import Run, open_run
from genrep_dist.runner.heartbeat import RunState, read_state
from genrep_dist.runner.quarantine import describe_units, read_quarantine
from genrep_dist.store import Store
from genrep_dist.store.paths import ExperimentPaths
from genrep_dist.store.records import reading_record
from genrep_dist.store.uris import parse_uri
from genrep_dist.workflow.stages import STAGES
from genrep_dist.workflow.status import StageStatus, stage_status


def status_record(store: str, name: str, experiment: str | None = None) -> dict[str, Any]:
    """Plain data for JSON. ``experiment``: see :func:`genrep_dist.results.open_run`."""
    opened = open_run(store, name, experiment=experiment)
    state = read_state(opened.store, name)
    finished = opened.manifest() is not None
    return {
        "experiment": name,
        "finished": finished,
        "stages": [{"stage": s.name, "done": s.done, "total": s.total, "exact": s.exact} for s in _stages(opened, state)],
        "choices": opened.choices,
        "last_run": None if state is None else {**state.record, "state": state.state, "silent_seconds": state.silent_seconds},
        # A finished run has since done what was in quarantine.
        "quarantine": [] if finished else read_quarantine(opened.store, name),
    }


def show_status(console: Console, store: str, name: str, every_seconds: float | None = None, experiment: str | None = None) -> None:
    """Print the status. With ``every_seconds``, wait until the run begins, and refresh it until the run ends."""
    if every_seconds is not None:
        wait_for_record(console, store, name, every_seconds)
    shown, running = _status(store, name, experiment)
    if every_seconds is None or not running:
        console.print(shown)
        return
    with Live(shown, console=console, auto_refresh=False) if moves_cursor(console) else nullcontext() as live:
        while True:
            if live is None:
                console.print(shown)
            else:
                live.update(shown, refresh=True)
            if not running:
                return
            time.sleep(every_seconds)
            shown, running = _status(store, name, experiment)


def wait_for_record(console: Console, store: str, name: str, every_seconds: float) -> None:
    """Wait until the store has a record of the experiment ``name``. Says so once."""
    if _has_record(store, name):
        return
    console.print(f"waiting for {name} to begin in {parse_uri(store)}; Ctrl-C ends this", markup=False, highlight=False, soft_wrap=True)
    while not _has_record(store, name):
        time.sleep(every_seconds)


def _has_record(store: str, name: str) -> bool:
    """Whether the store exists and has a record of the experiment. Creates no folder."""
    place = parse_uri(store)
    if isinstance(place, Path) and what_is_at(place) != FOLDER:
        return False
    return Store(store).objects.exists(ExperimentPaths(name).record)


def _status(store: str, name: str, experiment: str | None) -> tuple[Group, bool]:
    """The text, and whether the run is running."""
    # Opened each time: a run that is tuned, or that has a stopping rule, changes its record.
    opened = open_run(store, name, experiment=experiment)
    state = read_state(opened.store, name)
    stop = opened.choices.get("stop")
    with reading_record(opened.store.objects, ExperimentPaths(name).record):
        notes = [] if stop is None else [stop_text(stop)]
    if opened.manifest() is not None:
        notes.append("finished: results are published")
    else:
        quarantine = read_quarantine(opened.store, name)
        if quarantine:
            notes.append(f"in quarantine, not retried without --retry-failed: {len(quarantine):,} units: {describe_units(quarantine)}")
        if state is None or state.state != "running":
            notes.append("not finished: run the same command again to continue")
    if not opened.can_plan:
        notes.append("the run has kernels, importances or metrics that are not known here: its stages are as it last counted them")
    title = f"{name} in {opened.store.uri}"
    return status_text(title, _stages(opened, state), state, notes), state is not None and state.state == "running"


def _stages(opened: Run, state: RunState | None) -> list[StageStatus]:
    """The stages in the store; those of the last run's own record, where its plan cannot be read."""
    if opened.can_plan:
        with reading_record(opened.store.objects, ExperimentPaths(opened.name).record):
            return stage_status(opened.plan, opened.store)
    counts = {} if state is None else state.record["stages"]
    order = dict.fromkeys((*(name for name in STAGES if name in counts), *counts))
    return [StageStatus(name, counts[name]["done"] + counts[name]["left"], counts[name]["done"]) for name in order]


def status_text(title: str, stages: Sequence[StageStatus], state: RunState | None, notes: Sequence[str] = ()) -> Group:
    """The progress of a run: its stages in the store, and the last recorded state of its process."""
    live = {} if state is None or state.state != "running" else state.record["stages"]
    rows = []
    for stage in stages:
        now = live.get(stage.name, {})
        seconds_left = now.get("seconds_left")
        rows.append(
            (
                stage.name,
                f"{stage.done:,}",
                ("" if stage.exact else "at most ") + f"{stage.total:,}",
                f"{100 * (1 - stage.missing_share):.0f} %",
                f"{now['running']:,}" if now else "-",
                f"{stage.total - stage.done:,}",
                f"{now['rate']:,.1f}/s" if now and now["rate"] else "-",
                seconds_text(seconds_left) if seconds_left else "-",
            )
        )
    columns = ("stage", "done", "of", "share", "running", "left", "rate", "time left")
    lines = [*(state_lines(state) if state is not None else []), *notes]
    return Group(table(title, columns, rows, numeric=range(1, 8)), *(Text(line) for line in lines))


def state_lines(state: RunState) -> list[str]:
    """The state of the run's process, and its failures."""
    record, silent = state.record, seconds_text(state.silent_seconds)
    where = f"process {record['pid']} on {record['host']}"
    texts = {
        "running": f"running: {where}, last heartbeat {silent} ago",
        "dead": f"dead, or unable to reach the store: {where} was running, its last heartbeat was {silent} ago",
        "stopped": f"stopped on request {silent} ago ({where})",
        "failed": f"failed {silent} ago ({where}): {record['error']}",
        "finished": f"ended {silent} ago ({where})",
    }
    lines = [texts[state.state]]
    part = record.get("part", "")
    if part and state.state == "running":
        lines.append(f"{part}. The columns running, rate and time left are of this value, the others of the reported seeds")
    elif part:
        lines.append(f"it had come to: {part}")
    failures = record["failures"]
    if failures["by_kind"]:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(failures["by_kind"].items()))
        lines.append(f"failed units: {kinds}" + "".join(f"; the first: {label}" for label in failures["named"][:1]))
    if failures["retried"]:
        lines.append(f"retried attempts: {failures['retried']:,}")
    return lines


def stop_text(stop: dict[str, Any]) -> str:
    """Progress of a stopping rule towards its interval."""
    if not stop["rounds"]:
        return (
            f"{stop['metric']}: first round, {stop['min_seeds']} seeds; target ± {stop['half_width']:g}, at most {stop['max_seeds']} seeds "
            "(projected after the first round)"
        )
    last = stop["rounds"][-1]
    known = f"{stop['metric']}: ± {last['half_width']:.3g} ({last['method']}) after {last['seeds']} seeds, target ± {stop['half_width']:g}"
    if stop["reached"]:
        return f"{known}: reached"
    if last["seeds"] >= stop["max_seeds"]:
        return f"{known}: not reached with all {stop['max_seeds']} seeds"
    return f"{known}; about {last['projected']} seeds projected, at most {stop['max_seeds']}"
