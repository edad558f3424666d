"""The numbers of the paper's Table 1, its claims about them, and the set-up of its problems (Tsai, Yeh and Ravikumar 2023, section 6)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from genrep_dist.paper.claims import Claim

LAST_LAYER_KERNEL = "influence-last-layer-final/tracking"
LAST_LAYER_INFLUENCE = "influence-last-layer-final/target"
"""Names in this table for influence with the last layer's parameters alone, which the paper marks with a dagger."""

BLOCKS: Mapping[str, Mapping[str, str]] = {
    "Experiment I: global importances, kernel NTK-final": {
        "ntk-final/surrogate": "surrogate derivative",
        "ntk-final/target": "target derivative",
        "ntk-final/tracking": "tracking",
        "random": "random selection",
    },
    "Experiment II: kernels, global importance tracking": {
        "last-layer-final/tracking": "last layer-final",
        "ntk-initial/tracking": "NTK-init",
        "ntk-middle/tracking": "NTK-middle",
        "ntk-final/tracking": "NTK-final",
        "influence-final/tracking": "Inf-final",
        LAST_LAYER_KERNEL: "Inf-final, last layer†",
    },
    "Experiment III: existing and novel generalized representers": {
        "tracincp": "TracInCP",
        "influence-function": "influence function",
        LAST_LAYER_INFLUENCE: "influence function, last layer†",
        "representer-point": "representer point",
        "ntk-final/tracking": "NTK-final (tracking)",
        "influence-final/tracking": "Inf-final (tracking)",
        LAST_LAYER_KERNEL: "Inf-final (tracking), last layer†",
    },
}
"""The three blocks: method -> the paper's heading."""


@dataclass(frozen=True)
class PaperColumn:
    """One data set of the paper's Table 1. ``cells``: method -> (AUC-DEL_-, half of its pooled 95% interval)."""

    title: str
    text: bool
    num_seeds: int
    num_parameters: int
    cells: Mapping[str, tuple[float, float]]


PAPER: Mapping[str, PaperColumn] = {
    "mnist": PaperColumn(
        "MNIST",
        text=False,
        num_seeds=50,
        num_parameters=95_000,
        cells={
            "ntk-final/surrogate": (1.88, 0.25),
            "ntk-final/target": (2.41, 0.30),
            "ntk-final/tracking": (3.52, 0.48),
            "random": (-0.50, 0.16),
            "last-layer-final/tracking": (3.44, 0.46),
            "ntk-initial/tracking": (3.18, 0.46),
            "ntk-middle/tracking": (3.63, 0.49),
            "influence-final/tracking": (3.66, 0.49),
            "tracincp": (4.20, 0.52),
            "influence-function": (2.56, 0.32),
            "representer-point": (2.51, 0.30),
        },
    ),
    "cifar10": PaperColumn(
        "CIFAR-10",
        text=False,
        num_seeds=50,
        num_parameters=95_000,
        cells={
            "ntk-final/surrogate": (2.27, 0.18),
            "ntk-final/target": (2.81, 0.20),
            "ntk-final/tracking": (3.26, 0.19),
            "random": (0.136, 0.10),
            "last-layer-final/tracking": (2.26, 0.13),
            "ntk-initial/tracking": (1.35, 0.20),
            "ntk-middle/tracking": (2.67, 0.19),
            "influence-final/tracking": (3.46, 0.19),
            "tracincp": (2.84, 0.20),
            "influence-function": (3.02, 0.21),
            "representer-point": (1.65, 0.19),
        },
    ),
    "toxicity": PaperColumn(
        "Toxicity",
        text=True,
        num_seeds=200,
        num_parameters=1_602_257,
        cells={
            "ntk-final/target": (1.10, 0.21),
            "ntk-final/tracking": (2.08, 0.23),
            "random": (0.15, 0.19),
            "last-layer-final/tracking": (1.34, 0.22),
            "ntk-initial/tracking": (0.63, 0.22),
            "ntk-middle/tracking": (1.90, 0.23),
            LAST_LAYER_KERNEL: (0.42, 0.20),
            "tracincp": (1.59, 0.23),
            LAST_LAYER_INFLUENCE: (0.26, 0.20),
            "representer-point": (0.37, 0.19),
        },
    ),
    "agnews": PaperColumn(
        "AGnews",
        text=True,
        num_seeds=200,
        num_parameters=1_602_257,
        cells={
            "ntk-final/target": (1.88, 0.27),
            "ntk-final/tracking": (2.56, 0.27),
            "random": (0.19, 0.26),
            "last-layer-final/tracking": (2.14, 0.27),
            "ntk-initial/tracking": (1.81, 0.27),
            "ntk-middle/tracking": (2.54, 0.28),
            LAST_LAYER_KERNEL: (0.92, 0.26),
            "tracincp": (2.18, 0.27),
            LAST_LAYER_INFLUENCE: (0.75, 0.26),
            "representer-point": (0.86, 0.25),
        },
    ),
}

