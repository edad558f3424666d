"""Compute attributions of a finished run's models for other test points, without training. Writes phi (N, M) and its row ids (.npz).

With --top K: ids and scores (M, K) of the K strongest training samples of each sign instead, as ids_negative, scores_negative,
ids_positive and scores_positive. Several files of inputs share one pass over the features of the training samples; num_points has the
number of points of each file, whose rows follow one another.

ray job submit --working-dir . -- python jobs/explain.py demo ntk-final/tracking --store /shared/store --inputs new.npy --to /shared/phi.npz
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import numpy.typing as npt

from genrep_dist.cli.script import output_file, run_script
from genrep_dist.errors import ConfigError
from genrep_dist.filesystem import what_is_at
from genrep_dist.results import open_run


def read_inputs(path: Path) -> npt.NDArray[Any]:
    """Return the array of a .npy file."""
    try:
        inputs: npt.NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        got = f"{what_is_at(path)} ({type(error).__name__}: {error})"
        raise ConfigError("the inputs cannot be read", where=f"--inputs {path}", expected="a .npy file (M, ...)", got=got) from error
    return inputs


def joined(queries: Sequence[npt.NDArray[Any]], paths: Sequence[Path]) -> npt.NDArray[Any] | None:
    """The inputs of all files, one after the other; None for no files. ConfigError where their forms differ."""
    forms = [(query.dtype, query.shape[1:]) for query in queries]
    for path, query, form in zip(paths, queries, forms, strict=True):
        if query.ndim == 0 or form != forms[0]:
            got = f"{query.dtype} {query.shape}"
            raise ConfigError("inputs of several files differ", where=f"--inputs {path}", expected=f"the form of {paths[0]}", got=got)
    return np.concatenate(queries) if queries else None


def main(given: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("method")
    parser.add_argument("--store", default="store")
    parser.add_argument("--seed", type=int, default=0)
    points = parser.add_mutually_exclusive_group(required=True)
    points.add_argument("--inputs", type=Path, nargs="+", help=".npy files (M, ...) with inputs like the problem's")
    points.add_argument("--test-ids", type=int, nargs="+", help="ids of samples of the test set")
    parser.add_argument("--top", type=int, help="keep so many of the strongest training samples of each sign, instead of all scores")
    parser.add_argument("--to", type=Path, required=True)
    asked = parser.parse_args(given)
    output_file(asked.to)
    queries = [read_inputs(path) for path in asked.inputs or ()]
    inputs, counts = joined(queries, asked.inputs or ()), [len(query) for query in queries] or [len(asked.test_ids or ())]
    run = open_run(asked.store, asked.name)
    if asked.top is None:
        phi = run.explain(asked.method, asked.seed, inputs=inputs, test_ids=asked.test_ids)
        np.savez(asked.to, phi=phi, train_ids=run.train_ids(asked.seed), num_points=counts)
        what = f"phi {phi.shape[0]:,} x {phi.shape[1]}"
    else:
        kept = run.explain(asked.method, asked.seed, inputs=inputs, test_ids=asked.test_ids, top=asked.top)
        arrays = {f"{what}_{sign}": values for sign, pair in kept.items() for what, values in zip(("ids", "scores"), pair, strict=True)}
        np.savez(asked.to, num_points=counts, **arrays)
        what = f"the {asked.top:,} strongest samples of each sign for {sum(counts):,} points"
    print(f"{asked.to}: {what}, {asked.method}, seed {asked.seed}")


if __name__ == "__main__":
    run_script(lambda: main(sys.argv[1:]))
