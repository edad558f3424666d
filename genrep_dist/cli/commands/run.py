"""`genrep run`."""

from __future__ import annotations

from typing import Annotated

import typer

from genrep_dist.cli.commands.plan import show_dry_run
from genrep_dist.cli.interrupt import interruptible
from genrep_dist.cli.options import ExperimentArgument, JsonOption, ProfileOption, SetOption, StoreOption, load, parse_seconds, search_path
from genrep_dist.cli.terminal import make_console, print_json


def run(
    experiment: ExperimentArgument,
    set_: SetOption = None,
    profile: ProfileOption = None,
    store: StoreOption = "store",
    address: Annotated[str | None, typer.Option(help="A running Ray cluster, for example auto.")] = None,
    serial: Annotated[
        bool, typer.Option("--serial", help="Work in this process, without Ray. Default for less than a minute of work.")
    ] = False,
    ray: Annotated[bool, typer.Option("--ray", help="Use Ray, however little work it is.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Retry units that are in quarantine.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be computed, as `genrep plan` does.")] = False,
    as_json: JsonOption = False,
    force: Annotated[bool, typer.Option("--force", help="Go on even if the doctor has red findings about the first seed.")] = False,
    for_: Annotated[
        str | None,
        typer.Option("--for", metavar="TIME", help="Begin no work after this time, such as 40m or 1h30m: exit code 75 if some is left."),
    ] = None,
) -> None:
    """Run an experiment. After an interruption or a crash, the same command resumes it.

    Before models are retrained, the doctor checks the first seed's original model. Its red findings stop the run.
    """
    max_seconds = None if for_ is None else parse_seconds(for_)
    if serial and (address or ray):
        raise typer.BadParameter(f"--serial and {'--address' if address else '--ray'} exclude each other")
    if dry_run:
        show_dry_run(load(experiment, set_, profile), store, search_path(experiment), address=address, as_json=as_json)
        return
    console = make_console(stderr=as_json)
    with interruptible(console) as progress:
        from genrep_dist.runner.run import run as run_experiment

        finished = run_experiment(
            load(experiment, set_, profile),
            store,
            serial=serial or (False if ray else None),
            address=address,
            progress=progress,
            search_path=search_path(experiment),
            retry_failed=retry_failed,
            force=force,
            max_seconds=max_seconds,
        )
    from genrep_dist.cli.summary import show_summary, summary_record

    if as_json:
        print_json(summary_record(finished))
    else:
        show_summary(console, finished)