REPLACES: Mapping[str, str] = {"newsgroups": "agnews"}
"""A problem that replaces one of the paper's -> the paper's problem."""

ROWS_A_CLASS = 6_000
TEST_POINTS = 10
FRACTIONS = (0.0, 0.02, 0.04, 0.06, 0.08, 0.10)


@dataclass(frozen=True)
class PaperClaim:
    """A statement of the paper about its table, as testable comparisons. ``about``: the data sets that it names."""

    statement: str
    interpretation: str
    comparisons: tuple[Claim, ...]
    about: Literal["all", "images", "texts"] = "all"

    def applies_to(self, column: PaperColumn) -> bool:
        return self.about in ("all", "texts" if column.text else "images")


_WITHIN_A_FIFTH = 0.8
_KERNELS = ("last-layer-final", "ntk-initial", "ntk-middle", "ntk-final", "influence-final")


def _best_kernel(best: str, others: Iterable[str]) -> tuple[Claim, ...]:
    return tuple(Claim(f"{best}/tracking", f"{kernel}/tracking") for kernel in others if kernel != best)


CLAIMS = (
    PaperClaim(
        "Tracking performs best, followed by target derivative and then surrogate derivative.",
        "On NTK-final: tracking is no worse than target, and target no worse than surrogate.",
        (Claim("ntk-final/tracking", "ntk-final/target"), Claim("ntk-final/target", "ntk-final/surrogate")),
    ),
    PaperClaim(
        "NTK-final is a dependable kernel selection, consistently high.",
        "With tracking: NTK-final is better than random removal, and has at least four fifths of the area of every other kernel "
        "(in the paper's own table Inf-final is a little better on images).",
        (
            Claim("ntk-final/tracking", "random", strict=True),
            *(Claim("ntk-final/tracking", f"{kernel}/tracking", _WITHIN_A_FIFTH) for kernel in _KERNELS if kernel != "ntk-final"),
        ),
    ),
    PaperClaim(
        "The last layer's gradients are less informative for text classifiers.",
        "On texts: NTK-final is better than the last layer's kernel, and influence with all parameters than with the last layer's.",
        (
            Claim("ntk-final/tracking", "last-layer-final/tracking", strict=True),
            Claim("influence-final/tracking", LAST_LAYER_KERNEL, strict=True),
            Claim("influence-function", LAST_LAYER_INFLUENCE, strict=True),
        ),
        about="texts",
    ),
    PaperClaim(
        "The influence function kernel performs the best in the vision data sets.",
        "On images, with tracking: Inf-final is no worse than any other kernel.",
        _best_kernel("influence-final", _KERNELS),
        about="images",
    ),
    PaperClaim(
        "The NTK-final kernel has the best performance in language data sets.",
        "On texts, with tracking: NTK-final is no worse than any other kernel that the paper has there. Its influence kernel is the last "
        "layer's.",
        _best_kernel("ntk-final", (*_KERNELS[:3], LAST_LAYER_KERNEL.removesuffix("/tracking"))),
        about="texts",
    ),
    PaperClaim(
        "The Inf-final has comparable performance to TracInCP and they outperform other approaches.",
        "On images: each of Inf-final with tracking and TracInCP has at least four fifths of the area of the other, and is no worse than "
        "the influence function and the representer point (in the paper's own table TracInCP is below the influence function on CIFAR-10).",
        (
            Claim("influence-final/tracking", "tracincp", _WITHIN_A_FIFTH),
            Claim("tracincp", "influence-final/tracking", _WITHIN_A_FIFTH),
            *(
                Claim(better, worse)
                for better in ("influence-final/tracking", "tracincp")
                for worse in ("influence-function", "representer-point")
            ),
        ),
        about="images",
    ),
)
