"""Run several experiments in sequence, into one store. Shared networks are trained once. Options apply to all experiments.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/sweep.py a.yaml b.yaml --store /shared/store
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from genrep_dist.cli import app
from genrep_dist.cli.interrupt import OUT_OF_TIME
from genrep_dist.cli.terminal import accept_any_text
from genrep_dist.errors import GenRepError
from jobs.evaluate import arguments


def main(given: list[str]) -> int:
    """Return the exit code: 0 if all are done, the signal's if stopped, else 1. If an experiment fails, the others still run.

    With ``--for``, which each experiment has for itself, it is that of an unfinished run if none failed.
    """
    count = next((index for index, text in enumerate(given) if text.startswith("-")), len(given))
    failed: list[str] = []
    unfinished: list[str] = []
    for experiment in given[:count]:
        print(f"== {experiment}", flush=True)
        try:
            code = app(arguments([experiment, *given[count:]])[1:], standalone_mode=False) or 0
        except GenRepError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            code = 1
        if code > 128:
            return int(code)
        if code:
            (unfinished if code == OUT_OF_TIME else failed).append(experiment)
    named = "".join(f"; {what}: {', '.join(names)}" for what, names in (("failed", failed), ("out of time", unfinished)) if names)
    print(f"{count - len(failed) - len(unfinished)} of {count} experiments are done{named}")
    return 1 if failed or not count else OUT_OF_TIME if unfinished else 0


if __name__ == "__main__":
    accept_any_text()
    sys.exit(main(sys.argv[1:]))
