"""What other labels of training samples change in a method's scores, with the original model's outputs and K as they are."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from genrep_dist.config import Experiment
from genrep_dist.core.attribution import attribute
from genrep_dist.core.changes import Change
from genrep_dist.core.methods import Method
from genrep_dist.core.targets import class_labels
from genrep_dist.errors import PlanError, ProblemError
from genrep_dist.evaluation.subsets import draw_relabelled
from genrep_dist.problems.protocol import Dataset
from genrep_dist.workflow.attributions import stored_kernel
from genrep_dist.workflow.changes import targets_of
from genrep_dist.workflow.context import WorkerContext
from genrep_dist.workflow.importances import alpha
from genrep_dist.workflow.targets import group_means
from genrep_dist.workflow.terms import product_block


def score_changes(method: Method, seed: int, context: WorkerContext, labels: Mapping[int, float], *, direct: bool) -> Tensor:
    """What is added to phi (N, M) float64 if training samples have other ``labels`` by id: sum_c (alpha'_c - alpha_c) K_c.

    ``direct``: K is not stored, and the products are computed for the relabelled samples alone.
    """
    targets = targets_of(Change.of(labels=labels), context.train, context.num_outputs(seed), f"seed {seed}")
    assert targets is not None, labels
    changed, points = copy.copy(context), context.test_points(seed)
    changed.train = context.train._replace(targets=targets)
    total = torch.zeros(len(context.train.ids), len(points), dtype=torch.float64)
    for term in context.keys.terms(method):
        before, after = (alpha(one, method.importance, seed, method.kernel, term.importance_epoch) for one in (context, changed))
        rate = context.term_rate(seed, term)
        difference = rate * (after - before)
        if not direct:
            blocks = stored_kernel(context, seed, method)(term.kernel_epoch)
            total += attribute(difference, (block.double() for block in blocks))
            continue
        where = f"kernel {method.kernel}, changes of importance {method.importance}, seed {seed}, epoch {term.kernel_epoch}"
        for start, stop in _runs(torch.isin(context.train.ids, torch.tensor(list(labels)))):
            rows = difference[start:stop]
            total[start:stop] += product_block(context, method.kernel, seed, term.kernel_epoch, rows, start, points, where)
    return group_means(total, context.keys.test_groups(seed))


def check_relabelling(experiment: Experiment, train: Dataset, num_outputs: int) -> None:
    """Raise PlanError or ProblemError for a metric `relabel` whose samples or labels these training samples do not have."""
    section = experiment.relabel
    if section is None:
        return
    if section.num_samples > len(train.ids):
        raise PlanError(
            "more samples are to be relabelled than there are",
            where="relabel.samples",
            expected=f"at most {len(train.ids)}",
            got=str(section.num_samples),
        )
    draw_relabelled(experiment.seeds[0], train.ids.numpy(), section.samples, section.size)
    if section.label is not None:
        targets_of(Change.of(labels={int(train.ids[0]): section.label}), train, num_outputs, "relabel.label")
    elif class_labels(train.targets.cpu().numpy(), num_outputs) is None:
        raise ProblemError(
            "the targets are no classes, so there is no other class",
            where="relabel",
            expected="class numbers, or a declared label",
            got=f"targets of shape {tuple(train.targets.shape)}, {train.targets.dtype}",
            remedy="declare the new target: relabel.label",
        )


def _runs(marked: Tensor) -> Iterator[tuple[int, int]]:
    """(start, stop) of the runs of True in ``marked`` (N,)."""
    edges = torch.diff(torch.nn.functional.pad(marked.int(), (1, 1))).tolist()
    starts = [place for place, edge in enumerate(edges) if edge == 1]
    yield from zip(starts, (place for place, edge in enumerate(edges) if edge == -1), strict=True)
