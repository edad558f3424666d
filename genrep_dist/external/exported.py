"""The files of `genrep export problem`: the models of an experiment and their data, for any tool to score."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from genrep_dist.core.inputs import InputForm, form_of, input_leaves, unpacked
from genrep_dist.core.losses import Loss, get_loss
from genrep_dist.core.tensors import numpy_array
from genrep_dist.errors import ConfigError, CorruptError, MethodError, ProblemError
from genrep_dist.external.archives import load_tensors, read_npz
from genrep_dist.external.contents import require_real
from genrep_dist.limits import read_json
from genrep_dist.problems.checks import build_start
from genrep_dist.problems.functions import problem_recipe
from genrep_dist.problems.load import load_problem, source_digest
from genrep_dist.problems.named_code import exported_folders
from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.problems.tables import data_digest

FORMAT = "genrep-problem/1"
"""Version of the files, written to problem.json."""
FORM = "inputs_form"
"""The array of an .npz file that says how inputs of several tensors are held: JSON in UTF-8."""


class SavedCheckpoint(NamedTuple):
    """The parameters after ``epoch`` epochs, and the learning ``rate`` of the step that starts from them."""

    epoch: int
    rate: float
    state: dict[str, Tensor]


@dataclass(frozen=True)
class Exported:
    """One seed's trained model in evaluation mode, its data and what is to be explained.

    ``train`` (N samples) has the labels that were trained on. ``test_points`` are the M samples of ``test`` (T samples) that this
    seed explains, ``targets`` (M,) int64 the output whose raw logit is explained for each, or the class that another kind of target is
    about. ``target``: what is explained, as plain data (kind, output, group, description). ``identity``: content address of the model.
    ``checkpoints`` are in ascending order; the last one is the model itself. A ``model`` that is no torch module is as ``model()`` builds
    it, not trained, and without checkpoints.
    """

    seed: int
    identity: str
    model: Any
    loss: Loss
    recipe: Recipe
    train: Dataset
    test: Dataset
    test_points: Dataset
    targets: Tensor
    checkpoints: tuple[SavedCheckpoint, ...]
    target: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path, scores: Tensor | npt.NDArray[Any], transposed: bool = False) -> None:
        """Write ``scores`` with ids and identity to an .npz file for an experiment's ``external`` section, with the layout plain.

        Shape (N, M) or (N, T); with ``transposed`` (M, N) or (T, N). Rows and columns are in the order of the data here. bfloat16
        is written as float32. MethodError for another shape and for complex numbers, ConfigError for another suffix.
        """
        path = Path(path)
        if path.suffix != ".npz":
            raise ConfigError(
                "scores are saved as .npz",
                where=str(path),
                expected="a name that ends in .npz",
                got=path.suffix or "no suffix",
                remedy=f"save to {path.with_suffix('.npz').name}, or write the file yourself",
            )
        values = numpy_array(scores)
        require_real(values.dtype, str(path))
        values = values.T if transposed else values
        ids = {len(samples.ids): samples.ids for samples in (self.test, self.test_points)}
        num_train = len(self.train.ids)
        if values.ndim != 2 or len(values) != num_train or values.shape[1] not in ids:
            fits = values.ndim == 2 and values.shape[1] == num_train and len(values) in ids
            raise MethodError(
                "the shape of the scores does not fit",
                where=str(path),
                expected=f"{num_train} training samples x {' or '.join(map(str, sorted(ids)))} test samples",
                got=f"shape {tuple(values.shape)}" + (" after transposing" if transposed else ""),
                remedy=f"pass transposed={not transposed}" if fits else "score exactly this data",
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        test_ids = ids[values.shape[1]].numpy()
        np.savez(path, scores=values, train_ids=self.train.ids.numpy(), test_ids=test_ids, model=np.array(self.identity))


def open_exported(folder: str | Path, seed: int, search_path: Sequence[str | Path] = ()) -> Exported:
    """Open one seed of the files that `genrep export problem` wrote.

    A problem that does not ship is searched in ``search_path``, and in its folder at the time of the export if this user has exported it
    on this machine. An export from elsewhere runs no code but that of ``search_path``: ProblemError if the class is not defined there.
    ConfigError if the seed was not exported, ProblemError if the problem's code has changed, CorruptError if the data have.
    """
    place = Path(folder) / f"seed-{seed}"
    record = _read_record(place, Path(folder))
    declared = record["problem"]
    problem = load_problem(declared["name"], declared["options"], exported_folders(declared, search_path, str(place / "problem.json")))
    found = source_digest(problem, declared["options"])
    if found != declared["source"]:
        raise ProblemError(
            "the problem's code differs from the exported one",
            where=str(place),
            expected=f"source digest {declared['source']}",
            got=found,
            remedy="restore that code (search_path names its folder), or export the problem again",
        )
    train, test = read_samples(Path(folder), "train"), read_samples(Path(folder), "test")
    if data_digest(train, test) != record["data"]:
        raise CorruptError(
            "the data differ from the exported ones",
            where=str(Path(folder) / "data"),
            expected=f"digest {record['data']}",
            got=data_digest(train, test),
            remedy="export the problem again",
        )
    checkpoints = tuple(SavedCheckpoint(c["epoch"], c["rate"], _read_state(place / c["file"])) for c in record["checkpoints"])
    model = build_start(problem)
    if isinstance(model, nn.Module):
        model.load_state_dict(_read_state(place / "final.pt"))
        model.eval()
    rows = {sample: row for row, sample in enumerate(test.ids.tolist())}
    points = torch.tensor([rows[sample] for sample in record["test_ids"]], dtype=torch.int64)
    return Exported(
        seed=seed,
        identity=record["model"],
        model=model,
        loss=get_loss(problem.loss),
        # Of the problem's own class; the experiment may have changed the fields of every recipe.
        recipe=replace(problem_recipe(problem), **{part.name: record["recipe"][part.name] for part in fields(Recipe)}),
        train=_for_users(train),
        test=_for_users(test),
        test_points=_for_users(Dataset(test.inputs[points], test.targets[points], test.ids[points])),
        targets=torch.tensor(record["targets"], dtype=torch.int64),
        checkpoints=checkpoints,
        target=record.get("target", {}),
    )


def write_samples(folder: Path, name: str, samples: Dataset) -> Path:
    """Write data/<name>.npz with inputs (N, ...), targets and ids in their own dtypes. ``name`` is 'train' or 'test'. Returns the path.

    Inputs of several tensors are arrays such as ``inputs.input_ids``.
    """
    path = folder / "data" / f"{name}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **_arrays(samples))
    return path


def read_samples(folder: Path, name: str) -> Dataset:
    """The dataset that :func:`write_samples` wrote."""
    path = folder / "data" / f"{name}.npz"
    found = _foreign(path, read_npz)
    tensors = {name: torch.from_numpy(values) for name, values in found.items() if name != FORM}
    if FORM in found:
        form = _foreign(path, lambda _: InputForm.from_record(json.loads(found[FORM].tobytes())))
        tensors["inputs"] = form.pack(form.build([tensors[name] for name in _names(form)]))
    return Dataset(*(tensors[part] for part in Dataset._fields))


def _arrays(samples: Dataset) -> dict[str, Any]:
    """Arrays by name: inputs of several tensors as one array for each, and their form."""
    arrays: dict[str, Any] = {part: tensor.cpu().numpy() for part, tensor in samples._asdict().items()}
    form = form_of(samples.inputs)
    if form is None:
        return arrays
    del arrays["inputs"]
    leaves = zip(_names(form), input_leaves(samples.inputs.cpu()), strict=True)
    record = np.frombuffer(json.dumps(form.to_record()).encode(), np.uint8)
    return arrays | {name: leaf.numpy() for name, leaf in leaves} | {FORM: record}


def _names(form: InputForm) -> list[str]:
    """Names of a form's arrays, such as ``inputs.input_ids``."""
    return [re.sub(r"\['?(.*?)'?\]", r".\1", one.place) for one in form.fields]


