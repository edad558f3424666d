"""Compute attributions of a finished run's models for other test points, without training. Writes phi (N, M) and its row ids (.npz).

ray job submit --working-dir . -- python jobs/explain.py demo ntk-final/tracking --store /shared/store --inputs new.npy --to /shared/phi.npz
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import numpy.typing as npt

from genrep_dist.cli.terminal import accept_any_text
from genrep_dist.errors import ConfigError, GenRepError
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


def main(given: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("method")
    parser.add_argument("--store", default="store")
    parser.add_argument("--seed", type=int, default=0)
    points = parser.add_mutually_exclusive_group(required=True)
    points.add_argument("--inputs", type=Path, help="a .npy file (M, ...) with inputs like the problem's")
    points.add_argument("--test-ids", type=int, nargs="+", help="ids of samples of the test set")
    parser.add_argument("--to", type=Path, required=True)
    asked = parser.parse_args(given)
    inputs = None if asked.inputs is None else read_inputs(asked.inputs)
    run = open_run(asked.store, asked.name)
    phi = run.explain(asked.method, asked.seed, inputs=inputs, test_ids=asked.test_ids)
    np.savez(asked.to, phi=phi, train_ids=run.train_ids(asked.seed))
    print(f"{asked.to}: phi {phi.shape[0]:,} x {phi.shape[1]}, {asked.method}, seed {asked.seed}")


if __name__ == "__main__":
    accept_any_text()
    try:
        main(sys.argv[1:])
    except GenRepError as error:
        sys.exit(f"error: {error}")
