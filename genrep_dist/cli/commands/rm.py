"""`genrep rm`."""

from __future__ import annotations

from genrep_dist.cli.options import JsonOption, NameArgument, StoreOption, YesOption
from genrep_dist.cli.terminal import make_console, print_json


def rm(name: NameArgument, store: StoreOption = "store", yes: YesOption = False, as_json: JsonOption = False) -> None:
    """Delete the record and the results of an experiment. Without --yes it only shows what it would delete.

    What it shares with other experiments stays; `genrep gc` deletes what no experiment refers to. Runs in MLflow stay. An active run is
    refused.
    """
    from genrep_dist.cli.display import show_removals
    from genrep_dist.runner.cleanup import experiment_files, remove_experiment
    from genrep_dist.store.catalogue import open_existing

    opened = open_existing(store)
    console = make_console()
    found = remove_experiment(opened, name, message=console.print) if yes else experiment_files(opened, name)
    if as_json:
        print_json({"deleted": yes, "removed": [vars(one) for one in found]})
        return
    show_removals(console, f"{name} in {opened.uri}", found, deleted=yes)