def _for_users(samples: Dataset) -> Dataset:
    return samples._replace(inputs=unpacked(samples.inputs))


def _read_record(place: Path, folder: Path) -> dict[str, Any]:
    path = place / "problem.json"
    if not path.is_file():
        there = sorted(found.parent.name for found in folder.glob("seed-*/problem.json"))
        raise ConfigError(
            "this seed was not exported",
            where=str(folder),
            expected=f"{place.name}/problem.json",
            got=", ".join(there) or "no exported problem",
            remedy="genrep export problem EXPERIMENT --to FOLDER",
        )
    record: dict[str, Any] = _foreign(path, read_json)
    if record.get("format") != FORMAT:
        raise ConfigError(
            "the files were exported by another version",
            where=str(path),
            expected=FORMAT,
            got=str(record.get("format")),
            remedy="export the problem again",
        )
    return record


def _read_state(path: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = _foreign(path, load_tensors)
    return state


def _foreign(path: Path, read: Callable[[Path], Any]) -> Any:
    """What ``read`` finds in a file. CorruptError for whatever it raises."""
    try:
        return read(path)
    except Exception as error:  # libraries raise anything for a damaged file
        raise CorruptError(
            "an exported file cannot be read",
            where=str(path),
            expected="a complete file of plain arrays, without Python objects",
            got=f"{type(error).__name__}: {error}".splitlines()[0][:500],
            remedy="export the problem again",
        ) from error
