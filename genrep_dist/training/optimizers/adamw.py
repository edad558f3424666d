"""Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

from __future__ import annotations

from genrep_dist.training.optimizers.adam import Adam


class AdamW(Adam):
    """Adam after theta <- (1 - eta lambda) theta, as ``torch.optim.AdamW`` with weight decay lambda."""

    title = "AdamW"
    decoupled_weight_decay = True
