"""`genrep doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

from genrep_dist.cli.options import CodeOption, JsonOption, NameArgument, SetOption, StoreOption
from genrep_dist.cli.terminal import make_console, print_json


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
        print_json({"experiment": name, "worst": worst, "findings": plain})
    else:
        from genrep_dist.cli.display import show_findings

        show_findings(make_console(), f"{name} in {store}", findings, every=every)
    if worst == "red":
        raise typer.Exit(1)
