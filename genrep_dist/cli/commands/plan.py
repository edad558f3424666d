"""`genrep plan`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from genrep_dist.cli.options import ExperimentArgument, JsonOption, ProfileOption, SetOption, StoreOption, load, search_path
from genrep_dist.cli.terminal import make_console, print_json

if TYPE_CHECKING:
    from genrep_dist.config import Experiment


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
    show_dry_run(load(experiment, set_, profile), store, search_path(experiment), probe=probe, address=address, as_json=as_json)


def show_dry_run(
    experiment: Experiment,
    store: str,
    folders: tuple[str, ...],
    *,
    probe: bool = True,
    address: str | None = None,
    as_json: bool = False,
) -> None:
    """Print what a run would do. Nothing is computed."""
    if address is not None:
        from genrep_dist.executors.cluster_address import check_form

        check_form(address)
    from genrep_dist.runner.dry_run import dry_run, dry_run_of
    from genrep_dist.store import Store
    from genrep_dist.workflow.known_plans import KnownPlan

    opened = Store(store)
    opened.objects.check_access()
    known = KnownPlan(experiment)
    plan = None if probe else known.read()
    if plan is not None:
        found = dry_run_of(plan, opened, address=address)
    else:
        from genrep_dist.workflow.prepare import prepare

        prepared = prepare(experiment, opened, folders)
        known.keep(prepared)
        found = dry_run(prepared, probe=probe, address=address)
    if as_json:
        print_json(found.plain())
        return
    from genrep_dist.cli.display import show_plan

    show_plan(make_console(), found)
