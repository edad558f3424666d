"""The efficiency gap max |f - K alpha| on training samples and test points, relative to the range of the outputs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from genrep_dist.core.gradients.model import selected_output
from genrep_dist.core.importances.base import SolvedImportance
from genrep_dist.diagnostics.context import CheckContext
from genrep_dist.diagnostics.finding import Finding, compare, count_text, largest_key
from genrep_dist.workflow.attributions import kernel_rows

GAP_SHARE = 0.1
"""Largest gap, as a share of the outputs' range, with which explanations count as summing to the prediction."""


def check(context: CheckContext) -> Iterator[Finding]:
    """Two findings for each importance that is solved on a gram, over all seeds: training samples (as certified), and test points."""
    softmax = context.worker.loss.name == "softmax"
    note = "; it includes the mean logit of each sample, to which a softmax loss is invariant" if softmax else ""
    seeds = count_text(len(context.seeds), "seed")
    ranges = {seed: float(np.ptp(context.train_outputs(seed, context.plan.keys.epochs))) for seed in context.seeds}
    for importance, kernel, epoch in context.plan.needs.solved:
        solved = context.plan.experiment.importance(importance)
        assert isinstance(solved, SolvedImportance)
        artifacts = {seed: context.solved_artifact(importance, seed, kernel, epoch) for seed in context.seeds}
        certified = {seed: float(artifact.manifest()["certificate"]["efficiency_gap"]) for seed, artifact in artifacts.items()}
        on_test = {seed: _gap_on_test(context, importance, seed, kernel, epoch) for seed in context.seeds}
        for where, gaps in (("training samples", certified), ("test points", on_test)):
            shares = {seed: gap / ranges[seed] if ranges[seed] > 0 else gap for seed, gap in gaps.items()}
            seed = largest_key(shares)
            yield compare(
                "efficiency",
                shares[seed],
                GAP_SHARE,
                f"{importance} on {kernel} at epoch {epoch}, {where}: largest |f - K alpha|, {gaps[seed]:.3g}, as a share of the "
                f"range {ranges[seed]:.3g} of the outputs, worst of {seeds}{note}; bound: above a tenth of the range the "
                "explanations do not sum to the prediction",
                f"{solved.advice}. The scores of this method do not add up to f, but their order may still be useful",
                seed=seed,
                otherwise="amber",
            )


def _gap_on_test(context: CheckContext, importance: str, seed: int, kernel: str, epoch: int) -> float:
    """Maximum over the seed's test points of |f(x) - sum_i alpha_i K(x_i, x)|, from stored arrays.

    Where K is not stored, as the stage that had all scores has measured it.
    """
    keys = context.plan.keys
    if (kernel, epoch) in context.plan.needs.streamed:
        for method in context.plan.experiment.parsed_methods:
            if (method.importance, method.kernel) == (importance, kernel) and epoch in keys.method_epochs(method):
                manifest = context.store.artifact("attribution", keys.attribution(seed, method)).manifest()
                return float(manifest["efficiency_gap_test"])
    alpha = context.solved_artifact(importance, seed, kernel, epoch).read("alpha")
    stored = context.store.artifact("kernel", keys.kernel(seed, kernel, epoch)).reader("kernel")
    step = kernel_rows(context.memory_budget_bytes, *stored.shape[1:])
    fitted = sum(
        np.einsum("nc,ncm->m", alpha[at : at + step], stored.read(slice(at, at + step)).astype(np.float64))
        for at in range(0, len(alpha), step)
    )
    positions = keys.test_positions(seed)
    outputs = context.train_artifact(seed).read("outputs_test")[positions].astype(np.float64)
    weights = context.worker.output_weights(seed, epoch, context.worker.test_points(seed)).cpu()
    explained = selected_output(torch.from_numpy(outputs), weights).numpy()
    return float(np.abs(explained - fitted).max())
