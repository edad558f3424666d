"""Data sets of other libraries as tensors: a torch ``Dataset`` or a Hugging Face ``datasets.Dataset``, row by row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from genrep_dist.errors import GenRepError, ProblemError, describe_error

TARGETS = ("labels", "label")
IDS = ("ids", "id")


def is_collection(data: object) -> bool:
    """Whether an object is a data set that is indexed: with ``__len__`` and ``__getitem__``, and no tensor, tuple, list or dictionary."""
    indexed = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    return indexed and not isinstance(data, Tensor | tuple | list | Mapping | str | bytes)


def collected(data: Any, collate: Any, where: str) -> tuple[Any, Any, Any]:
    """All rows of a data set as (inputs, targets, ids).

    ``collate(rows)`` makes a batch of a list of rows, by default torch's ``default_collate``: (inputs, targets), (inputs, targets, ids), or
    a dictionary in which ``labels`` or ``label`` are the targets, ``ids`` or ``id`` the ids, and all else inputs. It is called once, so
    that it may pad to the longest row. Without ids the rows are numbered. ProblemError for anything else, and where it fails.
    """
    try:
        rows = [data[position] for position in range(len(data))]
        batch: object = default_collate(rows) if collate is None else collate(rows)
    except GenRepError:
        raise
    except Exception as error:
        raise ProblemError(
            "the rows of a data set cannot be made one batch",
            where=where,
            expected="rows that torch.utils.data.default_collate can stack, or a problem with collate(rows)",
            got=describe_error(error),
            remedy="define collate(self, rows) in the problem, which pads and stacks a list of rows: genrep_dist.pad_rows",
        ) from error
    if isinstance(batch, Mapping):
        rest = dict(batch)
        targets, ids = (next((rest.pop(name) for name in names if name in rest), None) for names in (TARGETS, IDS))
        inputs: Any = rest
    elif isinstance(batch, tuple | list) and len(batch) in (2, 3):
        inputs, targets, ids = (*batch, None) if len(batch) == 2 else batch
    else:
        inputs, targets, ids = None, None, None
    if targets is None or inputs is None:
        raise ProblemError(
            "the rows of a data set have no targets",
            where=where,
            expected="(input, target) or (input, target, id), or a dictionary with 'labels' or 'label'",
            got=f"a dictionary with {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else type(batch).__name__,
            remedy="return them from collate(self, rows) of the problem",
        )
    return inputs, targets, torch.arange(len(rows)) if ids is None else ids
