"""Leave-one-out correlation: models trained without one sample, against that sample's score."""

from __future__ import annotations

from genrep_dist.config.experiment import Experiment
from genrep_dist.errors import PlanError
from genrep_dist.evaluation.metrics.base import MetricInfo, SeedData
from genrep_dist.evaluation.metrics.subset_metric import SubsetMetric
from genrep_dist.evaluation.removals import policy_text
from genrep_dist.evaluation.subsets import Mask, draw_left_out


class LeaveOneOut(SubsetMetric):
    """Spearman correlation, over single samples left out, of the real change of the output with the change that scores predict."""

    name = "loo"
    title = "Leave-one-out"
    numbers = (
        MetricInfo(
            "loo_correlation",
            "LOO correlation",
            "larger",
            "LOO correlation: Spearman correlation, over single training samples left out, of the real change of the prediction with "
            "the change that the method's scores predict; larger is better.",
        ),
    )

    def num_subsets(self, experiment: Experiment) -> int:
        return int(self.settings(experiment).samples)

    def subsets(self, experiment: Experiment, data: SeedData) -> Mask:
        return draw_left_out(data.seed, len(data.train_ids), self.num_subsets(experiment))

    def largest_removal(self, experiment: Experiment, num_train: int) -> int:
        return 1

    def check_feasible(self, experiment: Experiment, num_train: int) -> None:
        samples = self.num_subsets(experiment)
        if samples > num_train:
            raise PlanError(
                "more samples are to be left out than there are", where="loo.samples", expected=f"at most {num_train}", got=str(samples)
            )

    def description(self, experiment: Experiment) -> str:
        settings = self.settings(experiment)
        how = f"each once with weight {settings.weight:g}" if settings.weight else "each left out once"
        return f"{self.num_subsets(experiment)} samples a network, {how}; {policy_text(settings)}"
