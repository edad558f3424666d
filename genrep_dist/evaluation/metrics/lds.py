"""Linear datamodeling score: models trained on random subsets, against sums of scores."""

from __future__ import annotations

from genrep_dist.config.experiment import Experiment
from genrep_dist.config.sections import LdsSection
from genrep_dist.evaluation.metrics.base import MetricInfo
from genrep_dist.evaluation.metrics.subset_metric import SubsetMetric
from genrep_dist.evaluation.removals import policy_text
from genrep_dist.evaluation.subsets import Mask, draw_subsets


class LinearDatamodeling(SubsetMetric):
    """Spearman correlation, over subsets, of the output of the model trained on a subset with the sum of the scores in it."""

    name = "lds"
    title = "Linear datamodeling"
    numbers = (
        MetricInfo(
            "lds",
            "LDS",
            "larger",
            "LDS (linear datamodeling score): Spearman correlation, over random subsets of the training set, of the prediction of the "
            "model trained on a subset with the sum of the method's scores in it; larger is better.",
        ),
    )

    def num_subsets(self, experiment: Experiment) -> int:
        return int(self.settings(experiment).subsets)

    def removed(self, experiment: Experiment, seed: int, num_train: int) -> Mask:
        return draw_subsets(seed, num_train, self.num_subsets(experiment), self.settings(experiment).fraction)

    def largest_removal(self, experiment: Experiment, num_train: int) -> int:
        lds: LdsSection = self.settings(experiment)
        return num_train - round(lds.fraction * num_train)

    def description(self, experiment: Experiment) -> str:
        lds: LdsSection = self.settings(experiment)
        return f"{lds.subsets} subsets a network, each {100 * lds.fraction:g} % of the training set; {policy_text(lds)}"
