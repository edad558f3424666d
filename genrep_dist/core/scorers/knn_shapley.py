"""KNN-Shapley: exact Shapley values of a classifier by nearest neighbours on the model's activations."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from genrep_dist.core.scorers.base import Scorer

if TYPE_CHECKING:
    from torch import Tensor

    from genrep_dist.core.scorers.base import ScoreInputs


class KNNShapley(Scorer):
    """The Shapley value of each sample for the mean vote of the ``neighbours`` nearest samples (Jia et al. 2019, Theorem 1).

    Near is what has a large cosine of penultimate activations; ties go to the sample that comes first. A vote is that of the sample's
    label for the explained number. Values of a test point add up to the mean vote of its nearest neighbours.
    """

    name = "knn-shapley"
    formula = "Shapley value of x_i for (1/5) sum of the labels' votes of the 5 nearest neighbours of x"
    source = "KNN-Shapley, Jia et al. 2019, Theorem 1"
    meaning = "Shapley values of nearest neighbours by the cosine of penultimate activations"
    needs = ("last linear layer",)
    base = "activation-cosine"
    is_baseline = True
    neighbours: ClassVar[int] = 5

    def scores(self, inputs: ScoreInputs) -> Tensor:
        import torch

        from genrep_dist.core.scorers.votes import label_votes

        similarity = inputs.products(torch.ones_like(inputs.outputs))
        return shapley_values(similarity, label_votes(inputs), self.neighbours)


def shapley_values(similarity: Tensor, votes: Tensor, neighbours: int) -> Tensor:
    """Shapley values (N, M) for v(S) = (1/K) sum of ``votes`` (N, M) of the K = ``neighbours`` samples of S most similar to each point.

    The recursion from the farthest sample to the nearest, for all points at once, as a sum: s_N = u_N min(K, N) / (K N), and
    s_i = s_(i+1) + (u_i - u_(i+1)) min(K, i) / (K i).
    """
    import torch

    count = len(similarity)
    if not count:
        return votes.double()
    order = similarity.argsort(dim=0, descending=True, stable=True)
    sorted_votes = votes.double().gather(0, order)
    place = torch.arange(1, count + 1, dtype=torch.float64, device=votes.device)
    factors = (place.clamp(max=neighbours) / (neighbours * place)).unsqueeze(1)
    steps = (sorted_votes - torch.cat([sorted_votes[1:], torch.zeros_like(sorted_votes[:1])])) * factors
    return torch.empty_like(steps).scatter_(0, order, steps.flip(0).cumsum(0).flip(0))
