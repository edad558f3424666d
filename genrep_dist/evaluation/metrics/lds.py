"""Linear datamodeling score: models trained on random subsets, against sums of scores."""

from __future__ import annotations

from genrep_dist.config.experiment import Experiment
from genrep_dist.config.sections import LdsSection
from genrep_dist.errors import PlanError
from genrep_dist.evaluation.metrics.base import MetricInfo, SeedData
from genrep_dist.evaluation.metrics.subset_metric import SubsetMetric
from genrep_dist.evaluation.removals import policy_text, smallest_share_text
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

    def subsets(self, experiment: Experiment, data: SeedData) -> Mask:
        return draw_subsets(data.seed, len(data.train_ids), self.num_subsets(experiment), self.settings(experiment).fraction)

    def check_feasible(self, experiment: Experiment, num_train: int) -> None:
        """Refuse subsets of no sample and of all samples: models of all subsets would be equal."""
        assert experiment.lds is not None
        fraction = experiment.lds.fraction
        kept = round(fraction * num_train)
        if not 0 < kept < num_train:
            raise PlanError(
                "the subsets would have no sample" if kept == 0 else "the subsets would have all samples",
                where="lds.fraction",
                expected=f"a share of 1 to {num_train - 1} of {num_train} training samples: {smallest_share_text(num_train)} or more, and "
                f"less than {1 - 0.5 / num_train:.6g}",
                got=f"{fraction:g} of {num_train}: {kept} samples",
                remedy="set lds.fraction to a share between, such as 0.5",
            )

    def largest_removal(self, experiment: Experiment, num_train: int) -> int:
        lds: LdsSection = self.settings(experiment)
        return num_train - round(lds.fraction * num_train)

    def description(self, experiment: Experiment) -> str:
        lds: LdsSection = self.settings(experiment)
        others = f", the others with weight {lds.weight:g}" if lds.weight else ""
        return f"{lds.subsets} subsets a network, each {100 * lds.fraction:g} % of the training set{others}; {policy_text(lds)}"
