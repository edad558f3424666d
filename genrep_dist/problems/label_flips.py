"""Wrong labels for some training samples, which methods should find."""

from __future__ import annotations

import torch
from torch import Tensor

from genrep_dist.errors import ProblemError
from genrep_dist.problems.protocol import Dataset
from genrep_dist.seeds import derive_seed


def flip_labels(dataset: Dataset, loss_name: str, num_outputs: int, share: float, seed: int) -> tuple[Dataset, Tensor]:
    """``dataset`` with the labels of round(``share`` * N) samples replaced by another class, and which samples, bool (N,).

    Loss "logistic": targets (N,) or (N, 1) of 0 and 1, t becomes 1 - t. Loss "softmax": integer targets (N,) below C = ``num_outputs``,
    t becomes one of the C - 1 other classes with equal probability. ``loss_name`` names a shipped loss.

    Samples and new classes depend on ``seed`` and the ids only: the order of rows does not matter, and a larger share includes the
    samples of a smaller one. ``dataset`` is not changed; the result shares its inputs and ids.

    ProblemError for other losses or targets, and if no label or all labels would be flipped.
    """
    count = round(share * len(dataset.ids))
    if not 0 < count < len(dataset.ids):
        raise ProblemError(
            "this share flips no label, or all labels",
            where="problem.flip_labels.share",
            expected=f"1 to {len(dataset.ids) - 1} of {len(dataset.ids)} training samples",
            got=f"round({share} * {len(dataset.ids)}) = {count}",
        )
    _check_labels(dataset.targets, loss_name, num_outputs)
    chosen = sorted(dataset.ids.tolist(), key=lambda sample: derive_seed(seed, "flip", sample))[:count]
    flipped = torch.isin(dataset.ids, torch.tensor(chosen, dtype=torch.int64))
    targets = dataset.targets.clone()
    if loss_name == "logistic":
        targets[flipped] = 1 - targets[flipped]
    else:
        # 63 random bits modulo C - 1: equal probabilities up to C / 10^19.
        steps = [1 + derive_seed(seed, "flip class", sample) % (num_outputs - 1) for sample in dataset.ids[flipped].tolist()]
        others = (targets[flipped] + torch.tensor(steps)) % num_outputs
        targets[flipped] = others.to(targets.dtype)
    return dataset._replace(targets=targets), flipped


def _check_labels(targets: Tensor, loss_name: str, num_outputs: int) -> None:
    shown = f"{targets.dtype} {tuple(targets.shape)} from {targets.min().item()} to {targets.max().item()}"
    if loss_name == "logistic":
        fine, expected = bool(((targets == 0) | (targets == 1)).all()), "targets 0 and 1"
    elif loss_name == "softmax":
        whole = targets.dim() == 1 and not targets.is_floating_point() and num_outputs > 1
        fine = whole and bool(((targets >= 0) & (targets < num_outputs)).all())
        expected = f"integer class numbers (N,) below {num_outputs}"
    else:
        fine, expected, shown = False, "the loss 'logistic' or 'softmax'", loss_name
    if not fine:
        raise ProblemError(
            "these targets have no labels to flip",
            where="problem.flip_labels",
            expected=expected,
            got=shown,
            remedy="remove problem.flip_labels, or use a classification problem with class labels",
        )
