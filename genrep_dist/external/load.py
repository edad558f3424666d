"""Scores that another tool computed, read and checked before anything is trained."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from genrep_dist.config import json_digest
from genrep_dist.config.score_layouts import SCORE_LAYOUTS
from genrep_dist.config.sections import ExternalSection
from genrep_dist.errors import ConfigError, GenRepError, MethodError
from genrep_dist.external.assemble import assemble
from genrep_dist.external.formats import holds_all_seeds, read_scores, sidecar, unreadable
from genrep_dist.external.locate import locate

Ids = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ExternalScores:
    """Scores of one seed's model, which were checked.

    ``digest``: sha256 of the bytes that were read and of the section that describes them. ``verified``: the scores name exactly the
    experiment's model. ``source``: the file.
    """

    digest: str
    verified: bool
    source: str
    _read: Callable[[], Scores]
    _current_digest: Callable[[], str]

    @property
    def phi(self) -> Scores:
        """Scores (N, M) float64: rows in the order of the training ids, columns the seed's test points.

        A positive score raises the explained number.
        Read at each access, so that the scores of no two seeds are held at once. ConfigError if the file has changed since it was checked.
        """
        found = self._read()
        if self._current_digest() != self.digest:
            raise ConfigError(
                "a file of scores has changed since it was checked",
                where=self.source,
                expected="the bytes that were checked",
                got="other bytes",
                remedy="run the same command again when the file is complete",
            )
        return found


def load_external(
    name: str,
    section: ExternalSection,
    folders: Sequence[Path],
    *,
    seeds: Sequence[int],
    models: Mapping[int, str],
    train_ids: Ids,
    test_ids: Ids,
    positions: Mapping[int, Sequence[int]],
) -> dict[int, ExternalScores]:
    """Read and check the scores ``name`` of every seed.

    ``section.path`` is searched in ``folders``. ``models``: content address of each seed's model. ``train_ids`` (N,), ``test_ids``
    (T,): ids of all samples. ``positions``: rows of the test set that each seed explains (M,).

    Raises ConfigError for files that do not exist or cannot be read, MethodError for contents that do not fit (shape, dtype, ids,
    another model), NonFiniteError for NaN and Inf. Memory: one file's scores of the seed's test points at a time.
    """
    located = locate(name, section, folders, seeds)
    if isinstance(located, Path):
        if len(seeds) > 1 and not holds_all_seeds(located, section):
            raise ConfigError(
                "one file cannot hold the scores of several seeds",
                where=f"external.{name}.path: {located}",
                expected=f"a file for each of {len(seeds)} seeds, or a Parquet table of pairs with a column 'seed'",
                got="one file",
                remedy="set path to a folder, or to a template with {seed}",
            )
        located = dict.fromkeys(seeds, located)
    loaded = {}
    for seed, path in ((seed, located[seed]) for seed in seeds):
        model = read_scores(path, section, seed).model
        verified = _check_model(f"external.{name}, seed {seed}: {path}", section, path, model, seed, models)
        read = partial(_assembled, path, section, seed, train_ids, test_ids, positions[seed])
        # The contents are checked here, and read again when they are used. The digest comes later: a sparse file may claim any size.
        read()
        loaded[seed] = ExternalScores(_digest(path, section), verified, str(path), read, partial(_digest, path, section))
    return loaded


def _assembled(path: Path, section: ExternalSection, seed: int, train_ids: Ids, test_ids: Ids, positions: Sequence[int]) -> Scores:
    """Scores (N, M) of one file, in the order of the experiment's samples."""
    contents = read_scores(path, section, seed)
    try:
        return assemble(path, contents, section.positive_raises, train_ids, test_ids, positions)
    except GenRepError:
        raise
    except Exception as error:  # arrays on disk are read here
        raise unreadable(path, error) from error


def _check_model(where: str, section: ExternalSection, path: Path, model: str | None, seed: int, models: Mapping[int, str]) -> bool:
    """Whether the scores name the experiment's model. MethodError if they name another, or none without ``unverified``."""
    if model == models[seed]:
        return True
    if model is None and section.unverified:
        return False
    expected = f"the model {models[seed]}"
    if model is None:
        raise MethodError(
            "scores do not name the model that they belong to",
            where=where,
            expected=expected,
            got="no model in the file or in a sidecar",
            remedy=f'save them with Exported.save; or write {{"model": "..."}} of the export\'s problem.json to {sidecar(path).name}; '
            "or set unverified: true, which is shown in the report",
        )
    other = next((other for other, address in models.items() if address == model), None)
    raise MethodError(
        "scores belong to another model" if other is None else f"scores belong to the wrong seed: seed {other}",
        where=where,
        expected=expected,
        got=model,
        remedy="export the problem again and score these models: data, recipe, code or seed differ"
        if other is None
        else "check the names of the files",
    )


def _digest(path: Path, section: ExternalSection) -> str:
    """sha256 of all bytes of a file or folder, of its sidecar, and of the section and its layout, but not of the path."""
    layout = SCORE_LAYOUTS.get(section.layout)
    declared = [section.model_dump(mode="json", exclude={"path"}), layout.key, layout.transposed]
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    found = [[file.relative_to(path).as_posix(), _sha256(file)] for file in files]
    beside = [_sha256(sidecar(path))] if sidecar(path).is_file() else []
    return json_digest(["external/2", declared, found, beside])


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
