"""Scores that another tool computed, read and checked before anything is trained."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from genrep_dist.config import json_digest
from genrep_dist.config.sections import ExternalSection
from genrep_dist.errors import ConfigError, MethodError
from genrep_dist.external.assemble import assemble
from genrep_dist.external.formats import holds_all_seeds, read_scores, sidecar
from genrep_dist.external.locate import locate


@dataclass(frozen=True)
class ExternalScores:
    """Scores of one seed's model.

    ``phi`` (N, M) float64, positive raises the explained logit; rows in the order of the training ids, columns the seed's test
    points. ``digest``: sha256 of the bytes that were read and of what is declared about them. ``verified``: the scores say that
    they are of exactly the model that is judged. ``source``: the file.
    """

    phi: npt.NDArray[np.float64]
    digest: str
    verified: bool
    source: str


def load_external(
    name: str,
    section: ExternalSection,
    folders: Sequence[Path],
    *,
    seeds: Sequence[int],
    models: Mapping[int, str],
    train_ids: npt.NDArray[np.int64],
    test_ids: npt.NDArray[np.int64],
    positions: Mapping[int, Sequence[int]],
) -> dict[int, ExternalScores]:
    """Read and check the scores ``name`` of every seed.

    ``section.path`` is looked for in ``folders``. ``models`` are the content addresses of the models that are judged, by seed;
    ``train_ids`` (N,) and ``test_ids`` (T,) name all samples; ``positions`` are the rows of the test set that each seed explains (M,).

    Raises ConfigError for files that are not there or cannot be read, MethodError for contents that do not fit (shape, dtype, ids,
    another model), NonFiniteError for NaN and Inf. Each names the file, the place in it, and what to do. Holds one file's scores
    of the seed's test points at a time, beside the result.
    """
    located = locate(name, section, folders, seeds)
    if isinstance(located, Path):
        if len(seeds) > 1 and not holds_all_seeds(located, section):
            raise ConfigError(
                "one file cannot hold the scores of several seeds",
                where=f"external.{name}.path: {located}",
                expected=f"a file for each of {len(seeds)} seeds, or a Parquet table of pairs with a column 'seed'",
                got="one file",
                remedy="name a folder, or a template with {seed}",
            )
        located = dict.fromkeys(seeds, located)
    return {seed: _load(name, section, located[seed], seed, models, train_ids, test_ids, positions[seed]) for seed in seeds}


def _load(
    name: str,
    section: ExternalSection,
    path: Path,
    seed: int,
    models: Mapping[int, str],
    train_ids: npt.NDArray[np.int64],
    test_ids: npt.NDArray[np.int64],
    positions: Sequence[int],
) -> ExternalScores:
    contents = read_scores(path, section, seed)
    verified = _check_model(name, section, path, contents.model, seed, models)
    phi = assemble(path, contents, section.positive_raises, train_ids, test_ids, positions)
    return ExternalScores(phi, _digest(path, section), verified, str(path))


def _check_model(name: str, section: ExternalSection, path: Path, model: str | None, seed: int, models: Mapping[int, str]) -> bool:
    """Whether the scores say that they are of the judged model. MethodError when they are of another, or do not say it."""
    if model == models[seed]:
        return True
    where = f"external.{name}, seed {seed}: {path}"
    if model is not None:
        of = next((other for other, address in models.items() if address == model), None)
        raise MethodError(
            "scores are of another model" if of is None else f"scores are of the wrong seed: seed {of}",
            where=where,
            expected=f"the model {models[seed]}",
            got=model,
            remedy="export the problem again and score these models: data, recipe, code or seed differ"
            if of is None
            else "check the names of the files",
        )
    if section.unverified:
        return False
    raise MethodError(
        "scores do not say which model they are of",
        where=where,
        expected=f"the model {models[seed]}",
        got="no word of it, neither in the file nor beside it",
        remedy=f'save them with Exported.save; or write {{"model": "..."}} of the export\'s problem.json to {sidecar(path).name}; '
        "or declare unverified: true, which the report will say",
    )


def _digest(path: Path, section: ExternalSection) -> str:
    """Sha256 of all bytes of a file or folder and of its sidecar, and of what is declared, but not of where they lie."""
    declared = section.model_dump(mode="json", exclude={"path"})
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    found = [[file.relative_to(path).as_posix(), _sha256(file)] for file in files]
    return json_digest(["external/1", declared, found, [_sha256(file) for file in _sidecars(path)]])


def _sidecars(path: Path) -> Iterator[Path]:
    if sidecar(path).is_file():
        yield sidecar(path)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
