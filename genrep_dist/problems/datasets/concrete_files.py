"""UCI's table of concrete mixtures, from a file of the user's."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt

from genrep_dist.errors import ProblemError
from genrep_dist.problems.datasets.cache import read_bytes
from genrep_dist.problems.datasets.fetching import Files, fetch_to_cache

TABLE = "concrete.data"
NUM_COLUMNS = 9


def fetch_concrete(source: str = "", cache_dir: Path | None = None) -> Path:
    """Bring the table into ``<cache>/concrete`` and return that folder.

    ``source``: the path of UCI's table as text, one mixture a line, nine numbers with white space between: eight inputs, then the strength
    in MPa; or of a folder with ``concrete.data``. ProblemError for any other file.
    """

    def from_file(path: Path) -> tuple[Files, str]:
        data = read_bytes(path)
        parse_table(data, str(path))
        return {TABLE: data}, path.name

    return fetch_to_cache(
        "concrete",
        source,
        cache_dir,
        from_folder=lambda folder: from_file(folder / TABLE)[0],
        from_file=from_file,
        paths="a file of nine numbers a line",
        remedy="download the table of https://archive.ics.uci.edu/dataset/165 as text (CC BY 4.0) and name its path: --from concrete.data",
    )


def parse_table(data: bytes, where: str) -> npt.NDArray[np.float64]:
    """The table (rows, 9) of the file's text. ProblemError, with the line, for what is not nine finite numbers a line."""
    try:
        lines = [line.split() for line in io.StringIO(data.decode("ascii")) if line.strip()]
        wrong = [number for number, words in enumerate(lines, start=1) if len(words) != NUM_COLUMNS]
        table = np.array(lines if not wrong else [], dtype=np.float64)
    except ValueError as error:  # UnicodeDecodeError too
        raise _wrong_table(where, f"{type(error).__name__}: {error}") from error
    if wrong:
        raise _wrong_table(where, f"{len(lines[wrong[0] - 1])} words in row {wrong[0]}")
    if len(table) < 2 or not np.isfinite(table).all():
        raise _wrong_table(where, f"{len(table)} rows" if len(table) < 2 else "NaN or Inf")
    return table


def _wrong_table(where: str, got: str) -> ProblemError:
    return ProblemError("this is not the table of concrete mixtures", where=where, expected="two lines or more of nine numbers", got=got)
