"""The problems that ship, by name. This file imports none of them, nor torch."""

from __future__ import annotations

from collections.abc import Mapping

SHIPPED: Mapping[str, str] = {
    "digits": "genrep_dist.problems.datasets.digits:Digits",
    "mnist": "genrep_dist.problems.datasets.mnist:Mnist",
    "mnist-benchmark": "genrep_dist.problems.datasets.mnist_benchmark:MnistBenchmark",
    "cifar10": "genrep_dist.problems.datasets.cifar:Cifar10",
    "toxicity": "genrep_dist.problems.datasets.texts:Toxicity",
    "agnews": "genrep_dist.problems.datasets.texts:AgNews",
    "newsgroups": "genrep_dist.problems.datasets.texts:Newsgroups",
    "concrete": "genrep_dist.problems.datasets.concrete:Concrete",
}
"""The shipped problems. They are imported when loaded."""
