"""`genrep report`."""

from __future__ import annotations

from typing import Annotated

import typer

from genrep_dist.cli.options import CodeOption, JsonOption, NameArgument, SetOption, StoreOption
from genrep_dist.cli.terminal import make_console, print_json


def report(
    name: NameArgument,
    store: StoreOption = "store",
    experiment: CodeOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
    force: Annotated[bool, typer.Option("--force", help="Write it even if it would be the same.")] = False,
) -> None:
    """Write the tables, curves and report.html of a finished run again where they would differ, and show the table.

    If the run has kernels, importances or metrics that are not known here, its published files stay as they are.
    """
    from genrep_dist.cli.summary import show_summary, summary_record
    from genrep_dist.results import open_run
    from genrep_dist.results.rendered import damaged_files, is_up_to_date, published_report
    from genrep_dist.runner.track import follow_moved_store

    opened = open_run(store, name, experiment=experiment, overrides=set_ or ())
    console = make_console(stderr=as_json)
    if opened.can_plan:
        follow_moved_store(opened)
        if not force and experiment is None and is_up_to_date(opened):
            paths = published_report(opened)
            console.print("up to date: nothing that the report shows has changed; --force writes it again", markup=False, highlight=False)
        else:
            from genrep_dist.runner.publish import write_report

            paths = write_report(opened, opened.judged())
            for path in damaged_files(opened):
                damaged = f"damaged or missing: {opened.store.uri}/{path}; run the experiment again to publish it again"
                console.print(damaged, markup=False, highlight=False, soft_wrap=True)
    else:
        paths = published_report(opened)
        console.print("not written again, as the run has kernels, importances or metrics that are not known here: see --experiment")
    if as_json:
        print_json({**summary_record(opened), "files": [f"{opened.store.uri}/{path}" for path in paths]})
        return
    show_summary(console, opened)
    for path in paths:
        console.print(f"{opened.store.uri}/{path}", markup=False, highlight=False, soft_wrap=True)
