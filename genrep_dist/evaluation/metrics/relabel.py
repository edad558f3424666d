"""Relabelling: models trained with other labels of some samples, against the change that importances of these labels predict."""

from __future__ import annotations

import numpy as np

from genrep_dist.config.experiment import Experiment
from genrep_dist.config.relabel import RelabelSection
from genrep_dist.evaluation.metrics.base import Array, MetricInfo, RetrainRequest, SeedData
from genrep_dist.evaluation.metrics.subset_metric import SubsetMetric
from genrep_dist.evaluation.removals import policy_text
from genrep_dist.evaluation.subsets import Mask, draw_relabelled


class Relabelling(SubsetMetric):
    """Spearman correlation, over sets of relabelled samples, of the real change of the output with the predicted one.

    Predicted is sum_i (alpha'_i - alpha_i) K(x_i, x), with alpha' the importance of the new label at the original model's outputs. Methods
    whose importances do not follow from outputs and labels have no such number.
    """

    name = "relabel"
    title = "Relabelling"
    numbers = (
        MetricInfo(
            "relabel_correlation",
            "relabelling",
            "larger",
            "Relabelling: Spearman correlation, over sets of training samples that get another label, of the real change of the prediction "
            "with the change that the method predicts; larger is better. For methods whose importances follow from outputs and labels.",
        ),
    )

    def num_subsets(self, experiment: Experiment) -> int:
        return self._section(experiment).num_sets

    def subsets(self, experiment: Experiment, data: SeedData) -> Mask:
        section = self._section(experiment)
        return draw_relabelled(data.seed, data.train_ids, section.samples, section.size)

    def request(self, experiment: Experiment, data: SeedData, subset: Mask) -> RetrainRequest:
        return RetrainRequest(data.train_ids[:0], labels=self._new_labels(experiment, data, subset))

    def scores(self, experiment: Experiment, data: SeedData, method: str) -> Array | None:
        """The score with the old label less the one with the new label: what a sample adds while it is not relabelled."""
        changes = data.score_changes(method, self._new_labels(experiment, data, np.asarray(self.subsets(experiment, data).any(axis=0))))
        return None if changes is None else -changes

    def largest_removal(self, experiment: Experiment, num_train: int) -> int:
        return self._section(experiment).size

    def warnings(self, experiment: Experiment) -> list[str]:
        unknown = [m.name for m in experiment.parsed_methods if not (m.is_random or m.follows_labels)]
        if not unknown:
            return []
        return [f"No change by other labels is predicted by {', '.join(unknown)}: their importances do not follow from outputs and labels."]

    def description(self, experiment: Experiment) -> str:
        section = self._section(experiment)
        label = "the next class" if section.label is None else f"the label {section.label:g}"
        return f"{section.num_sets} sets of {section.size} training samples a network, given {label}; {policy_text(section)}"

    def _section(self, experiment: Experiment) -> RelabelSection:
        section: RelabelSection = self.settings(experiment)
        return section

    def _new_labels(self, experiment: Experiment, data: SeedData, samples: Mask) -> dict[int, float]:
        """The new labels of ``samples`` (N,) by id."""
        label, ids = self._section(experiment).label, data.train_ids[samples].tolist()
        if label is not None:
            return dict.fromkeys(ids, label)
        assert data.labels is not None  # refused before anything runs
        new = (data.labels[samples] + 1) % max(2, data.num_outputs)
        return dict(zip(ids, map(float, new), strict=True))
