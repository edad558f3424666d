"""BM25 of token numbers: a baseline that does not look at the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from genrep_dist.core.scorers.base import Scorer

if TYPE_CHECKING:
    from torch import Tensor

    from genrep_dist.core.losses import Loss
    from genrep_dist.core.scorers.base import ScoreInputs


class BM25(Scorer):
    """phi = BM25(x, x_i) times the vote of the label y_i: the test text is the query, the training texts are the documents.

    BM25 = sum over the tokens t of x of idf(t) n_t (k1 + 1) / (n_t + k1 (1 - b + b |x_i| / mean length)), with n_t the count of t in x_i,
    and idf(t) = log(1 + (N - N_t + 1/2) / (N_t + 1/2)) for N_t documents with t. Token 0 is padding.
    """

    name = "bm25"
    formula = "BM25(x, x_i) (vote of y_i), k1 = 1.2, b = 0.75"
    source = "BM25, Robertson and Zaragoza 2009, with the vote of the label"
    meaning = "texts that share rare tokens with the test text, by the votes of their labels"
    needs = ("token numbers as input",)
    is_baseline = True
    k1: ClassVar[float] = 1.2
    b: ClassVar[float] = 0.75
    padding: ClassVar[int] = 0

    def check(self, loss: Loss, inputs: Tensor, targets: Tensor, num_outputs: int) -> None:
        from genrep_dist.core.inputs import PackedInputs
        from genrep_dist.errors import ProblemError

        del loss, targets, num_outputs
        is_packed = isinstance(inputs, PackedInputs)
        if is_packed or inputs.dim() != 2 or inputs.is_floating_point():
            raise ProblemError(
                f"{self.name} is defined for token numbers alone",
                where=f"methods: {self.name}",
                expected="inputs int64 (N, L), with 0 for padding",
                got="several tensors" if is_packed else f"{inputs.dtype} (N, {', '.join(map(str, inputs.shape[1:]))})",
                remedy="leave this method out",
            )

    def scores(self, inputs: ScoreInputs) -> Tensor:
        from genrep_dist.core.scorers.votes import label_votes

        return bm25(inputs.train_inputs, inputs.test_inputs, k1=self.k1, b=self.b, padding=self.padding) * label_votes(inputs)


ROWS = 1024
"""Documents whose tokens are counted at once."""


def bm25(documents: Tensor, queries: Tensor, *, k1: float, b: float, padding: int) -> Tensor:
    """BM25 (N, M) float64 of ``documents`` (N, L) for ``queries`` (M, L'), token numbers. A token that a query repeats counts each time.

    Memory: counts (N, Q) of the Q different tokens of the queries.
    """
    import torch

    tokens, where = torch.unique(queries, return_inverse=True)
    in_query = torch.zeros(len(queries), len(tokens), dtype=torch.float64)
    in_query.scatter_add_(1, where, (queries != padding).double())
    counts = torch.zeros(len(documents), len(tokens), dtype=torch.float64)
    for start in range(0, len(documents), ROWS):
        rows = documents[start : start + ROWS]
        place = torch.searchsorted(tokens, rows).clamp(max=len(tokens) - 1)
        found = (tokens[place] == rows) & (rows != padding)
        counts[start : start + ROWS].scatter_add_(1, place, found.double())
    lengths = (documents != padding).sum(dim=1, dtype=torch.float64)
    holding = (counts > 0).sum(dim=0, dtype=torch.float64)
    idf = torch.log1p((len(documents) - holding + 0.5) / (holding + 0.5))
    relative = lengths / lengths.mean().clamp(min=1.0)
    saturated = counts * (k1 + 1) / (counts + k1 * (1 - b + b * relative)[:, None])
    return (saturated * idf) @ in_query.T
