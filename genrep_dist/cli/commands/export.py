"""`genrep export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from genrep_dist.cli.interrupt import interruptible
from genrep_dist.cli.options import CodeOption, ProfileOption, SetOption, StoreOption, load, search_path
from genrep_dist.cli.terminal import make_console, write_line


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

        loaded = load(experiment, set_, profile)
        if seed:
            loaded = loaded.with_fixed_seeds(seeds=list(seed))
        with interruptible(make_console(stderr=True)) as progress:
            trained = train_originals(loaded, store, serial=serial, progress=progress, search_path=search_path(experiment))
        paths = export_problem(trained, to)
    else:
        raise typer.BadParameter("genrep export NAME, genrep export truth NAME, or genrep export problem EXPERIMENT")
    for path in paths:
        write_line(path)
